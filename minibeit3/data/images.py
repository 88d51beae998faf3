"""Pictures in and out: safe decoding, the model's pixels, display pixels, text-aware augmentation.

Legend: C channels (3, RGB), H height, W width; a leading ... is one picture or a batch.
"""

import re
import warnings
from collections.abc import Callable, Sequence
from io import BytesIO
from os import PathLike
from typing import IO

import numpy as np
import torch
import torch.nn.functional as F
from einops import pack, rearrange, unpack
from PIL import Image

INCEPTION_MEAN = INCEPTION_STD = (0.5, 0.5, 0.5)
"""Released BEiT-3 on every vision-language task."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Released BEiT-3 on ImageNet classification."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
"""What is decoded; the other Pillow openers (one starts Ghostscript) never see untrusted bytes."""

Source = str | PathLike[str] | bytes | IO[bytes]
"""A path, the file's bytes, or an open file."""

_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDES = {"left": "right", "leftmost": "rightmost", "clockwise": "counterclockwise"}
_OTHER_SIDE = _SIDES | {after: before for before, after in _SIDES.items()}
_SIDE_WORD = re.compile(rf"\b({'|'.join(_OTHER_SIDE)})\b", re.IGNORECASE)


class ImageError(ValueError):
    """A picture that cannot be read; the message names the picture and the cause."""


def open_image(source: Source, max_pixels: int = 16_000_000) -> torch.Tensor:
    """Decode one untrusted picture (first frame of an animation) to uint8 (3, H, W), RGB.

    EXIF orientation is applied; transparency is laid on white; grey, palette, CMYK and 16-bit
    pictures become 8-bit RGB. The size is checked before any pixel is decoded.
    Raises ImageError for a missing, truncated, foreign or oversized file, and nothing else.
    """
    return rearrange(_decode(source, max_pixels, _upright_rgb), "H W C -> C H W").contiguous()


def open_labels(source: Source, max_pixels: int = 16_000_000) -> torch.Tensor:
    """Decode one untrusted label picture (8-bit grey or palette) to uint8 (H, W), values as stored.

    Raises ImageError like `open_image`, and for any other pixel mode.
    """
    return _decode(source, max_pixels, _indices)


def _decode(
    source: Source, max_pixels: int, convert: Callable[[Image.Image], Image.Image]
) -> torch.Tensor:
    if isinstance(source, bytes):
        name = f"<{len(source)} bytes>"
    else:
        name = source if isinstance(source, (str, PathLike)) else getattr(source, "name", "<file>")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            stream = BytesIO(source) if isinstance(source, bytes) else source
            with Image.open(stream, formats=FORMATS) as picture:
                width, height = picture.size
                if width * height > max_pixels:
                    raise ImageError(
                        f"{width}x{height} = {width * height:,} pixels, the limit is "
                        f"{max_pixels:,}: shrink the file or pass max_pixels="
                    )
                picture.load()
                pixels = np.array(convert(picture))
    except Exception as error:
        # Damaged bytes make the decoders raise at least OSError, SyntaxError, ValueError,
        # struct.error, EOFError and OverflowError: callers get one type for "bad picture".
        raise ImageError(f"cannot read image {name}: {error or type(error).__name__}") from error
    return torch.from_numpy(pixels)


def to_model(
    image: torch.Tensor,
    size: int,
    mean: float | Sequence[float] = 0.5,
    std: float | Sequence[float] = 0.5,
    crop: str = "squash",
) -> torch.Tensor:
    """uint8 (..., 3, H, W) to normalised float32 (..., 3, size, size).

    crop "squash" resizes both sides to `size` (released code, vision-language evaluation);
    "center" first cuts the central square (ImageNet evaluation).
    The resize is bicubic with antialiasing by torch on uint8, on the CPU: it takes batches, keeps
    memory at a byte per value and differs from Pillow (the released code) by at most one grey
    level in under 1 % of the values, at a quarter of the time.
    Departure: "center" crops before it resizes, so a 1 x 1,000,000 picture cannot explode.
    Raises ValueError for a wrong dtype, shape, device, size, std or crop.
    """
    image = _checked(image)
    if crop == "center":
        side = min(image.shape[-2:])
        top, left = (image.shape[-2] - side) // 2, (image.shape[-1] - side) // 2
        image = image[..., top : top + side, left : left + side]
    elif crop != "squash":
        raise ValueError(f'crop={crop!r}: choose "squash" or "center"')
    pixels = _resize(image, size).float() / 255
    return (pixels - _channels(mean, image)) / _channels(std, image, positive=True)


