"""Which device and number format to train in: bfloat16 only where the hardware multiplies it."""

import time
from functools import cache
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F

from minibeit3.storage import write_file

DType = Literal["auto", "float32", "bfloat16", "float8"]
PAYS = 1.75  # times float32's speed: less is lost again in casts
CHOSEN = "dtype"  # file of a run folder


def pick_device(name: str = "auto") -> torch.device:
    """The named device; "auto" is CUDA where there is one, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def pick_dtype(name: DType, device: torch.device) -> torch.dtype:
    """The type of matrix products; "auto" is bfloat16 where that is faster, else float32.

    "float8" is "auto" for what is not a product of the blocks (see `float8`).
    """
    if name in ("auto", "float8"):
        if device.type == "cuda":
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            fast = device.type == "cpu" and bfloat16_pays()
        return torch.bfloat16 if fast else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


@cache
def bfloat16_pays() -> bool:
    """True where this CPU multiplies bfloat16 `PAYS` times as fast as float32: tried once.

    Instructions alone do not tell: AVX-512's for bfloat16 are fast on some CPUs and not on others,
    and a CPU without any emulates them, at up to 13 times the cost of float32. There, and where
    they are unknown, nothing is tried.
    """
    if not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return False
    seconds = product_seconds(torch.float32), product_seconds(torch.bfloat16)
    return seconds[0] >= PAYS * seconds[1]


def product_seconds(dtype: torch.dtype, turns: int = 5) -> float:
    """CPU seconds of matrix products of a small model's sizes, the fastest of a few turns each."""
    total = 0.0
    for tokens, inputs, outputs in ((1024, 128, 512), (1024, 512, 128), (512, 512, 512)):
        x, weight = (torch.full((n, inputs), 0.5).to(dtype) for n in (tokens, outputs))
        found = []
        for _ in range(turns):
            began = time.process_time()
            F.linear(x, weight)
            found.append(time.process_time() - began)
        total += min(found[1:])  # the first one prepares its kernel
    return total


def run_dtype(name: DType, device: torch.device, folder: Path) -> torch.dtype:
    """`pick_dtype`, but an "auto" run goes on in what it began with, wherever it is resumed."""
    file = folder / CHOSEN
    if name == "auto" and file.exists():
        chosen = file.read_text().strip()
        if chosen not in ("float32", "bfloat16"):
            raise ValueError(f"{file} says {chosen!r}, not float32 or bfloat16: remove it")
        return pick_dtype(chosen, device)
    return pick_dtype(name, device)


def keep_dtype(dtype: torch.dtype, folder: Path) -> None:
    """Tell `run_dtype` what the run in `folder` began with."""
    write_file(folder / CHOSEN, f"{str(dtype).removeprefix('torch.')}\n".encode())


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Context in which matrix products run in `dtype`; parameters stay float32 as masters."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)
