"""VQAv2: questions about COCO photographs, ten annotators each, soft scores.

Layout: train2014/, val2014/, test2015/ and vqa/*.json under one root. The answer vocabulary and
the scores follow the released code (datasets.py): answers that are the most common one of at least
nine questions of train and val; a score by how many of the ten annotators gave the answer.
"""

import re
from collections import Counter
from collections.abc import Iterable
from os import PathLike
from pathlib import Path

import torch

from minibeit3.data.records import DataError, Files, OnBad, Record, Records, caption, get, read_json
from minibeit3.data.sample import Sample

FOLDERS = {
    "train": "train2014",
    "val": "val2014",
    "trainable_val": "val2014",
    "rest_val": "val2014",
    "test": "test2015",
    "test-dev": "test2015",
}
QUESTIONS = {"test": "test2015", "test-dev": "test-dev2015"}
SCORES = (0.0, 0.3, 0.6, 0.9)
MIN_COUNT = 9
REST_VAL_IMAGES = 1000

_NUMBERS = "none zero one two three four five six seven eight nine ten"
_NUMBER = {word: str(max(0, i - 1)) for i, word in enumerate(_NUMBERS.split())}
_CONTRACTED = re.findall(
    r"\S+",
    "ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's "
    "how'd how'll how's isn't it'd it'll let's ma'am might've mightn't must've mustn't needn't "
    "o'clock oughtn't shan't she's should've shouldn't somebody'll somebody's someone'd someone'll "
    "someone's something'd something'll that's there'd there're there's they'd they'll they're "
    "they've wasn't we've weren't what'll what're what's what've when's where'd where's where've "
    "who'd who'll who's who've why'll why're why's won't would've wouldn't y'all you'd you'll "
    "you're you've",
)
_CONTRACTION = {word.replace("'", ""): word for word in _CONTRACTED}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'


def load_vqav2(
    root: str | PathLike[str],
    split: str,
    on_bad: OnBad = "raise",
    max_bad: float = 0.01,
    min_count: int = MIN_COUNT,
    rest_val_images: int = REST_VAL_IMAGES,
    seed: int = 0,
) -> Records:
    """One question per sample, grouped by image; split one of `FOLDERS`.

    texts: the question; answers: {answer: score} of the vocabulary (empty in the test splits);
    key "vqav2/<question_id>"; info: image_path, qid, answer_type, question_type.
    Questions of train and val without an answer in the vocabulary are left out, as released.
    rest_val keeps `rest_val_images` images of val drawn with `seed`, trainable_val has the others.
    Departure: images come in the order of the questions file, the released code shuffles them.
    """
    if split not in FOLDERS:
        raise ValueError(f"split {split!r} is none of {list(FOLDERS)}")
    files, folder = Files(Path(root)), FOLDERS[split]
    name = QUESTIONS.get(split, folder)
    questions = _entries(files, f"v2_OpenEnded_mscoco_{name}_questions.json", "questions")
    annotations: dict[int, object] = {}
    vocabulary: dict[str, int] = {}
    if split not in QUESTIONS:
        entries = _entries(files, f"v2_mscoco_{folder}_annotations.json", "annotations")
        annotations = {get(entry, "question_id", int): entry for entry in entries}
        vocabulary = answer_vocabulary(root, min_count)

    def parse(question: object) -> Record | None:
        number, image_id = get(question, "question_id", int), get(question, "image_id", int)
        image_path = f"{folder}/COCO_{folder}_{image_id:012d}.jpg"
        answers: dict[str, float] = {}
        info: dict[str, object] = {"image_path": image_path, "qid": number, "split": split}
        if annotations:
            if number not in annotations:
                raise DataError(f"question {number} has no annotation")
            annotation = annotations[number]
            given = [get(a, "answer", str) for a in get(annotation, "answers", list)]
            answers = soft_scores(given, vocabulary)
            info |= {k: get(annotation, k, str) for k in ("answer_type", "question_type")}
            if not answers:
                return None
        sample = Sample(
            key=f"vqav2/{number}",
            texts=(caption(get(question, "question", str)),),
            answers=answers,
            info=info,
        )
        return Record(sample, files.find(image_path))

    data = Records("vqav2", questions, parse, on_bad, max_bad)
    images = list(dict.fromkeys(record.image for record in data.records))
    place = {image: number for number, image in enumerate(images)}
    data.records.sort(key=lambda record: place[record.image])
    if split in ("trainable_val", "rest_val"):
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).tolist()
        kept = {images[i] for i in order[:rest_val_images]}
        wanted = split == "rest_val"
        data.records = [r for r in data.records if (r.image in kept) == wanted]
    return data


def answer_vocabulary(root: str | PathLike[str], min_count: int = MIN_COUNT) -> dict[str, int]:
    """{answer: label} in order of first use in train, then val; 3,129 answers for full VQAv2.

    Counts the normalised `multiple_choice_answer`. Raises DataError for a broken file.
    """
    files = Files(Path(root))
    counts: Counter[str] = Counter()
    for folder in ("train2014", "val2014"):
        entries = _entries(files, f"v2_mscoco_{folder}_annotations.json", "annotations")
        counts.update(normalise(get(entry, "multiple_choice_answer", str)) for entry in entries)
    kept = [answer for answer, count in counts.items() if count >= min_count]
    return {answer: label for label, answer in enumerate(kept)}


def soft_scores(given: Iterable[str], vocabulary: dict[str, int]) -> dict[str, float]:
    """{answer: score} of ten annotators' answers; .3, .6, .9 for one, two, three, then 1.

    The strings are looked up as they are, without normalising: so does the released code.
    """
    counts = Counter(given)
    return {a: (*SCORES, 1.0)[min(n, 4)] for a, n in counts.items() if a in vocabulary}


def normalise(answer: str) -> str:
    """An answer as the VQA evaluation compares it.

    Punctuation goes (to nothing at a word's edge or beside a number with a comma, else to a
    space), full stops except before a digit, articles; number words become digits; contractions
    get their apostrophe back.
    """
    text = answer
    thousands = re.search(r"\d,\d", answer)
    for sign in _PUNCTUATION:
        at_edge = f"{sign} " in answer or f" {sign}" in answer
        text = text.replace(sign, "" if at_edge or thousands else " ")
    words = re.sub(r"\.(?!\d)", "", text).lower().split()
    words = [_NUMBER.get(word, word) for word in words]
    words = [_CONTRACTION.get(word, word) for word in words if word not in ("a", "an", "the")]
    return " ".join(words)


def _entries(files: Files, name: str, field: str) -> list[object]:
    return get(read_json(files.find(f"vqa/{name}")), field, list)
