"""Labelled sets that ship in public packages: Fashion-MNIST, easy-VQA, Tux Paint stamps.

Nothing of them is in the repository: install the Debian package `dataset-fashion-mnist` or
`tuxpaint-stamps-default`, or unpack the wheel `easy-vqa`, and give the folder.
"""

import gzip
import zlib
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from einops import repeat
from torch.utils.data import Dataset

from minibeit3.data.records import DataError, Files, OnBad, Record, Records, caption, read_json
from minibeit3.data.sample import Sample

FASHION_CLASSES = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
MAX_IDX_BYTES = 100 * 2**20


class FashionMNIST(Dataset[Sample]):
    """60,000 / 10,000 grey 28 x 28 pictures of clothes, 10 classes, from the idx.gz files.

    root: "/usr/share/datasets/fashion-mnist" on Debian; split "train" | "test".
    key "fashion_mnist/<split>/<number>"; info: class_name. Raises DataError for damaged files.
    """

    def __init__(self, root: str | PathLike[str], split: str) -> None:
        if split not in ("train", "test"):
            raise ValueError(f'split {split!r} is neither "train" nor "test"')
        stem = "train" if split == "train" else "t10k"
        self.split = split
        self.images = _idx(Path(root) / f"{stem}-images-idx3-ubyte.gz", dimensions=3)
        self.labels = _idx(Path(root) / f"{stem}-labels-idx1-ubyte.gz", dimensions=1)
        if len(self.images) != len(self.labels) or int(self.labels.max(initial=0)) > 9:
            raise DataError(
                f"{root}: {len(self.images)} pictures, {len(self.labels)} labels up to "
                f"{self.labels.max(initial=0)}: expected one label 0 .. 9 per picture"
            )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        label = int(self.labels[index])
        image = repeat(torch.from_numpy(self.images[index].copy()), "H W -> C H W", C=3)
        return Sample(
            key=f"fashion_mnist/{self.split}/{index % len(self)}",
            image=image.contiguous(),
            label=label,
            info={"class_name": FASHION_CLASSES[label], "split": self.split},
        )


def load_easy_vqa(
    root: str | PathLike[str], split: str, on_bad: OnBad = "raise", max_bad: float = 0.01
) -> Records:
    """Questions about one coloured shape: `<split>/questions.json`, `<split>/images/<id>.png`.

    root: the package's data folder; split "train" | "test". answers: {answer: 1.0}; label: its
    line in answers.txt. A lookup table of questions alone answers 67 % of it: report that beside.
    """
    files = Files(Path(root))
    try:
        answers = files.find("answers.txt").read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read answers.txt: {error}") from error
    labels = {answer: label for label, answer in enumerate(answers)}
    entries = read_json(files.find(f"{split}/questions.json"))
    if not isinstance(entries, list):
        raise DataError(f"{split}/questions.json is no list")

    def parse(numbered: tuple[int, object]) -> Record:
        number, entry = numbered
        match entry:
            case [question, str(answer), int(image_id)] if answer in labels:
                image_path = f"{split}/images/{image_id}.png"
            case _:
                raise DataError("expected [question, answer of answers.txt, image number]")
        sample = Sample(
            key=f"easy_vqa/{split}/{number}",
            texts=(caption(question),),
            answers={answer: 1.0},
            label=labels[answer],
            info={"image_path": image_path, "split": split},
        )
        return Record(sample, files.find(image_path))

    return Records("easy_vqa", enumerate(entries), parse, on_bad, max_bad)


def load_tuxpaint(
    root: str | PathLike[str],
    language: str = "en",
    on_bad: OnBad = "raise",
    max_bad: float = 0.01,
    leave_out: tuple[str, ...] = ("symbols",),
) -> Records:
    """Cut-out pictures of things with a one-sentence caption: `<category>/.../<name>.{png,txt}`.

    root: "/usr/share/tuxpaint/stamps" on Debian. The first line of a .txt is English, the others
    are "de.utf8=..."; stamps without a caption in `language` are left out when it is not English.
    label: place of the category among the sorted folders. Mirrored doubles and SVG are left out.
    The licences are mixed (GPL, GFDL, CC BY-SA ...): use the pictures, do not pass them on.
    """
    files = Files(Path(root))
    names = sorted(path.name for path in files.root.iterdir() if path.is_dir())
    labels = {name: label for label, name in enumerate(n for n in names if n not in leave_out)}
    paths = [path for name in labels for path in sorted((files.root / name).rglob("*.png"))]

    def parse(path: Path) -> Record | None:
        name = path.relative_to(files.root)
        try:
            lines = path.with_suffix(".txt").read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"caption of {name}: {error}") from error
        mark = f"{language}.utf8="
        found = [line.removeprefix(mark) for line in lines[1:] if line.startswith(mark)]
        text = next(iter(lines[:1] if language == "en" else found), "")
        if not text.strip() and language != "en":
            return None
        sample = Sample(
            key=f"tuxpaint/{name.with_suffix('').as_posix()}",
            texts=(caption(text),),
            label=labels[name.parts[0]],
            info={"image_path": name.as_posix(), "category": name.parts[0], "language": language},
        )
        return Record(sample, path)

    originals = (path for path in paths if not path.stem.endswith("_mirror"))
    return Records("tuxpaint", originals, parse, on_bad, max_bad)


def _idx(path: Path, dimensions: int) -> np.ndarray:
    """An idx file of bytes: 0 0 8 dimensions, big-endian sizes, then the values."""
    try:
        with gzip.open(path) as file:
            data = file.read(MAX_IDX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    head = 4 + 4 * dimensions
    shape = [int.from_bytes(data[i : i + 4], "big") for i in range(4, head, 4)]
    expected = head + int(np.prod(shape, dtype=object))
    if data[:4] != bytes([0, 0, 8, dimensions]) or len(data) != expected:
        raise DataError(f"{path}: {len(data):,} bytes, an idx file of {shape} has {expected:,}")
    return np.frombuffer(data, np.uint8, offset=head).reshape(shape)
