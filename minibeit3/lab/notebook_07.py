"""Exercises of notebook 07."""

from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import Tensor

from minibeit3.backbones import Backbone, build_backbone, preset
from minibeit3.lab.exercises import Exercise, register
from minibeit3.metrics import IGNORE, class_iou, confusion


def needed(names: Iterable[str], images: bool) -> list[str]:
    """Parameter names that lone images touch, with images=False those that lone texts touch."""
    own, embedding = ("V", "image_embed") if images else ("L", "text_embed")
    kept = []
    for name in names:
        parts = name.split(".")
        if "experts" in parts:
            wanted = parts[parts.index("experts") + 1] == own
        else:
            wanted = not parts[0].endswith("_embed") or parts[0] == embedding
        kept += [name] * wanted
    return kept


def _check_needed(own: Callable[[list[str], bool], Iterable[str]]) -> None:
    small = replace(preset("nano"), width=16, ffn_width=24, heads=2, vocab_size=40, image_size=16)
    cases = [replace(small, depth=3, fusion_layers=2), replace(small, depth=2, fusion_layers=0)]
    cases.append(replace(small, depth=2, fusion_layers=0, variant="released"))
    for seed, config in enumerate(cases):
        for images in (True, False):
            backbone = build_backbone(config, torch.Generator().manual_seed(seed)).eval()
            names = [name for name, _ in backbone.named_parameters()]
            kept = own(list(names), images)
            assert isinstance(kept, list | tuple | set), (
                f"Return a list of names, not {type(kept).__name__}."
            )
            _check_kept(backbone, set(kept), images, f"{config.variant}, images={images}")


def _check_kept(backbone: Backbone, kept: set[str], images: bool, case: str) -> None:
    names = {name for name, _ in backbone.named_parameters()}
    assert kept <= names, f"{case}: {sorted(map(str, kept - names))[:2]} are no parameters."
    mine, other = ("V", "L") if images else ("L", "V")
    what = "images" if images else "texts"
    for name in sorted(kept):
        assert "experts.VL." not in name, (
            f"{case}: you keep {name}. VL is for pairs: lone {what} go through {mine} to the top."
        )
        assert f"experts.{other}." not in name, (
            f"{case}: you keep {name}. Lone {what} never meet {other}"
            + ("; here attention has experts too." if "attn" in name else ".")
        )
        assert not name.startswith("text_embed" if images else "image_embed"), (
            f"{case}: you keep {name}, which makes tokens of the other language."
        )
    image, text = torch.ones(1, 3, 16, 16), torch.tensor([[5, 7, 9]])
    with torch.no_grad():
        before = _alone(backbone, image, text, images)
        for name, parameter in backbone.named_parameters():
            if name not in kept:
                parameter.fill_(torch.nan)
        after = _alone(backbone, image, text, images)
    lost = sorted(n for n in set(needed(names, images)) - kept if n != "image_embed.mask")
    assert torch.equal(before, after), (
        f"{case}: without {lost[0]} and {len(lost) - 1} more that you dropped the output is "
        "another. Attention and norms that all tokens share are needed by everyone."
    )


def _alone(backbone: Backbone, image: Tensor, text: Tensor, images: bool) -> Tensor:
    out = backbone(image).image if images else backbone(text=text).text
    assert out is not None
    return out


def mean_of_words(x: Tensor, real: Tensor) -> Tensor:
    """(B, D): mean of the real words of each text; x float (B, T, D), real bool (B, T)."""
    count = real.sum(dim=1, keepdim=True).clamp(min=1)
    return (x * real[..., None]).sum(dim=1) / count


def _check_mean(own: Callable[[Tensor, Tensor], Tensor]) -> None:
    for seed, (rows, length, width) in enumerate(((3, 5, 4), (4, 7, 2), (2, 3, 6))):
        g = torch.Generator().manual_seed(seed)
        x = torch.randn(rows, length, width, generator=g) + 1
        real = torch.arange(length) < torch.randint(1, length, (rows, 1), generator=g)
        real[0] = torch.arange(length) < length  # one text without padding
        found, wanted = own(x.clone(), real.clone()), mean_of_words(x, real)
        assert isinstance(found, Tensor), f"Return a tensor, not {type(found).__name__}."
        assert found.shape == wanted.shape, (
            f"{rows} texts of width {width} gave {tuple(found.shape)}; expected "
            f"({rows}, {width}): one vector for each text."
        )
        assert not torch.allclose(found, x.mean(dim=1)), (
            "Padding is part of your mean. Only real words count."
        )
        assert not torch.allclose(found, (x * real[..., None]).mean(dim=1)), (
            f"You divided by {length}, the length with padding. Divide by the number of real words."
        )
        assert not torch.allclose(found, (x * real[..., None]).sum(dim=1)), (
            "That is the sum. Divide by the number of real words."
        )
        assert torch.allclose(found, wanted, atol=1e-5), (
            "Some text's vector is not the mean of its real words."
        )
        noise = torch.where(real[..., None], x, 1e3 * x)
        assert torch.allclose(own(noise, real.clone()), wanted, atol=1e-3), (
            "When the padding's features change, your result changes: they must have no say."
        )
        empty = own(x.clone(), torch.zeros_like(real))
        assert empty.isfinite().all(), (
            "A text of padding alone gives NaN: divide by at least 1, so that its mean is zero."
        )


