"""Properties of minibeit3.data.images."""

import io
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from minibeit3.data.images import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ImageError,
    mirror,
    open_image,
    open_labels,
    random_flip,
    random_resized_crop,
    to_model,
    to_pixels,
)


def _picture(height: int = 20, width: int = 30) -> Image.Image:
    """Smooth enough for lossy codecs, different at all four corners."""
    y, x = np.mgrid[0:height, 0:width]
    red, green = 255 * y // height, 255 * x // width
    return Image.fromarray(np.stack([red, green, 128 + 0 * x], -1).astype(np.uint8))


def _encode(picture: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)  # type: ignore[arg-type]
    return out.getvalue()


def _tensor(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)


def _png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has no pixels behind it."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP", "JPEG", "GIF"])
def test_every_allowed_format_decodes_to_the_drawn_pixels(kind: str) -> None:
    options = {
        "JPEG": {"quality": 98, "subsampling": 0},
        "WEBP": {"lossless": True},
    }.get(kind, {})
    seen = open_image(_encode(_picture(), kind, **options))
    assert seen.shape == (3, 20, 30) and seen.dtype == torch.uint8 and seen.is_contiguous()
    allowed = {"JPEG": 6, "GIF": 40}.get(kind, 0)
    assert (seen.int() - _tensor(_picture()).int()).abs().max() <= allowed


def test_path_bytes_and_file_give_the_same_tensor(tmp_path: Path) -> None:
    data = _encode(_picture(), "PNG")
    (tmp_path / "ä b.png").write_bytes(data)
    for source in (tmp_path / "ä b.png", str(tmp_path / "ä b.png"), io.BytesIO(data)):
        assert torch.equal(open_image(source), open_image(data))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_every_pixel_mode_keeps_black_white_and_order(mode: str) -> None:
    grey = np.zeros((8, 8), np.uint8)
    grey[:, 4:] = 255
    if mode == "I;16":
        picture = Image.fromarray(grey.astype(np.uint16) * 257)
    else:
        picture = Image.fromarray(grey).convert("RGB").convert(mode)
    kind = "JPEG" if mode == "CMYK" else "PNG"
    seen = open_image(_encode(picture, kind)).int()
    assert seen.shape == (3, 8, 8)
    assert seen[:, :, :3].max() <= 8 and seen[:, :, 5:].min() >= 247


def test_sixteen_bit_grey_is_scaled_and_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    seen = open_image(_encode(Image.fromarray(ramp), "PNG"))
    assert torch.equal(seen[0].int(), torch.from_numpy((ramp >> 8).astype(np.int32)))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_transparent_pixels_become_white(mode: str) -> None:
    if mode in ("P", "RGB"):
        picture = Image.new(mode, (4, 4), 0)
        data = _encode(picture, "PNG", transparency=0 if mode == "P" else (0, 0, 0))
    else:
        data = _encode(Image.new("RGBA", (4, 4), (9, 9, 9, 0)).convert(mode), "PNG")
    assert (open_image(data) == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation: int) -> None:
    upright = _picture()
    to_stored = {
        2: 0,
        3: 3,
        4: 1,
        5: 5,
        6: 2,
        7: 6,
        8: 4,
    }  # inverse Pillow transpositions
    stored = (
        upright.transpose(Image.Transpose(to_stored[orientation])) if orientation > 1 else upright
    )
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert torch.equal(open_image(_encode(stored, "PNG", exif=exif)), _tensor(upright))


def test_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (6, 6), colour) for colour in ("red", "blue")]
    data = _encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert open_image(data)[:, 0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("size", [(5000, 4000), (10_000, 9_500), (60_000, 60_000)])
def test_oversized_picture_is_refused_before_decoding(size: tuple[int, int]) -> None:
    with pytest.raises(ImageError, match=r"pixels"):
        open_image(_png_header(*size))


@pytest.mark.slow
def test_sixteen_megapixels_stay_under_200_megabytes() -> None:
    child = (
        "import io, resource\nfrom PIL import Image\nfrom minibeit3.data.images import open_image\n"
        "out = io.BytesIO(); Image.new('L', (4000, 4000)).save(out, 'PNG'); data = out.getvalue()\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\nopen_image(data)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    run = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 200 * 1024


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_truncated_file_is_an_image_error_naming_the_file(kind: str, tmp_path: Path) -> None:
    data = _encode(_picture(200, 300), kind)
    broken = tmp_path / "broken.img"
    broken.write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageError, match=re.escape(str(broken))):
        open_image(broken)


def test_label_pictures_keep_their_stored_values() -> None:
    labels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    palette = Image.fromarray(labels).convert("P")
    palette.putpalette(bytes(reversed(range(256))) * 3)
    for picture in (Image.fromarray(labels), palette):
        assert torch.equal(open_labels(_encode(picture, "PNG")), torch.from_numpy(labels))
    with pytest.raises(ImageError, match=r"mode RGB"):
        open_labels(_encode(_picture(), "PNG"))


def test_foreign_formats_and_missing_files_are_image_errors(tmp_path: Path) -> None:
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    for source in (
        b"",
        b"not an image",
        postscript,
        _encode(_picture(), "TIFF"),
        tmp_path / "no",
    ):
        with pytest.raises(ImageError):
            open_image(source)
    with pytest.raises(ImageError):
        open_image(tmp_path)


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "BMP"]),
    edits=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=8),
    cut=st.integers(0, 400),
)
def test_mutated_bytes_decode_or_raise_only_image_error(
    kind: str, edits: list[tuple[int, int]], cut: int
) -> None:
    data = bytearray(_encode(_picture(), kind))
    for where, value in edits:
        data[where % len(data)] = value
    try:
        seen = open_image(bytes(data[: len(data) - cut]), max_pixels=1_000_000)
    except ImageError:
        return
    assert seen.shape[0] == 3 and seen.dtype == torch.uint8


