"""Losses of the downstream tasks, as pure functions (released code: utils and engine).

Letters: B samples, C classes or answers, D width, n hidden words, V vocabulary.
"""

import math
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


def soft_target_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy with probabilities, both (B, C): mixup, cutmix and smoothed labels."""
    _check_shapes(logits, targets)
    return -(targets * logits.float().log_softmax(dim=-1)).sum(dim=-1).mean()


def answer_loss(logits: Tensor, scores: Tensor) -> Tensor:
    """VQA: binary cross-entropy with soft scores in [0, 1], both (B, C), mean times C."""
    _check_shapes(logits, scores)
    return F.binary_cross_entropy_with_logits(logits.float(), scores.float()) * logits.shape[1]


def dice_loss(logits: Tensor, regions: Tensor, ignore: int = 255) -> Tensor:
    """One minus the dice coefficient of every class in the batch, mean over those classes.

    logits: (B, C, H, W). regions: int64 (B, H, W), `ignore` = unknown. Small regions weigh as much
    as large ones (arXiv 1606.04797).
    """
    if logits.shape[:1] + logits.shape[2:] != regions.shape:
        raise ValueError(f"logits {tuple(logits.shape)} do not fit regions {tuple(regions.shape)}")
    known = regions != ignore
    truth = F.one_hot(regions.masked_fill(~known, 0), logits.shape[1]).movedim(-1, 1)
    truth = truth * known[:, None]
    told = logits.float().softmax(dim=1) * known[:, None]
    both, either = (x.sum(dim=(0, 2, 3)) for x in (told * truth, told + truth))
    there = truth.sum(dim=(0, 2, 3)) > 0
    return (1 - (2 * both + 1) / (either + 1))[there].mean() if there.any() else told.sum() * 0


def contrastive_loss(
    image: Tensor, text: Tensor, scale: Tensor, image_ids: Tensor | None = None
) -> Tensor:
    """Symmetric InfoNCE over unit vectors (B, D); row i of both belongs together; a scalar.

    scale: inverse temperature. image_ids: int64 (B,), which image a row shows; None = all differ.
    When torch.distributed is initialised, the rows of every process (B on each) are candidates,
    and the mean of the processes' gradients is the gradient of their mean loss, as DDP expects.
    Departure: with image_ids, other captions of the same image are no negatives (released: they
    are).
    """
    _check_shapes(image, text)
    own = torch.arange(len(image), device=image.device) + len(image) * _rank()
    per_image = scale * image @ _gather(text).T  # (B, B of all processes)
    per_text = scale * text @ _gather(image).T
    if image_ids is not None:
        if image_ids.shape != own.shape:
            raise ValueError(f"image_ids is {tuple(image_ids.shape)}, not {tuple(own.shape)}")
        same = image_ids[:, None] == _gather(image_ids)
        same = same.scatter(1, own[:, None], False)
        per_image, per_text = (s.masked_fill(same, -torch.inf) for s in (per_image, per_text))
    both = F.cross_entropy(per_image.float(), own) + F.cross_entropy(per_text.float(), own)
    return both / 2


def smoothed_divergence(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """KL(smoothed target || prediction), (n,), of logits (n, V) and int64 targets (n,).

    The target keeps 1 - smoothing, the other V - 1 words share the rest. torch's label_smoothing
    shares with the target too, hence another rate, and leaves out the target's own entropy.
    """
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing {smoothing} is not in 0 <= smoothing < 1")
    others = logits.shape[1] - 1
    rate = smoothing * (others + 1) / others
    cross = F.cross_entropy(logits.float(), targets, reduction="none", label_smoothing=rate)
    entropy = -(1 - smoothing) * math.log(1 - smoothing)
    if smoothing:
        entropy -= smoothing * math.log(smoothing / others)
    return cross - entropy


def drop_worst(losses: Tensor, ratio: float) -> Tensor:
    """The smallest share 1 - ratio of losses (n,), at least one: noisy captions lose their say."""
    if not 0 <= ratio < 1:
        raise ValueError(f"ratio {ratio} is not in 0 <= ratio < 1")
    keep = max(1, int(len(losses) * (1 - ratio)))
    return losses.topk(keep, largest=False).values


class _Gather(torch.autograd.Function):
    """Rows of all processes in rank order; the gradient of own rows is summed over processes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad = grads[0].contiguous().clone()
        dist.all_reduce(grad)
        return grad.chunk(dist.get_world_size())[dist.get_rank()]


def _gather(x: Tensor) -> Tensor:
    return _Gather.apply(x) if _distributed() else x  # pyright: ignore[reportReturnType]


def _rank() -> int:
    return dist.get_rank() if _distributed() else 0


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def _check_shapes(first: Tensor, second: Tensor) -> None:
    if first.ndim != 2 or first.shape != second.shape:
        raise ValueError(
            f"{tuple(first.shape)} and {tuple(second.shape)} must be the same (rows, columns)"
        )
