"""Exercises of notebook 06."""

from collections.abc import Callable

import torch
from einops import reduce
from torch import Tensor

from minibeit3.explore.flow import rollout
from minibeit3.lab.exercises import Exercise, register


def roll_out(patterns: Tensor) -> Tensor:
    """Attention through all layers, (S, S); patterns: (L, H, S, S), the first layer first."""
    flow = torch.eye(patterns.shape[-1])
    for layer in patterns.mean(dim=1):
        flow = (layer + torch.eye(len(layer))) / 2 @ flow
    return flow


def _check_rollout(own: Callable[[Tensor], Tensor]) -> None:
    for seed, (layers, heads, tokens) in enumerate([(3, 2, 5), (4, 3, 7), (1, 2, 4)]):
        g = torch.Generator().manual_seed(seed)
        patterns = (3 * torch.randn(layers, heads, tokens, tokens, generator=g)).softmax(dim=-1)
        found = own(patterns.clone())
        wanted = torch.from_numpy(rollout(patterns.double().numpy())).float()
        assert isinstance(found, Tensor), f"Return a tensor, not {type(found).__name__}."
        assert found.shape == wanted.shape, (
            f"{layers} layers with {heads} heads and {tokens} tokens gave {tuple(found.shape)}; "
            f"expected one map ({tokens}, {tokens}): heads are averaged, layers multiplied."
        )
        ones, eye = torch.ones(tokens), torch.eye(tokens)
        assert torch.allclose(found.sum(dim=-1), ones, atol=1e-4), (
            f"Rows should sum to one, yours sum to {found.sum(dim=-1).max():.2f}. Take the mean of "
            "the heads, and halve after adding the identity: half attention, half residual."
        )
        if layers > 1:
            mean, straight = patterns.mean(dim=1), eye
            for layer in mean:
                straight = layer @ straight
            assert not torch.allclose(found, straight, atol=1e-5), (
                "The residual is missing: each layer also passes every token on as it is, so mix "
                "in the identity."
            )
            last = (mean[-1] + eye) / 2
            assert not torch.allclose(found, last, atol=1e-5), "That is the last layer alone."
            turned = torch.from_numpy(rollout(patterns.flip(0).double().numpy())).float()
            assert not torch.allclose(found, turned, atol=1e-5), (
                "The order is turned round. A later layer reads what earlier ones wrote, so it is "
                "multiplied from the left: flow = layer @ flow."
            )
        assert torch.allclose(found, wanted, atol=1e-5), "The rows sum to one, the map is another."


def mass_inside(weights: Tensor, inside: Tensor) -> float:
    """Share of the patches' weight (h, w) on a thing; inside: bool (H, W), True = its pixels."""
    step = inside.shape[0] // weights.shape[0]
    part = reduce(inside.float(), "(h p) (w q) -> h w", "mean", p=step, q=step)
    return ((weights * part).sum() / weights.sum()).item()


def _check_mass(own: Callable[[Tensor, Tensor], float]) -> None:
    for seed, (rows, columns, step) in enumerate([(4, 4, 8), (3, 5, 4), (8, 8, 2)]):
        g = torch.Generator().manual_seed(seed)
        weights = torch.rand(rows, columns, generator=g) * 0.7 / (rows * columns)
        inside = torch.zeros(rows * step, columns * step, dtype=torch.bool)
        inside[step // 2 : 2 * step + 1, step // 2 : step + step // 2] = True
        found, wanted = own(weights.clone(), inside.clone()), mass_inside(weights, inside)
        assert not isinstance(found, Tensor) or found.numel() == 1, (
            f"Return one number, not {tuple(found.shape)}: sum over the patches."
        )
        found = float(found)
        part = reduce(inside.float(), "(h p) (w q) -> h w", "mean", p=step, q=step)
        assert abs(found - (weights * part).sum().item()) > 1e-6, (
            f"Here the patches hold {weights.sum():.2f} of the attention, the rest goes to [CLS] "
            "and the words. Divide by the sum of the weights, so that maps can be compared."
        )
        touched = (weights * (part > 0)).sum() / weights.sum()
        assert abs(found - touched.item()) > 1e-6, (
            "A patch that the thing only touches was counted whole. Count the part of the patch "
            "that lies on the thing."
        )
        pixels = (weights * part).sum() / weights.sum() * step * step
        assert abs(found - pixels.item()) > 1e-6, (
            f"You summed pixels: a patch has {step * step} of them, take their mean."
        )
        assert abs(found - part.mean().item()) > 1e-6, "That is the thing's area, without weights."
        assert abs(found - wanted) < 1e-5, f"Expected {wanted:.4f}, got {found:.4f}."


def top_patches(weights: Tensor, count: int) -> Tensor:
    """bool (B, N), True at the `count` largest of each row of weights (B, N)."""
    hidden = torch.zeros(weights.shape, dtype=torch.bool)
    return hidden.scatter(1, weights.topk(count, dim=1).indices, True)


def _check_top(own: Callable[[Tensor, int], Tensor]) -> None:
    for seed, (samples, patches, count) in enumerate([(3, 16, 4), (5, 9, 1), (2, 25, 10)]):
        g = torch.Generator().manual_seed(seed)
        scale = torch.arange(1, samples + 1)[:, None]  # so that rows differ in size
        weights = torch.rand(samples, patches, generator=g) * scale
        found, wanted = own(weights.clone(), count), top_patches(weights, count)
        assert isinstance(found, Tensor), f"Return a tensor, not {type(found).__name__}."
        assert found.dtype == torch.bool and found.shape == wanted.shape, (
            f"Expected a bool mask {tuple(wanted.shape)}, got {found.dtype} {tuple(found.shape)}: "
            "mark the places, do not list them."
        )
        assert not torch.equal(found, ~wanted), "True must mean hidden: you marked the others."
        assert not torch.equal(found, top_patches(-weights, count)), (
            "You hid the smallest weights, the test asks for the largest."
        )
        each = found.sum(dim=1)
        assert (each == count).all(), (
            f"Asked for {count} patches in every row, got {each.tolist()}. Rank within each row, "
            "dim=1, not over the whole batch."
        )
        assert torch.equal(found, wanted), "The number is right, the patches are not the largest."
        even = own(torch.ones(samples, patches), count)
        assert (even.sum(dim=1) == count).all(), (
            f"With equal weights you hid {even.sum(dim=1).tolist()} patches in place of {count}: "
            "a threshold cannot choose among equals, topk or argsort can."
        )


register(
    Exercise(
        name="roll_out",
        difficulty=2,
        minutes=8,
        check=_check_rollout,
        hints=(
            "Start with the identity: before the first layer a token is itself.",
            "A layer's map is the mean of its heads, mixed half and half with the identity.",
            "flow = (layer + torch.eye(S)) / 2 @ flow, for each layer from first to last.",
        ),
        reference=roll_out,
    )
)
register(
    Exercise(
        name="mass_inside",
        difficulty=2,
        minutes=8,
        check=_check_mass,
        hints=(
            "First find which part of each patch lies on the thing: a mean of its pixels.",
            'einops.reduce(inside.float(), "(h p) (w q) -> h w", "mean", p=..., q=...)',
            "(weights * part).sum() / weights.sum()",
        ),
        reference=mass_inside,
    )
)
register(
    Exercise(
        name="top_patches",
        difficulty=1,
        minutes=5,
        check=_check_top,
        hints=(
            "weights.topk(count, dim=1).indices lists the places of each row.",
            "Start with an all-False mask of the same shape.",
            "mask.scatter_(1, indices, True) marks them.",
        ),
        reference=top_patches,
    )
)
