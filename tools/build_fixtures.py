"""Draw data_samples/fixtures: tiny stand-ins in exactly the layouts of the public data sets.

Usage: python tools/build_fixtures.py [FOLDER]. Deterministic; every picture and caption is ours.
"""

import argparse
import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

HERE = Path(__file__).resolve().parents[1] / "data_samples" / "fixtures"
COLOURS = {"red": "#d22", "green": "#2a2", "blue": "#23d", "yellow": "#ec1", "purple": "#82a"}
SHAPES = ("circle", "square", "triangle")
SIZE = (40, 32)


def look(number: int) -> tuple[str, str]:
    """Colour and shape of picture `number`."""
    return list(COLOURS)[number % 5], SHAPES[number % 3]


def draw(number: int) -> Image.Image:
    """One shape on a light ground, its place and size varied by `number`."""
    colour, shape = look(number)
    picture = Image.new("RGB", SIZE, ("#eee", "#dde", "#eed")[number % 3])
    x, y, r = 12 + 5 * (number % 4), 12 + 4 * (number % 3), 7 + number % 3
    pen, box = ImageDraw.Draw(picture), (x - r, y - r, x + r, y + r)
    if shape == "circle":
        pen.ellipse(box, fill=COLOURS[colour])
    elif shape == "square":
        pen.rectangle(box, fill=COLOURS[colour])
    else:
        pen.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill=COLOURS[colour])
    return picture


def captions(number: int) -> list[str]:
    """Five captions, as COCO and Flickr30k have them."""
    colour, shape = look(number)
    return [
        f"A {colour} {shape}.",
        f"a {shape} that is {colour}",
        f"A picture of one {colour} {shape} on a light ground.",
        f"There is a single {shape} here.",
        f"Something {colour}, namely a {shape}",
    ]


def jpeg(number: int) -> bytes:
    """The picture as a small JPEG file."""
    out = io.BytesIO()
    draw(number).save(out, "JPEG", quality=75)
    return out.getvalue()


def put(path: Path, number: int) -> None:
    """Write picture `number`, in the format that the name asks for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".png":
        draw(number).quantize(16).save(path, optimize=True)
    else:
        path.write_bytes(jpeg(number))


def dump(path: Path, data: object) -> None:
    """Write one JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data) + "\n", encoding="utf-8")


