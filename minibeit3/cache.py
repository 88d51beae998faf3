"""Keys and values that later queries may still see: an argument of the model, never its state."""

import torch
from torch import Tensor


class LayerCache:
    """Keys and values (B, H, S, K) of one layer."""

    def __init__(self) -> None:
        self.kv: tuple[Tensor, Tensor] | None = None

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append along S; return everything kept so far."""
        if self.kv is not None:
            k, v = (torch.cat([old, new], dim=2) for old, new in zip(self.kv, (k, v), strict=True))
        self.kv = k, v
        return k, v

    def select(self, rows: Tensor | None, length: int) -> None:
        """Keep the samples `rows` (int64, repeats allowed; None = all) and `length` tokens."""
        if self.kv is not None:
            k, v = (kept if rows is None else kept[rows] for kept in self.kv)
            self.kv = k[:, :, :length], v[:, :, :length]


Cache = LayerCache | None
