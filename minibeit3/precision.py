"""Which device and number format to train in: bfloat16 only where the hardware multiplies it."""

from typing import Literal

import torch

DType = Literal["auto", "float32", "bfloat16"]


def pick_device(name: str = "auto") -> torch.device:
    """The named device; "auto" is CUDA where there is one, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def pick_dtype(name: DType, device: torch.device) -> torch.dtype:
    """The type of matrix products; "auto" is bfloat16 where that is faster, else float32.

    A CPU without AMX tiles emulates bfloat16, at up to 13 times the cost of float32 (measured).
    """
    if name == "auto":
        if device.type == "cuda":
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            fast = device.type == "cpu" and torch.cpu._is_amx_tile_supported()
        return torch.bfloat16 if fast else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Context in which matrix products run in `dtype`; parameters stay float32 as masters."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)
