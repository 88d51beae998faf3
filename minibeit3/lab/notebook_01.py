"""Exercises of notebook 01."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from minibeit3.codebook import nearest
from minibeit3.lab.exercises import Exercise, register


def nearest_codes(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Index int64 (n,) of the codebook row (V, C) closest in direction to every vector (n, C)."""
    return nearest(F.normalize(vectors, dim=-1), F.normalize(codebook, dim=-1))


def _check_nearest(own: Callable[[Tensor, Tensor], Tensor]) -> None:
    for seed, (n, codes, width) in enumerate([(40, 12, 4), (9, 30, 16)]):
        g = torch.Generator().manual_seed(seed)
        vectors = torch.randn(n, width, generator=g) * 3
        codebook = torch.randn(codes, width, generator=g)
        codebook *= 0.2 + 4 * torch.rand(codes, 1, generator=g)  # lengths that must not matter
        found, wanted = own(vectors.clone(), codebook.clone()), nearest_codes(vectors, codebook)
        assert isinstance(found, Tensor), f"Return a tensor, not {type(found).__name__}."
        assert found.shape == wanted.shape, (
            f"{n} vectors and {codes} codes gave {tuple(found.shape)}; expected ({n},): one code "
            "for every vector."
        )
        unit, codes_unit = F.normalize(vectors, dim=-1), F.normalize(codebook, dim=-1)
        assert not torch.equal(found, (unit @ codes_unit.T).argmin(-1)), (
            "These are the farthest codes: take the largest cosine, or the smallest distance."
        )
        for wrong in ((vectors @ codebook.T).argmax(-1), torch.cdist(vectors, codebook).argmin(-1)):
            assert not torch.equal(found, wrong), (
                "Long codes win too often: divide vectors and codes by their length first."
            )
        assert torch.equal(found, wanted), (
            "Some codes are not the nearest: normalise along the last dimension, compare with all "
            "codes."
        )


def perplexity(counts: Tensor) -> float:
    """exp of the entropy of int64 counts (V,): how many codes, evenly used, are as surprising."""
    share = counts.double() / counts.sum()
    return torch.special.entr(share).sum().exp().item()


def _check_perplexity(own: Callable[[Tensor], float]) -> None:
    uneven = torch.tensor([5, 1, 9, 2, 30, 7])
    for counts in (uneven, torch.tensor([4, 0, 12, 0, 0, 1]), torch.full((7,), 3)):
        found, wanted = float(own(counts.clone())), perplexity(counts)
        share = counts[counts > 0].double() / counts.sum()
        entropy = -(share * share.log()).sum().item()
        assert found == found, "It is nan: 0 * log 0 counts as 0, so leave out the dead codes."
        assert abs(found - entropy) > 1e-4, "That is the entropy: take its exponential."
        assert abs(found - math.exp(entropy / math.log(2))) > 1e-4, (
            "Base 2 and base e are mixed: use log with exp, or log2 with 2 ** entropy."
        )
        if len(share) == len(set(share.tolist())):
            assert abs(found - len(share)) > 1e-4, (
                "That counts the used codes. Perplexity also asks how evenly they are used."
            )
        assert abs(found - wanted) < 1e-4 * wanted, (
            f"Counts {counts.tolist()} gave {found:.4g}; expected {wanted:.4g}. Are the shares "
            "divided by the sum of the counts?"
        )


def straight_through(vector: Tensor, code: Tensor) -> Tensor:
    """The value of `code`; the gradient goes to `vector` unchanged. Both float (n, C)."""
    return vector + (code - vector).detach()


def _check_straight_through(own: Callable[[Tensor, Tensor], Tensor]) -> None:
    for seed, shape in enumerate([(5, 4), (3, 9)]):
        g = torch.Generator().manual_seed(seed)
        vector, code, wish = (torch.randn(shape, generator=g) for _ in range(3))
        vector.requires_grad_()
        code.requires_grad_()
        out = own(vector, code)
        assert isinstance(out, Tensor) and out.shape == vector.shape, (
            f"Return a tensor of shape {shape}, the same as the vector's."
        )
        assert torch.allclose(out, code, atol=1e-5), (
            "The decoder must see the code itself: the value of the result is not the code."
        )
        assert out.requires_grad, "Nothing has a gradient: detach the difference, not the vector."
        to_vector, to_code = torch.autograd.grad(out, (vector, code), wish, allow_unused=True)
        assert to_code is None or not to_code.any(), (
            "The gradient goes to the code. The codebook learns by averages: detach the difference."
        )
        assert to_vector is not None and torch.allclose(to_vector, wish, atol=1e-6), (
            "The vector's gradient is not the one that arrived: it must pass unchanged."
        )


register(
    Exercise(
        name="nearest_codes",
        difficulty=1,
        minutes=5,
        check=_check_nearest,
        hints=(
            "Only directions count: divide every vector and every code by its length.",
            "Between unit vectors the smallest distance is the largest dot product.",
            "(normalize(vectors) @ normalize(codebook).T).argmax(dim=-1)",
        ),
        reference=nearest_codes,
    )
)
register(
    Exercise(
        name="perplexity",
        difficulty=2,
        minutes=5,
        check=_check_perplexity,
        hints=(
            "Turn counts into shares that sum to one.",
            "The entropy is -sum(share * log(share)) over the codes that occur.",
            "share = counts[counts > 0] / counts.sum(); exp(-(share * share.log()).sum())",
        ),
        reference=perplexity,
    )
)
register(
    Exercise(
        name="straight_through",
        difficulty=3,
        minutes=10,
        check=_check_straight_through,
        hints=(
            "You want a value from one tensor and a gradient from another.",
            "x.detach() keeps the value and stops the gradient.",
            "vector + (something that has no gradient): what must be added to reach the code?",
        ),
        reference=straight_through,
    )
)
