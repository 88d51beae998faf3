"""NLVR2: is a sentence true of a pair of photographs?

Layout: images/train/<directory>/, dev/ and test1/ under one root, the sentences in
nlvr/nlvr2/data/{train,dev,test1}.json (a clone of lil-lab/nlvr). Paths as in the released code.
"""

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
    shown,
)
from minibeit3.data.sample import Sample

PARTS = {"train": ("train", "images/train"), "dev": ("dev", "dev"), "test-P": ("test1", "test1")}
LABELS = {"False": 0, "True": 1}


def load_nlvr2(
    root: str | PathLike[str], split: str, on_bad: OnBad = "raise", max_bad: float = 0.01
) -> Records:
    """One sentence with image (left) and image_b (right); label 1 = true; split one of `PARTS`.

    key "nlvr2/<identifier>"; info: image_path, image2_path, identifier, set_id. A set's pairs
    share their sentences: make any further split by set_id, never by row.
    """
    if split not in PARTS:
        raise ValueError(f"split {split!r} is none of {list(PARTS)}")
    files = Files(Path(root))
    file_name, prefix = PARTS[split]

    def parse(line: bytes) -> Record:
        entry = parse_line(line)
        identifier, label = get(entry, "identifier", str), get(entry, "label", str)
        if label not in LABELS or identifier.count("-") != 3:
            raise DataError(f"label {shown(label)}, identifier {shown(identifier)}: not NLVR2")
        folder = prefix
        if isinstance(entry, dict) and "directory" in entry:
            folder = f"{prefix}/{get(entry, 'directory', int)}"
        pair = f"{folder}/{identifier.rpartition('-')[0]}"
        left, right = f"{pair}-img0.png", f"{pair}-img1.png"
        sample = Sample(
            key=f"nlvr2/{identifier}",
            texts=(caption(get(entry, "sentence", str)),),
            label=LABELS[label],
            info={
                "image_path": left,
                "image2_path": right,
                "identifier": identifier,
                "set_id": identifier.rsplit("-", 2)[0],
            },
        )
        return Record(sample, files.find(left), files.find(right))

    lines = read_lines(files.root / f"nlvr/nlvr2/data/{file_name}.json")
    return Records("nlvr2", lines, parse, on_bad, max_bad)
