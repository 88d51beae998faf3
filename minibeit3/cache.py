"""Keys and values that later queries may still see: an argument of the model, never its state."""

from torch import Tensor


class LayerCache:
    """Keys and values (B, H, S, K) of one layer, the newest last. Not for gradients."""

    def __init__(self) -> None:
        self.length = 0
        self.room: tuple[Tensor, Tensor] | None = None  # the first `length` of its places are taken

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append along S; return everything kept so far."""
        start, self.length = self.length, self.length + k.shape[2]
        if self.room is None or self.length > self.room[0].shape[2]:  # rarely: it doubles
            old, B, H, _, K = self.room, *k.shape
            self.room = k.new_empty(B, H, 2 * self.length, K), v.new_empty(B, H, 2 * self.length, K)
            for kept, now in zip(old or (), self.room, strict=bool(old)):
                now[:, :, :start] = kept[:, :, :start]
        for now, new in zip(self.room, (k, v), strict=True):
            now[:, :, start : self.length] = new
        k, v = (now[:, :, : self.length] for now in self.room)
        return k, v

    def shorten(self, length: int) -> None:
        """Drop what came after the first `length` tokens."""
        self.length = length


Cache = LayerCache | None
