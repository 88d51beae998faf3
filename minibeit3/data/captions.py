"""Captioned photographs: COCO and Flickr30k in Karpathy's split files, and NoCaps.

Layouts: `dataset_coco.json` beside train2014/ and val2014/; `dataset_flickr30k.json` beside
flickr30k-images/; `nocaps_val_4500_captions.json` and `nocaps_test_image_info.json` beside val/
and test/. Paths and splits as in the released code (datasets.py).
"""

from collections import defaultdict
from os import PathLike
from pathlib import Path

from minibeit3.data.records import DataError, Files, OnBad, Record, Records, caption, get, read_json
from minibeit3.data.sample import Sample

SPLITS = {"train": ("train", "restval"), "val": ("val",), "test": ("test",)}
NOCAPS_FILES = {"val": "nocaps_val_4500_captions.json", "test": "nocaps_test_image_info.json"}


def load_coco(
    root: str | PathLike[str], split: str, on_bad: OnBad = "raise", max_bad: float = 0.01
) -> Records:
    """COCO captions; split "train" is Karpathy's train and restval together, else "val", "test".

    key "coco/<cocoid>", about five texts, info: image_path, image_id (the COCO number), split.
    """
    return _karpathy("coco", Path(root), split, on_bad, max_bad)


def load_flickr30k(
    root: str | PathLike[str], split: str, on_bad: OnBad = "raise", max_bad: float = 0.01
) -> Records:
    """Flickr30k captions, split "train", "val" or "test"; info: image_path, image_id, split.

    key "flickr30k/<file stem>"; the file has no image numbers, so image_id is its `imgid`.
    """
    return _karpathy("flickr30k", Path(root), split, on_bad, max_bad)


def load_nocaps(
    root: str | PathLike[str], split: str, on_bad: OnBad = "raise", max_bad: float = 0.01
) -> Records:
    """NoCaps, split "val" (with its captions) or "test" (without); info: image_path, image_id."""
    if split not in NOCAPS_FILES:
        raise ValueError(f"split {split!r} is none of {list(NOCAPS_FILES)}")
    files = Files(Path(root))
    path = files.root / NOCAPS_FILES[split]
    table = read_json(path)
    texts: dict[int, list[object]] = defaultdict(list)
    if split == "val":
        for entry in get(table, "annotations", list):
            texts[get(entry, "image_id", int)].append(get(entry, "caption", object))

    def parse(entry: object) -> Record:
        number, image_path = get(entry, "id", int), f"{split}/{get(entry, 'file_name', str)}"
        sample = Sample(
            key=f"nocaps/{number}",
            texts=tuple(caption(text) for text in texts[number]),
            info={"image_path": image_path, "image_id": number, "split": split},
        )
        return Record(sample, files.find(image_path))

    return Records("nocaps", get(table, "images", list), parse, on_bad, max_bad)


def _karpathy(name: str, root: Path, split: str, on_bad: OnBad, max_bad: float) -> Records:
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is none of {list(SPLITS)}")
    files = Files(root)
    table = read_json(root / f"dataset_{name}.json")

    def parse(entry: object) -> Record | None:
        part = get(entry, "split", str)
        if part not in ("train", "restval", "val", "test"):
            raise DataError(f"unknown split {part!r}")
        if part not in SPLITS[split]:
            return None
        file_name = get(entry, "filename", str)
        folder = get(entry, "filepath", str) if name == "coco" else "flickr30k-images"
        image_id = get(entry, "cocoid" if name == "coco" else "imgid", int)
        image_path = f"{folder}/{file_name}"
        sample = Sample(
            key=f"{name}/{image_id if name == 'coco' else Path(file_name).stem}",
            texts=tuple(caption(get(s, "raw", str)) for s in get(entry, "sentences", list)),
            info={"image_path": image_path, "image_id": image_id, "split": part},
        )
        return Record(sample, files.find(image_path))

    return Records(name, get(table, "images", list), parse, on_bad, max_bad)