def to_pixels(
    image: torch.Tensor,
    mean: float | Sequence[float] = 0.5,
    std: float | Sequence[float] = 0.5,
) -> torch.Tensor:
    """Inverse of `to_model`'s normalisation for display: float (..., 3, H, W) to uint8, clipped."""
    pixels = image.float() * _channels(std, image, positive=True) + _channels(mean, image)
    return (pixels * 255).round().clamp(0, 255).to(torch.uint8)


def random_resized_crop(
    image: torch.Tensor,
    size: int,
    generator: torch.Generator,
    scale: tuple[float, float] = (0.5, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> torch.Tensor:
    """A random part of uint8 (..., 3, H, W), resized to uint8 (..., 3, size, size).

    The part covers scale[0]..scale[1] of the area; its aspect is log-uniform in `ratio`. After ten
    draws that do not fit, the whole picture. Scale (.5, 1): released code, all pair tasks.
    Not for captions that place or count things: the crop may cut them off.
    """
    image = _checked(image)
    height, width = image.shape[-2:]
    for _ in range(10):
        part, aspect, down, right = torch.rand(4, generator=generator).tolist()
        area = height * width * (scale[0] + part * (scale[1] - scale[0]))
        aspect = ratio[0] * (ratio[1] / ratio[0]) ** aspect
        h, w = round((area / aspect) ** 0.5), round((area * aspect) ** 0.5)
        if 0 < h <= height and 0 < w <= width:
            top, left = int(down * (height - h + 1)), int(right * (width - w + 1))
            return _resize(image[..., top : top + h, left : left + w], size)
    return _resize(image, size)


def mentions_sides(texts: Sequence[str]) -> bool:
    """True when a text says left, right or a turning direction, so a mirror would falsify it."""
    return any(_SIDE_WORD.search(text) for text in texts)


def mirror(image: torch.Tensor, texts: Sequence[str] = ()) -> tuple[torch.Tensor, tuple[str, ...]]:
    """Picture (..., H, W) flipped left-right, and the texts with their side words exchanged.

    Made for generated sentences: "right" in other senses ("all right") is exchanged as well.
    """
    return image.flip(-1), tuple(_SIDE_WORD.sub(_exchange, text) for text in texts)


def random_flip(
    image: torch.Tensor,
    texts: Sequence[str],
    generator: torch.Generator,
    probability: float = 0.5,
) -> torch.Tensor:
    """Flip left-right with `probability`, never when a text mentions a side.

    Departure: the released loader flips in every vision-language task, also under "left of".
    """
    wanted = torch.rand((), generator=generator).item() < probability  # drawn whatever the texts
    return image.flip(-1) if wanted and not mentions_sides(texts) else image


def _upright_rgb(picture: Image.Image) -> Image.Image:
    turn = _UPRIGHT.get(picture.getexif().get(_EXIF_ORIENTATION, 1))
    upright = picture if turn is None else picture.transpose(turn)
    if upright.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion clips at 255
        return Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8)).convert("RGB")
    if upright.has_transparency_data:
        layer = upright.convert("RGBA")
        white = Image.new("RGB", layer.size, "white")
        white.paste(layer, mask=layer.getchannel("A"))
        return white
    return upright if upright.mode == "RGB" else upright.convert("RGB")


def _indices(picture: Image.Image) -> Image.Image:
    if picture.mode not in ("L", "P"):
        raise ImageError(f"mode {picture.mode}: labels are 8-bit grey or palette pictures")
    return picture


def _checked(image: torch.Tensor) -> torch.Tensor:
    shaped = image.ndim >= 3 and image.shape[-3] == 3 and image.numel() > 0
    if image.dtype != torch.uint8 or image.device.type != "cpu" or not shaped:
        raise ValueError(
            f"expected uint8 (..., 3, H, W) on the CPU, got {image.dtype} {tuple(image.shape)} "
            f"on {image.device}: open_image gives the right form"
        )
    return image


def _resize(image: torch.Tensor, size: int) -> torch.Tensor:
    if size < 1:
        raise ValueError(f"size={size}: at least 1 pixel")
    batch, leading = pack([image], "* C H W")
    batch = F.interpolate(batch, (size, size), mode="bicubic", antialias=True)
    return unpack(batch, leading, "* C H W")[0]


def _channels(
    value: float | Sequence[float], image: torch.Tensor, positive: bool = False
) -> torch.Tensor:
    numbers = torch.tensor(value, dtype=torch.float32, device=image.device)
    if numbers.numel() not in (1, 3) or (positive and not (numbers > 0).all()):
        raise ValueError(f"{value!r}: one or three {'positive ' if positive else ''}numbers")
    return rearrange(numbers.expand(3), "C -> C 1 1")


def _exchange(word: re.Match[str]) -> str:
    found = word.group()
    other = _OTHER_SIDE[found.lower()]
    if found.isupper():
        return other.upper()
    return other.capitalize() if found[0].isupper() else other
