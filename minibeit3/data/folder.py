"""Your own pictures: a folder with captions.jsonl, captions.csv, or a .txt beside each picture."""

import csv
from collections import defaultdict
from io import StringIO
from os import PathLike
from pathlib import Path

from minibeit3.data.records import (
    DataError,
    Files,
    OnBad,
    Record,
    Records,
    caption,
    get,
    parse_line,
    read_lines,
)
from minibeit3.data.sample import Sample

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")


def load_folder(
    root: str | PathLike[str], on_bad: OnBad = "raise", max_bad: float = 0.01
) -> Records:
    """Pictures with captions; the first of these that exists says how they are written.

    captions.jsonl: lines {"image": path, "caption": text or list of texts};
    captions.csv: header image,caption, one line per caption, lines of one image joined;
    else `name.txt` beside every `name.jpg`, one caption a line, subfolders included.
    key "folder/<path>"; info: image_path, relative to `root`.
    """
    files = Files(Path(root))
    if (files.root / "captions.jsonl").exists():
        entries = read_lines(files.root / "captions.jsonl")
        return Records("folder", entries, lambda line: _from_line(files, line), on_bad, max_bad)
    if (files.root / "captions.csv").exists():
        rows = list(_csv_captions(files.root / "captions.csv").items())
    else:
        paths = sorted(p for p in files.root.rglob("*") if p.suffix.lower() in SUFFIXES)
        rows = [(path.relative_to(files.root).as_posix(), None) for path in paths]
    if not rows:
        raise DataError(f"no captions and no pictures in {root}")
    return Records("folder", rows, lambda row: _record(files, *row), on_bad, max_bad)


def _from_line(files: Files, line: bytes) -> Record:
    entry = parse_line(line)
    texts = get(entry, "caption", object)
    return _record(files, get(entry, "image", str), texts if isinstance(texts, list) else [texts])


def _record(files: Files, name: str, texts: list[object] | None) -> Record:
    path = files.find(name)
    if texts is None:
        try:
            lines = path.with_suffix(".txt").read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"caption of {name!r}: {error}") from error
        texts = [line for line in lines if line.strip()]
    if not texts:
        raise DataError(f"{name!r} has no caption")
    key, info = f"folder/{Path(name).with_suffix('').as_posix()}", {"image_path": name}
    return Record(Sample(key=key, texts=tuple(map(caption, texts)), info=info), path)


def _csv_captions(path: Path) -> dict[str, list[object]]:
    captions: dict[str, list[object]] = defaultdict(list)
    try:
        table = csv.DictReader(StringIO(path.read_text(encoding="utf-8-sig"), newline=""))
        if not {"image", "caption"} <= set(table.fieldnames or ()):
            raise DataError(f"{path}: header {table.fieldnames}, expected image,caption")
        for row in table:
            captions[row["image"] or ""].append(row["caption"])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    return captions
