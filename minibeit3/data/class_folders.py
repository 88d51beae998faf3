"""ImageNet and ADE20K: labels that lie in the folder tree."""

import os
from collections.abc import Iterator
from os import PathLike
from pathlib import Path

from minibeit3.data.records import DataError, Files, OnBad, Record, Records
from minibeit3.data.sample import Sample

ADE20K_CLASSES = 150


def load_imagenet(
    root: str | PathLike[str], split: str, on_bad: OnBad = "raise", max_bad: float = 0.01
) -> Records:
    """`<split>/<wnid>/*.JPEG`; label = place of the wnid among the sorted folders of train/.

    key "imagenet/<split>/<wnid>/<stem>"; info: image_path, wnid. File names are not checked, as
    in the released code; `verify` finds what is no picture. Hidden files are left out.
    """
    root = Files(Path(root)).root
    wnids = sorted(path.name for path in Files(root / "train").root.iterdir() if path.is_dir())
    labels = {wnid: label for label, wnid in enumerate(wnids)}

    def parse(path: Path) -> Record:
        image_path = path.relative_to(root).as_posix()
        wnid = path.relative_to(root / split).parts[0]
        if wnid not in labels:
            raise DataError(f"{image_path}: {wnid!r} is no folder of train")
        sample = Sample(
            key=f"imagenet/{path.relative_to(root).with_suffix('').as_posix()}",
            label=labels[wnid],
            info={"image_path": image_path, "wnid": wnid},
        )
        return Record(sample, path)

    paths = _files_below(Files(root / split).root)
    return Records("imagenet", paths, parse, on_bad, max_bad)


def load_ade20k(
    root: str | PathLike[str], split: str, on_bad: OnBad = "raise", max_bad: float = 0.01
) -> Records:
    """`images/<split>/*.jpg` with `annotations/<split>/*.png`, split "training" | "validation".

    regions: class 0 .. 149 of every pixel, 255 = ignored (the file's 0, unlabelled; its classes
    start at 1). key "ade20k/<stem>".
    """
    files = Files(Path(root))

    def parse(path: Path) -> Record:
        image_path = f"images/{split}/{path.name}"
        annotation = f"annotations/{split}/{path.stem}.png"
        sample = Sample(
            key=f"ade20k/{path.stem}",
            info={"image_path": image_path, "annotation_path": annotation, "split": split},
        )
        regions = files.find(annotation)
        return Record(sample, path, regions=regions, classes=ADE20K_CLASSES)

    paths = _files_below(Files(files.root / "images" / split).root)
    return Records("ade20k", paths, parse, on_bad, max_bad)


def _files_below(folder: Path) -> Iterator[Path]:
    for where, _, names in sorted(os.walk(folder)):
        yield from (Path(where) / name for name in sorted(names) if not name.startswith("."))