def dump_lines(path: Path, rows: Iterable[object]) -> None:
    """Write one JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def karpathy(root: Path, name: str) -> None:
    """COCO or Flickr30k: all four splits, five captions each."""
    splits = (
        ["train"] * 4 + (["restval"] * 2 if name == "coco" else []) + ["val"] * 2 + ["test"] * 2
    )
    images, sentence = [], 0
    for number, split in enumerate(splits):
        ids = list(range(sentence, sentence := sentence + 5))
        entry: dict[str, object] = {"sentids": ids, "imgid": number, "split": split}
        if name == "coco":
            folder, cocoid = ("train2014" if split == "train" else "val2014"), 57870 + 1013 * number
            file_name = f"COCO_{folder}_{cocoid:012d}.jpg"
            entry |= {"filepath": folder, "filename": file_name, "cocoid": cocoid}
        else:
            folder, file_name = "flickr30k-images", f"{1000092795 + 1013 * number}.jpg"
            entry |= {"filename": file_name}
        entry["sentences"] = [
            {"tokens": raw.lower().strip(".").split(), "raw": raw, "imgid": number, "sentid": i}
            for i, raw in zip(ids, captions(number), strict=True)
        ]
        images.append(entry)
        put(root / folder / file_name, number)
    dump(root / f"dataset_{name}.json", {"dataset": name, "images": images})


def nocaps(root: Path) -> None:
    """Three validation pictures with captions, three test pictures without."""
    for split, file_name, first in (
        ("val", "nocaps_val_4500_captions.json", 0),
        ("test", "nocaps_test_image_info.json", 3),
    ):
        images = [{"id": i, "file_name": f"{i:016x}.jpg"} for i in range(first, first + 3)]
        table: dict[str, object] = {"images": images}
        if split == "val":
            table["annotations"] = [
                {"id": 5 * i + k, "image_id": i, "caption": text}
                for i in range(first, first + 3)
                for k, text in enumerate(captions(i))
            ]
        for image in images:
            put(root / split / str(image["file_name"]), int(image["id"]))
        dump(root / file_name, table)


def vqav2(root: Path) -> None:
    """Six training, four validation, three test pictures; answers of more and less agreement.

    "yes", "no" and "1" are frequent enough for the vocabulary, colours and "unicorn" are not.
    """
    first = 0
    for name, folder, count in (
        ("train2014", "train2014", 6),
        ("val2014", "val2014", 4),
        ("test2015", "test2015", 3),
        ("test-dev2015", "test2015", 2),
    ):
        if name == "test-dev2015":
            first -= 3  # the same pictures, fewer of them
        questions, annotations = [], []
        for number in range(first, first + count):
            colour, shape = look(number)
            image_id = 139 + 146 * number
            put(root / folder / f"COCO_{folder}_{image_id:012d}.jpg", number)
            other = SHAPES[(number + 1) % 3]
            doubt = 1 + number % 4
            asked = [
                (f"Is there a {shape}?", "yes", "yes", ["no"] * (doubt - 1), "yes/no"),
                (f"Is there a {other}?", "no", "no", ["yes"] * doubt, "yes/no"),
                ("How many shapes are there?", "one", "1", ["one", "2"], "number"),
                ("What color is the shape?", colour, colour, ["dark"], "other"),
            ]
            if number == 1:
                asked.append(("What animal is this?", "unicorn", "unicorn", ["none"] * 4, "other"))
            for k, (question, common, given, others, kind) in enumerate(asked):
                qid = 1000 * image_id + k
                questions.append({"image_id": image_id, "question": question, "question_id": qid})
                answers = [given] * (10 - len(others)) + others
                annotations.append(
                    {
                        "question_type": " ".join(question.lower().split()[:2]),
                        "multiple_choice_answer": common,
                        "answers": [
                            {"answer": a, "answer_confidence": "yes", "answer_id": i + 1}
                            for i, a in enumerate(answers)
                        ],
                        "image_id": image_id,
                        "answer_type": kind,
                        "question_id": qid,
                    }
                )
        first += count
        about = {"info": {}, "task_type": "Open-Ended", "data_type": "mscoco", "license": {}}
        about["data_subtype"] = name
        table = {**about, "questions": questions}
        dump(root / f"vqa/v2_OpenEnded_mscoco_{name}_questions.json", table)
        if "test" not in name:
            table = {**about, "annotations": annotations}
            dump(root / f"vqa/v2_mscoco_{name}_annotations.json", table)


def nlvr2(root: Path) -> None:
    """Per split one set: two pairs, two sentences about each."""
    for k, (name, prefix) in enumerate(
        (("train", "images/train"), ("dev", "dev"), ("test1", "test1"))
    ):
        rows = []
        directory = 7 if name == "train" else None
        folder = root / prefix / (str(directory) if directory is not None else "")
        for pair in range(2):
            for side in range(2):
                put(folder / f"{name}-{10 + k}-{pair}-img{side}.png", 4 * k + 2 * pair + side)
            shapes = [look(4 * k + 2 * pair + side)[1] for side in range(2)]
            for sentence in range(2):
                wanted = SHAPES[sentence]
                row = {
                    "sentence": f"One of the images shows a {wanted}.",
                    "left_url": "",
                    "right_url": "",
                    "label": str(wanted in shapes),
                    "identifier": f"{name}-{10 + k}-{pair}-{sentence}",
                    "writer": 0,
                    "validation": {},
                    "synset": "shape",
                    "query": "shapes0",
                }
                rows.append(row | ({"directory": directory} if directory is not None else {}))
        dump_lines(root / f"nlvr/nlvr2/data/{name}.json", rows)


def imagenet(root: Path) -> None:
    """Three synsets, two training pictures and one validation picture each."""
    for k, wnid in enumerate(("n01440764", "n02123045", "n07920052")):
        for i in range(2):
            put(root / "train" / wnid / f"{wnid}_{10026 + i}.JPEG", 3 * i + k)
        put(root / "val" / wnid / f"ILSVRC2012_val_{293 + k:08d}.JPEG", 6 + k)


def ade20k(root: Path) -> None:
    """Pictures with class maps; the last training one has unlabelled pixels (0)."""
    for split, short, count in (("training", "train", 4), ("validation", "val", 2)):
        for i in range(1, count + 1):
            stem = f"ADE_{short}_{i:08d}"
            put(root / "images" / split / f"{stem}.jpg", i)
            ground = np.asarray(draw(i).convert("L")) > 200
            labels = np.where(ground, 0 if i == 4 else 3, 149 + i % 2).astype(np.uint8)
            path = root / "annotations" / split / f"{stem}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(labels).save(path, optimize=True)


def cc3m(root: Path) -> None:
    """One img2dataset shard: sample 2 failed to download, sample 3's caption has a newline."""
    root.mkdir(parents=True, exist_ok=True)
    with tarfile.open(root / "00000.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for number in range(6):
            key, data, failed = f"{number:09d}", jpeg(number), number == 2
            text = captions(number)[0] if number != 3 else "a purple circle\nsecond line"
            info = {
                "caption": text,
                "url": f"https://example.org/{number}.jpg",
                "key": key,
                "status": "failed_to_download" if failed else "success",
                "error_message": "HTTP Error 404: Not Found" if failed else None,
                "width": None if failed else SIZE[0],
                "height": None if failed else SIZE[1],
                "original_width": None if failed else SIZE[0],
                "original_height": None if failed else SIZE[1],
                "exif": "{}",
                "sha256": None if failed else hashlib.sha256(data).hexdigest(),
            }
            members = {"jpg": data, "json": json.dumps(info).encode(), "txt": text.encode()}
            for kind, body in members.items():
                if not (failed and kind == "jpg"):
                    entry = tarfile.TarInfo(f"{key}.{kind}")
                    entry.size = len(body)
                    tar.addfile(entry, io.BytesIO(body))
    dump(root / "00000_stats.json", {"count": 6, "successes": 5, "failed_to_download": 1})


def folders(root: Path) -> None:
    """The three ways to caption one's own pictures."""
    for i in range(3):
        put(root / "jsonl" / "pictures" / f"{i}.png", i)
        put(root / "csv" / f"{i}.jpg", i)
        put(root / "txt" / "sub" / f"{i}.jpg", i)
        text = "\n".join(captions(i)[:2]) + "\n"
        (root / "txt" / "sub" / f"{i}.txt").write_text(text, encoding="utf-8")
    rows = [{"image": f"pictures/{i}.png", "caption": captions(i)[: 1 + i]} for i in range(2)]
    rows.append({"image": "pictures/2.png", "caption": "<b>one</b> caption"})  # type: ignore[dict-item]
    dump_lines(root / "jsonl" / "captions.jsonl", rows)
    lines = [f'{i}.jpg,"{text}"' for i in range(3) for text in captions(i)[:2]]
    (root / "csv" / "captions.csv").write_text("\n".join(["image,caption", *lines]) + "\n")


def build(root: Path) -> None:
    """Everything, into an emptied `root`."""
    shutil.rmtree(root, ignore_errors=True)
    karpathy(root / "coco", "coco")
    karpathy(root / "flickr30k", "flickr30k")
    nocaps(root / "nocaps")
    vqav2(root / "vqav2")
    nlvr2(root / "nlvr2")
    imagenet(root / "imagenet")
    ade20k(root / "ade20k")
    cc3m(root / "cc3m")
    folders(root / "folder")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=HERE)
    build(parser.parse_args().folder)
