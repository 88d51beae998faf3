"""The released code's index files, read and written, so that data can move both ways.

One JSON object a line, pictures by relative path, `text_segment` = token ids without `<s>` and
`</s>` (released file: unilm/beit3/datasets.py). Keys by task:
coco_retrieval, flickr30k: image_path, text_segment, image_id (running number of the image);
coco_captioning, nocaps: image_path, text_segment (null outside train), image_id (the set's own);
vqav2: image_path, text_segment, labels, scores, qid, and answer2label.txt;
nlvr2: image_path, image2_path, text_segment, label, identifier; imagenet: image_path, label.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from minibeit3.data.captions import load_coco, load_flickr30k, load_nocaps
from minibeit3.data.class_folders import load_imagenet
from minibeit3.data.nlvr2 import load_nlvr2
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
from minibeit3.data.vqav2 import FOLDERS, answer_vocabulary, load_vqav2
from minibeit3.text_tokenizer import TextTokenizer

Row = dict[str, Any]
Loader = Callable[..., Records]

ANSWERS = "answer2label.txt"
CAPTION_SPLITS = ("train", "val", "test")
FILES: dict[str, tuple[Loader, tuple[str, ...], str]] = {
    "coco_retrieval": (load_coco, CAPTION_SPLITS, "coco_retrieval.{}.jsonl"),
    "flickr30k": (load_flickr30k, CAPTION_SPLITS, "flickr30k.{}.jsonl"),
    "coco_captioning": (load_coco, CAPTION_SPLITS, "coco_captioning.{}.jsonl"),
    "nocaps": (load_nocaps, ("val", "test"), "nocaps.{}.jsonl"),
    "vqav2": (load_vqav2, tuple(FOLDERS), "vqa.{}.jsonl"),
    "nlvr2": (load_nlvr2, ("train", "dev", "test-P"), "nlvr2.{}.index.jsonl"),
    "imagenet": (load_imagenet, ("train", "val"), "imagenet.{}.index.jsonl"),
}
"""task: its adapter, its splits, the name of their index files."""


def make_index(
    task: str,
    root: str | PathLike[str],
    out: str | PathLike[str],
    tokenizer: TextTokenizer,
    on_bad: OnBad = "raise",
    max_bad: float = 0.01,
) -> dict[str, Records]:
    """Write all index files of `task` for the raw data in `root` into the folder `out`.

    Returns the data by split, so that `skipped` can be looked at. Texts are written as the raw
    ones with whitespace normalised. Raises ValueError for an unknown task, DataError for the data.
    """
    if task not in FILES:
        raise ValueError(f"task {task!r} is none of {list(FILES)}")
    load, splits, name = FILES[task]
    vocabulary = answer_vocabulary(root) if task == "vqav2" else {}
    data = {split: load(root, split, on_bad=on_bad, max_bad=max_bad) for split in splits}
    for split, records in data.items():
        rows = index_rows(task, split, records, tokenizer, vocabulary)
        write_lines(Path(out) / name.format(split), rows)
    if vocabulary:
        pairs = [{"answer": answer, "label": label} for answer, label in vocabulary.items()]
        write_lines(Path(out) / ANSWERS, pairs)
    return data


def index_rows(
    task: str,
    split: str,
    data: Records,
    tokenizer: TextTokenizer,
    vocabulary: Mapping[str, int] | None = None,
) -> Iterator[Row]:
    """The rows of one index file; `vocabulary` {answer: label} is for vqav2 alone."""
    vocabulary = vocabulary or {}
    for number, record in enumerate(data.records):
        sample, info = record.sample, record.sample.info
        place = {"image_path": info["image_path"]}
        segments = [{**place, "text_segment": tokenizer.token_ids(text)} for text in sample.texts]
        if task in ("coco_retrieval", "flickr30k"):
            yield from ({**row, "image_id": number} for row in segments)
        elif task in ("coco_captioning", "nocaps"):
            rows = segments if split == "train" else [{**place, "text_segment": None}]
            yield from ({**row, "image_id": info["image_id"]} for row in rows)
        elif task == "vqav2":
            labels = [vocabulary[answer] for answer in sample.answers]
            scores = list(sample.answers.values())
            yield {**segments[0], "labels": labels, "scores": scores, "qid": info["qid"]}
        elif task == "nlvr2":
            yield {
                "image_path": info["image_path"],
                "image2_path": info["image2_path"],
                "text_segment": segments[0]["text_segment"],
                "label": sample.label,
                "identifier": info["identifier"],
            }
        else:
            yield {**place, "label": sample.label}


def write_lines(path: Path, rows: Iterable[Row]) -> None:
    """One JSON object a line, complete or not there at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    unfinished.replace(path)


def load_index(
    path: str | PathLike[str],
    tokenizer: TextTokenizer,
    root: str | PathLike[str] | None = None,
    on_bad: OnBad = "raise",
    max_bad: float = 0.01,
) -> Records:
    """Any index file above as samples; pictures below `root`, by default the index's own folder.

    texts: the decoded ids (what the tokenizer kept of the words); info: the row, so text_segment
    holds the exact ids. answers: by answer2label.txt beside the index. key "<file stem>/<line>".
    """
    path = Path(path)
    files = Files(Path(root) if root is not None else path.parent)
    lines = list(enumerate(read_lines(path)))
    known = path.with_name(ANSWERS)
    answers = _answers(known) if known.exists() else []

    def parse(numbered: tuple[int, bytes]) -> Record:
        number, line = numbered
        row = parse_line(line)
        image = files.find(get(row, "image_path", str))
        if not isinstance(row, dict):
            raise DataError(f"expected a JSON object, got {shown(row)}")
        other = files.find(get(row, "image2_path", str)) if "image2_path" in row else None
        sample = Sample(
            key=f"{path.stem}/{number}",
            texts=_texts(row.get("text_segment"), tokenizer),
            label=get(row, "label", int) if "label" in row else None,
            answers=_scores(row, answers) if "labels" in row else {},
            info=row,
        )
        return Record(sample, image, other)

    return Records(path.stem, lines, parse, on_bad, max_bad)


def _texts(segment: object, tokenizer: TextTokenizer) -> tuple[str, ...]:
    if segment is None:
        return ()
    if isinstance(segment, str):
        return (caption(segment),)
    if not isinstance(segment, list) or not segment or not all(type(i) is int for i in segment):
        raise DataError(f"text_segment is {shown(segment)}, expected token ids, text or null")
    try:
        return (tokenizer.decode(segment),)
    except ValueError as error:
        raise DataError(f"text_segment of another tokenizer: {error}") from error


def _scores(row: Row, answers: list[str]) -> dict[str, float]:
    labels, scores = get(row, "labels", list), get(row, "scores", list)
    fits = len(labels) == len(scores) and all(
        type(label) is int and 0 <= label < len(answers) for label in labels
    )
    if not fits or not all(type(s) in (int, float) and 0 <= s <= 1 for s in scores):
        raise DataError(f"labels and scores do not fit the {len(answers)} answers of {ANSWERS}")
    return {answers[label]: float(score) for label, score in zip(labels, scores, strict=True)}


def _answers(path: Path) -> list[str]:
    rows = [parse_line(line) for line in read_lines(path)]
    if [get(row, "label", int) for row in rows] != list(range(len(rows))):
        raise DataError(f"{path}: labels are not 0, 1, 2, ... in order")
    return [get(row, "answer", str) for row in rows]