def test_resize_agrees_with_pillow() -> None:
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (90, 130, 3), dtype=np.uint8))
    for size in (32, 64, 200):
        expected = _tensor(noise.resize((size, size), Image.Resampling.BICUBIC))
        ours = to_pixels(to_model(_tensor(noise), size))
        difference = (ours.int() - expected.int()).abs()
        assert difference.max() <= 1 and (difference > 0).float().mean() < 0.01


def test_to_pixels_inverts_to_model_at_equal_size() -> None:
    image = _tensor(_picture(24, 24))
    for mean, std in ((0.5, 0.5), (IMAGENET_MEAN, IMAGENET_STD)):
        assert torch.equal(to_pixels(to_model(image, 24, mean, std), mean, std), image)


def test_batch_equals_one_by_one() -> None:
    batch = torch.stack([_tensor(_picture()), _tensor(_picture()).flip(-1)])
    together = to_model(batch, 16)
    assert together.shape == (2, 3, 16, 16) and together.dtype == torch.float32
    assert torch.equal(together, torch.stack([to_model(one, 16) for one in batch]))


def test_center_crop_keeps_the_middle_and_squash_keeps_all() -> None:
    image = torch.zeros(3, 10, 30, dtype=torch.uint8)
    image[..., 10:20] = 255
    assert (to_model(image, 5, crop="center") == 1).all()
    assert (to_model(image, 6)[..., 0] == -1).all()


def test_extreme_aspect_is_cheap() -> None:
    assert to_model(torch.zeros(3, 1, 1_000_000, dtype=torch.uint8), 8, crop="center").shape[1] == 8


def test_bad_arguments_are_refused_with_the_value() -> None:
    image = _tensor(_picture())
    with pytest.raises(ValueError, match=r"float32"):
        to_model(image.float(), 8)
    with pytest.raises(ValueError, match=r"\(4, 9, 9\)"):
        to_model(torch.zeros(4, 9, 9, dtype=torch.uint8), 8)
    with pytest.raises(ValueError, match=r"size=0"):
        to_model(image, 0)
    with pytest.raises(ValueError, match=r"middle"):
        to_model(image, 8, crop="middle")
    with pytest.raises(ValueError, match=r"positive"):
        to_model(image, 8, std=0.0)


def test_random_resized_crop_depends_only_on_its_generator() -> None:
    image = _tensor(_picture(64, 64))
    draws = [
        random_resized_crop(image, 16, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    ]
    assert draws[0].shape == (3, 16, 16)
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_random_resized_crop_covers_the_promised_area() -> None:
    ramp = torch.arange(256, dtype=torch.uint8).repeat(3, 256, 1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        crop = random_resized_crop(ramp, 64, generator, scale=(0.25, 0.25), ratio=(1.0, 1.0))
        assert 120 <= int(crop.max()) - int(crop.min()) <= 130


def test_mirror_exchanges_picture_and_side_words_and_is_its_own_inverse() -> None:
    image = _tensor(_picture())
    flipped, texts = mirror(image, ("The star is LEFT of the ring.", "Right, not leftmost"))
    assert texts == ("The star is RIGHT of the ring.", "Left, not rightmost")
    assert torch.equal(flipped[..., 0], image[..., -1])
    again, back = mirror(flipped, texts)
    assert torch.equal(again, image) and back[0] == "The star is LEFT of the ring."


def test_random_flip_refuses_when_a_text_mentions_a_side() -> None:
    image = _tensor(_picture())
    always = torch.Generator().manual_seed(0)
    assert torch.equal(random_flip(image, ["a star left of a ring"], always, 1.0), image)
    assert torch.equal(random_flip(image, ["a cleft, bright stone"], always, 1.0), image.flip(-1))
    assert torch.equal(random_flip(image, [], always, 0.0), image)