def class_ious(told: Tensor, truth: Tensor, classes: int) -> Tensor:
    """IoU of each class over all pictures, float (classes,), NaN for a class in neither.

    told, truth: int64 (B, H, W); pixels whose truth is 255 do not count.
    """
    return class_iou(confusion(told, truth, classes).sum(dim=0)).float()


def _check_ious(own: Callable[[Tensor, Tensor, int], Tensor]) -> None:
    for seed, (pictures, side, classes) in enumerate(((3, 6, 4), (2, 8, 3), (4, 5, 5))):
        g = torch.Generator().manual_seed(seed)
        truth = torch.randint(classes - 1, (pictures, side, side), generator=g)
        truth[0, : side // 2] = 0  # classes are of unequal size in the pictures
        wrong = torch.rand(truth.shape, generator=g) < 0.35
        told = torch.where(wrong, torch.randint(classes - 1, truth.shape, generator=g), truth)
        _compare(own, told, truth, classes, f"{pictures} pictures")
        hole = torch.rand(truth.shape, generator=g) < 0.2
        _compare(own, told, truth.masked_fill(hole, IGNORE), classes, "with pixels of truth 255")


def _compare(
    own: Callable[[Tensor, Tensor, int], Tensor],
    told: Tensor,
    truth: Tensor,
    classes: int,
    case: str,
) -> None:
    found, wanted = own(told.clone(), truth.clone(), classes), class_ious(told, truth, classes)
    assert isinstance(found, Tensor), f"Return a tensor, not {type(found).__name__}."
    assert found.shape == wanted.shape, (
        f"{case}: {classes} classes gave {tuple(found.shape)}; expected ({classes},)."
    )
    found = found.float()
    assert found[-1].isnan(), (
        f"{case}: class {classes - 1} is neither told nor true anywhere, so its IoU is 0 / 0: "
        f"NaN, not {found[-1]:.2f}. As 0 it would pull the mean down."
    )

    def same(other: Tensor) -> bool:
        return torch.allclose(found, other.float(), atol=1e-5, equal_nan=True)

    seen = truth != IGNORE
    sums = confusion(told, truth, classes).sum(dim=0).double()
    hits = sums.diagonal()
    if same(wanted):
        return
    assert not same(hits / sums.sum(1)), (
        f"{case}: that is the share of the true pixels that were found. Pixels told wrongly belong "
        "to the union too."
    )
    assert not same(hits / sums.sum(0)), (
        f"{case}: that is the share of the told pixels that are true. Missed pixels belong to the "
        "union too."
    )
    assert not same(hits / (sums.sum(0) + sums.sum(1))), (
        f"{case}: you counted the intersection twice. Union = told + true - both."
    )
    each = class_iou(confusion(told, truth, classes)).nanmean(dim=0)
    assert not same(each), (
        f"{case}: you took the IoU of each picture first. Add up pixels over all pictures."
    )
    blind = torch.stack([_plain_iou(told == c, truth == c) for c in range(classes)])
    assert seen.all() or not same(blind), (
        f"{case}: where the truth is 255 nothing is known. Leave those pixels out of the union."
    )
    raise AssertionError(f"{case}: expected {wanted.tolist()}, you got {found.tolist()}.")


def _plain_iou(told: Tensor, true: Tensor) -> Tensor:
    return (told & true).sum() / (told | true).sum()


register(
    Exercise(
        name="needed",
        difficulty=1,
        minutes=7,
        check=_check_needed,
        hints=(
            "Three kinds of names: with `experts` in them, those of an embedding, and the rest.",
            "The word after `experts` says whose parameter it is: name.split('.') finds it.",
            "Keep what is shared, your own embedding, and the experts V (images) or L (texts).",
        ),
        reference=needed,
    )
)
register(
    Exercise(
        name="mean_of_words",
        difficulty=1,
        minutes=5,
        check=_check_mean,
        hints=(
            "x * real[..., None] sets the padding to zero, so that a sum leaves it out.",
            "Divide by how many real words each text has, not by T.",
            "count = real.sum(dim=1, keepdim=True).clamp(min=1)",
        ),
        reference=mean_of_words,
    )
)
register(
    Exercise(
        name="class_ious",
        difficulty=2,
        minutes=8,
        check=_check_ious,
        hints=(
            "Drop the pixels of truth 255 first: seen = truth != 255; told[seen], truth[seen].",
            "For each class c: both = (told == c) & (truth == c), either is the same with | in it.",
            "both.sum() / either.sum() is NaN by itself when both are 0; stack them.",
        ),
        reference=class_ious,
    )
)
