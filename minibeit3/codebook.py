"""The codebook of a visual tokenizer: unit vectors learned by moving averages, never by gradient.

Sources: BEiT v2 (arXiv 2208.06366) section 2.2 and the released norm_ema_quantizer.py.
Letters: C code width, V codes, n vectors of all patches of a batch.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

KMEANS_ITERATIONS = 10
DEAD_AFTER = 100  # training batches without a single hit


class CodeUsage(NamedTuple):
    """used: fraction of the codes that occur; perplexity: exp of the entropy, 1 to `codes`;
    dead: codes that never occur; counts: int64 (codes,)."""

    used: float
    perplexity: float
    dead: int
    counts: Tensor


def code_usage(tokens: Tensor, codes: int) -> CodeUsage:
    """How evenly int64 `tokens` of any shape use a codebook of `codes` entries.

    Raises ValueError when `tokens` is empty or holds an id outside [0, codes).
    """
    check_tokens(tokens, codes)
    counts = torch.bincount(tokens.flatten(), minlength=codes)
    share = counts.double() / counts.sum()
    dead = int((counts == 0).sum())
    perplexity = torch.special.entr(share).sum().exp().item()
    return CodeUsage(1 - dead / codes, perplexity, dead, counts)


def cosine_k_means(vectors: Tensor, codes: int, generator: torch.Generator) -> Tensor:
    """Codebook (codes, C) from unit `vectors` (n, C): Lloyd iterations under cosine similarity.

    Starts from random samples, repeated when n < codes; an empty cluster keeps its centre
    (released norm_ema_quantizer.py). `generator` lives on the CPU.
    """
    n = len(vectors)
    if n >= codes:
        chosen = torch.randperm(n, generator=generator)[:codes]
    else:
        chosen = torch.randint(0, n, (codes,), generator=generator)
    centres = vectors[chosen.to(vectors.device)]
    for _ in range(KMEANS_ITERATIONS):
        mean, hits = _mean_per_code(vectors, nearest(vectors, centres), codes)
        centres = torch.where(hits[:, None] > 0, mean, centres)
    return centres


def nearest(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Index (...,) of the codebook row (V, C) closest to every unit vector (..., C).

    |z - e|^2 without its constant |z|^2; for unit codes simply the largest cosine.
    """
    return (vectors @ codebook.T - codebook.square().sum(-1) / 2).argmax(-1)


def _mean_per_code(vectors: Tensor, tokens: Tensor, codes: int) -> tuple[Tensor, Tensor]:
    """Unit mean (codes, C) of the vectors of every code, over all ranks, and hits (codes,)."""
    hits = torch.bincount(tokens, minlength=codes)
    total = vectors.new_zeros(codes, vectors.shape[-1]).index_add_(0, tokens, vectors)
    if _ranks_share():
        distributed.all_reduce(hits)
        distributed.all_reduce(total)
    return F.normalize(total / hits.clamp(min=1)[:, None], dim=-1), hits


class Codebook(nn.Module):
    """Buffers: vectors float32 (V, C), unit length, zero until the first training batch;
    started bool (); idle int64 (V,), training batches since a code was last hit.

    Departure: the release keeps an average of hit counts, also updated in eval; `idle` replaces it.
    """

    vectors: Tensor
    started: Tensor
    idle: Tensor

    def __init__(
        self, codes: int, code_dim: int, *, decay: float, restart_dead: bool, seed: int
    ) -> None:
        super().__init__()
        self.decay, self.restart_dead, self.seed = decay, restart_dead, seed
        self.register_buffer("vectors", torch.zeros(codes, code_dim))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))
        self.register_buffer("idle", torch.zeros(codes, dtype=torch.int64))

    def start(self, unit: Tensor) -> None:
        """k-means start from unit vectors (n, C) of the first training batch (rank 0's)."""
        generator = torch.Generator().manual_seed(self.seed)
        self.vectors.copy_(cosine_k_means(unit, len(self.vectors), generator))
        if _ranks_share():
            distributed.broadcast(self.vectors, 0)
        self.started.fill_(True)

    def learn(self, unit: Tensor, tokens: Tensor) -> None:
        """One moving-average step from unit vectors (n, C) and their codes (n,), of all ranks.

        A code without a hit keeps its vector; one idle for `DEAD_AFTER` batches restarts, if the
        config says so, at the vector of this batch that its own code represents worst.
        """
        mean, hits = _mean_per_code(unit, tokens, len(self.vectors))
        moved = F.normalize(torch.lerp(self.vectors, mean, 1 - self.decay), dim=-1)
        similarity = (unit * self.vectors[tokens]).sum(-1)
        self.vectors.copy_(torch.where(hits[:, None] > 0, moved, self.vectors))
        self.idle.add_(1).masked_fill_(hits > 0, 0)
        if self.restart_dead:
            dead = self.dead()[: len(unit)]
            self.vectors[dead] = unit[similarity.topk(len(dead), largest=False).indices]
            self.idle[dead] = 0
            if _ranks_share():
                distributed.broadcast(self.vectors, 0)

    def dead(self) -> Tensor:
        """int64 (n,) ids of the codes that no patch chose in the last `DEAD_AFTER` batches."""
        return (self.idle >= DEAD_AFTER).nonzero().flatten()


def check_tokens(tokens: Tensor, codes: int) -> None:
    """ValueError unless `tokens` is a filled int64 tensor with values in [0, codes)."""
    if tokens.dtype != torch.int64 or not tokens.numel():
        raise ValueError(f"tokens must be int64 and not empty, got {tokens.dtype} {tokens.shape}")
    low, high = (int(x) for x in tokens.aminmax())
    if low < 0 or high >= codes:
        raise ValueError(f"tokens must lie in [0, {codes}), got {low} to {high}")


def _ranks_share() -> bool:
    return distributed.is_available() and distributed.is_initialized()
