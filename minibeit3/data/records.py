"""Records of public data sets: parsed first, pictures decoded on access, damage counted by name.

Every adapter turns one entry of its files into one `Record`; what cannot be turned is never
replaced by another entry: it is raised, or named in `Records.skipped` while the rest keep order.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Literal, TypeVar

import torch
from torch.utils.data import Dataset

from minibeit3.data.images import ImageError, open_image, open_labels
from minibeit3.data.paths import inside
from minibeit3.data.sample import Sample

T = TypeVar("T")
OnBad = Literal["raise", "skip"]
MAX_LINE_BYTES = 2**20
UNLABELLED = 255


class DataError(ValueError):
    """A file or record of a data set that breaks its format; the message names it and the cause."""


@dataclass(frozen=True, slots=True)
class TarMember:
    """A stretch of an uncompressed tar archive, read in place and never extracted."""

    archive: Path
    offset: int
    size: int

    def read(self) -> bytes:
        """The member's bytes. Raises OSError when the archive is gone."""
        with self.archive.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


Picture = Path | TarMember


@dataclass(frozen=True, slots=True)
class Record:
    """A sample whose pictures still lie in their files.

    regions: label picture in the ADE20K convention, 0 = unlabelled, 1 .. classes = the classes.
    """

    sample: Sample
    image: Picture | None = None
    image_b: Picture | None = None
    regions: Picture | None = None
    classes: int = 0

    def decode(self) -> Sample:
        """The sample with its pictures. Raises ImageError that names the key."""
        try:
            return replace(
                self.sample,
                image=self.image and open_image(_source(self.image)),
                image_b=self.image_b and open_image(_source(self.image_b)),
                regions=self.regions and _regions(_source(self.regions), self.classes),
            )
        except (ImageError, OSError) as error:
            raise ImageError(f"{self.sample.key}: {error}") from error


class Records(Dataset[Sample]):
    """Map-style dataset; `parse` turns each raw entry into a Record (None: not asked for).

    skipped: (key, reason) of every bad entry so far, in file order; an entry that has no key yet is
    named by its place in the file, "coco[17]".
    on_bad: "raise" stops at the first bad entry; "skip" goes on, unless more than the share
    `max_bad` of all entries is bad. Bad pictures are found by `verify`; until then reading one
    raises ImageError.
    """

    def __init__(
        self,
        name: str,
        entries: Iterable[T],
        parse: Callable[[T], Record | None],
        on_bad: OnBad = "raise",
        max_bad: float = 0.01,
    ) -> None:
        if on_bad not in ("raise", "skip") or not 0 <= max_bad <= 1:
            raise ValueError(f"on_bad={on_bad!r}, max_bad={max_bad}: raise or skip, a share 0 .. 1")
        self.name, self.on_bad, self.max_bad = name, on_bad, max_bad
        self.records: list[Record] = []
        self.skipped: list[tuple[str, str]] = []
        for number, entry in enumerate(entries):
            try:
                record = parse(entry)
            except DataError as error:
                self._reject(f"{name}[{number}]", str(error))
            else:
                self.records += [record] if record else []
        self._check_share()

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        return self.records[index].decode()

    def __iter__(self) -> Iterator[Sample]:
        return (record.decode() for record in self.records)

    def verify(self) -> None:
        """Decode every picture once; bad ones are raised or moved to `skipped`, by `on_bad`.

        Run it before training, on data seen for the first time: afterwards no read fails.
        """
        good = []
        for record in self.records:
            try:
                record.decode()
            except ImageError as error:
                self._reject(record.sample.key, str(error))
            else:
                good.append(record)
        self.records = good
        self._check_share()

    def _reject(self, key: str, reason: str) -> None:
        if self.on_bad == "raise":
            raise DataError(f"{key}: {reason} (on_bad='skip' counts it and goes on)")
        self.skipped.append((key, reason))

    def _check_share(self) -> None:
        bad, total = len(self.skipped), len(self.skipped) + len(self.records)
        if bad > self.max_bad * total:
            key, reason = self.skipped[0]
            raise DataError(
                f"{self.name}: {bad} of {total} records are bad, the limit is {self.max_bad:.1%} "
                f"(first: {key}: {reason}): repair the data or raise max_bad"
            )


class Files:
    """Pictures of a data set by their untrusted relative names, each looked up once."""

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise DataError(f"no folder {root}: give the folder that holds the data set")
        self.root = root
        self._found: dict[str, Path] = {}

    def find(self, name: str) -> Path:
        """The file; DataError when it is missing or its name leaves the root."""
        if name not in self._found:
            try:
                path = inside(self.root, name)
                if not path.is_file():
                    raise DataError(f"missing file {name!r}")
            except (OSError, ValueError) as error:
                raise DataError(str(error)) from error
            self._found[name] = path
        return self._found[name]


def get(entry: object, name: str, kind: type[T]) -> T:
    """`entry[name]` of an untrusted JSON object, or DataError; a bool is no int here."""
    if not isinstance(entry, dict):
        raise DataError(f"expected a JSON object, got {shown(entry)}")
    value = entry.get(name)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise DataError(f"{name!r} is {shown(value)}, expected {kind.__name__}")
    return value


def caption(text: object) -> str:
    """An untrusted caption as one line of plain text; markup stays text, to be escaped on display.

    Raises DataError for anything but a text with a visible sign that UTF-8 can hold.
    """
    if not isinstance(text, str):
        raise DataError(f"caption is {shown(text)}, expected text")
    if re.search("[\ud800-\udfff]", text):
        raise DataError(f"caption {shown(text)} holds half a surrogate pair")
    if not (words := text.split()):
        raise DataError("caption is empty")
    return " ".join(words)


def parse_json(data: bytes | str) -> object:
    """JSON of untrusted bytes, NaN and Infinity refused. Raises DataError."""
    try:
        return json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON: {error}") from error


def read_json(path: Path) -> object:
    """The same of a whole file. Raises DataError that names it."""
    try:
        return parse_json(path.read_bytes())
    except (OSError, DataError) as error:
        raise DataError(f"cannot read {path}: {error}") from error


def read_lines(path: Path) -> list[bytes]:
    """Lines of a JSON-lines file; DataError names a missing file. Lines may still be anything."""
    try:
        return path.read_bytes().splitlines()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error}") from error


def parse_line(line: bytes) -> object:
    """One line of a JSON-lines file. Raises DataError, also for an absurdly long line."""
    if len(line) > MAX_LINE_BYTES:
        raise DataError(f"a line of {len(line):,} bytes, the limit is {MAX_LINE_BYTES:,}")
    return parse_json(line)


def shown(value: object) -> str:
    """An untrusted value for an error message, cut to a readable length."""
    text = ascii(value) if isinstance(value, (str, int, float, type(None))) else str(type(value))
    return text if len(text) <= 80 else text[:77] + "..."


def _source(picture: Picture) -> Path | BytesIO:
    return picture if isinstance(picture, Path) else BytesIO(picture.read())


def _regions(source: Path | BytesIO, classes: int) -> torch.Tensor:
    labels = open_labels(source)
    if (highest := int(labels.max())) > classes:
        raise ImageError(f"label {highest} is above the {classes} classes")
    return (labels - 1).long()  # uint8: 0, unlabelled, wraps to 255, the ignored class


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")
