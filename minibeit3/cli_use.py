"""minibeit3 caption, vqa, classify, retrieve, embed: use a model on one's own images."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minibeit3.cli import (
    Device,
    Heads,
    Images,
    Json,
    LabelsPath,
    ModelPath,
    Opened,
    TokenizerPath,
    Top,
    command,
    image_files,
    open_model,
    per_image,
    show,
)

if TYPE_CHECKING:
    from torch import Tensor


def ranking(opened: Opened, scores: "Tensor", top: int) -> list[list[tuple[str, float]]]:
    """The `top` best labels of each row of scores (B, classes), with their scores."""
    if top < 1:
        raise ValueError(f"--top {top}: at least 1")
    if opened.labels is not None and len(opened.labels) != scores.shape[1]:
        raise ValueError(f"{len(opened.labels)} labels for {scores.shape[1]} classes: give others")
    best = scores.topk(min(top, scores.shape[1]), dim=1)
    return [
        [(opened.label(i), round(s, 4)) for i, s in zip(ids, values, strict=True)]
        for ids, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def one_right_answer(model: Path) -> bool:
    """True = the model's notes name a recipe whose questions have one right answer each."""
    from minibeit3.finetune import NOTES
    from minibeit3.storage import read_json

    notes = read_json(model / NOTES) if (model / NOTES).is_file() else {}
    return notes.get("recipe", "vqav2") != "vqav2"  # people disagree in VQAv2 alone


def failed(file: Path, error: Exception) -> dict[str, Any]:
    """The row of an image that could not be used."""
    return {"image": str(file), "error": str(error)}


@command
def caption(
    images: Images,
    model: ModelPath,
    tokenizer: TokenizerPath = None,
    beams: Annotated[int, typer.Option(help="1 is greedy.")] = 3,
    max_length: Annotated[int, typer.Option(help="Tokens, specials included.")] = 32,
    length_penalty: Annotated[float, typer.Option(help="Above 0 favours long captions.")] = 0.6,
    heads: Heads = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Describe images (captioning models)."""
    from minibeit3.modes import ImageCaptioner

    files = image_files(images)
    opened = open_model(model, device, ("captioning",), tokenizer, heads=heads)
    captioner, words = opened.model, opened.tokenizer
    assert isinstance(captioner, ImageCaptioner)
    if words is None:
        raise ValueError(f"{model} has no text tokenizer: give --tokenizer beit3.spm")
    bias = captioner.mlm_head.bias
    spare = [i for i in range(len(bias)) if i >= len(words) or words.piece(i) == "<unused>"]
    bias.data[spare] = float("-inf")  # rows of the head that stand for no text

    def describe(batch: "Tensor") -> list[str]:
        return [
            words.decode(ids)
            for ids in captioner.generate(batch, max_length, beams, length_penalty)
        ]

    rows = [
        failed(file, found)
        if isinstance(found, Exception)
        else {"image": str(file), "caption": found}
        for file, found in per_image(files, opened, describe)
    ]
    show(rows, as_json)


@command
def vqa(
    image: Annotated[str, typer.Argument(help="Image file.")],
    question: Annotated[str, typer.Argument(help="A question about it.")],
    model: ModelPath,
    tokenizer: TokenizerPath = None,
    labels: LabelsPath = None,
    top: Top = 5,
    heads: Heads = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Answer a question about an image (VQA models).

    A score is the answer's probability among all where the model was trained with one right answer
    for each question, else how right the answer is by itself, as in the released model.
    """
    from minibeit3.modes import ClozeAnswerer, VisualQuestionAnswerer

    opened = open_model(model, device, ("vqa", "vqa_cloze"), tokenizer, labels, heads)
    answerer, text = opened.model, opened.words([question])
    assert isinstance(answerer, VisualQuestionAnswerer | ClozeAnswerer)
    one_is_right = one_right_answer(model)

    def answer(batch: "Tensor") -> list[list[tuple[str, float]]]:
        logits = answerer(batch, *text)
        return ranking(opened, logits.softmax(dim=1) if one_is_right else logits.sigmoid(), top)

    for file, found in per_image([Path(image)], opened, answer):
        if isinstance(found, Exception):
            raise found
        show([{"image": str(file), "answer": label, "score": s} for label, s in found], as_json)


@command
def classify(
    images: Images,
    model: ModelPath,
    labels: LabelsPath = None,
    top: Top = 5,
    heads: Heads = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Classify images (image classification models)."""
    from minibeit3.modes import ImageClassifier

    files = image_files(images)
    opened = open_model(model, device, ("image_classification",), None, labels, heads)
    classifier = opened.model
    assert isinstance(classifier, ImageClassifier)

    def best(batch: "Tensor") -> list[list[tuple[str, float]]]:
        return ranking(opened, classifier(batch).softmax(dim=1), top)

    rows: list[dict[str, Any]] = []
    for file, found in per_image(files, opened, best):
        if isinstance(found, Exception):
            rows.append(failed(file, found))
        else:
            rows += [{"image": str(file), "class": name, "probability": p} for name, p in found]
    show(rows, as_json)


@command
def retrieve(
    images: Images,
    model: ModelPath,
    text: Annotated[list[str], typer.Option("--text", "-t", help="Text; may be repeated.")],
    tokenizer: TokenizerPath = None,
    top: Top = 5,
    heads: Heads = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Rank images for each text, or the texts for a single image (retrieval models)."""
    import torch

    from minibeit3.modes import ImageTextRetriever

    files = image_files(images)
    opened = open_model(model, device, ("retrieval",), tokenizer, heads=heads)
    retriever = opened.model
    assert isinstance(retriever, ImageTextRetriever)
    if top < 1:
        raise ValueError(f"--top {top}: at least 1")
    with torch.inference_mode():
        texts = retriever.embed_text(*opened.words(text))
    found = list(per_image(files, opened, lambda batch: list(retriever.embed_image(batch))))
    vectors = {file: vector for file, vector in found if not isinstance(vector, Exception)}
    rows = [failed(file, error) for file, error in found if isinstance(error, Exception)]
    if vectors:
        scores = texts @ torch.stack(list(vectors.values())).T  # (texts, images)
        pairs = [
            {"text": words, "image": str(file), "similarity": round(float(scores[t, i]), 4)}
            for t, words in enumerate(text)
            for i, file in enumerate(vectors)
        ]
        groups = [pairs[i : i + len(vectors)] for i in range(0, len(pairs), len(vectors))]
        for group in [pairs] if len(vectors) == 1 else groups:
            rows += sorted(group, key=lambda row: -row["similarity"])[:top]
    show(rows, as_json)


@command
def embed(
    images: Images,
    model: ModelPath,
    out: Annotated[Path, typer.Option("--out", "-o", help="A .npy or .json file to write.")],
    text: Annotated[list[str] | None, typer.Option("--text", "-t", help="Also this text.")] = None,
    tokenizer: TokenizerPath = None,
    heads: Heads = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Write one vector per image and text: unit vectors of retrieval models, else the [CLS]."""
    from io import BytesIO

    import numpy as np
    import torch

    from minibeit3.checkpoint import backbone_of
    from minibeit3.modes import ImageTextRetriever
    from minibeit3.storage import write_file

    if out.suffix not in (".npy", ".json"):
        raise ValueError(f"--out {out}: a .npy or .json file")
    files = image_files(images)
    opened = open_model(model, device, (), tokenizer, heads=heads)
    network, backbone = opened.model, backbone_of(opened.model)

    def look(batch: "Tensor") -> list["Tensor"]:
        if isinstance(network, ImageTextRetriever):
            return list(network.embed_image(batch))
        return list(backbone(batch).image[:, 0])

    found = list(per_image(files, opened, look))
    rows = [failed(file, error) for file, error in found if isinstance(error, Exception)]
    named = [(str(file), v) for file, v in found if not isinstance(v, Exception)]
    if text:
        ids, real = opened.words(text)
        with torch.inference_mode():
            if isinstance(network, ImageTextRetriever):
                vectors = network.embed_text(ids, real)
            else:
                vectors = backbone(text=ids, text_real=real).text[:, 0]
        named += zip(text, vectors, strict=True)
    if named:
        matrix = torch.stack([vector for _, vector in named]).float().cpu()
        if out.suffix == ".npy":
            buffer = BytesIO()
            np.save(buffer, matrix.numpy(), allow_pickle=False)
            write_file(out, buffer.getvalue())
        else:
            pairs = zip(named, matrix.tolist(), strict=True)
            listed = [{"source": name, "vector": vector} for (name, _), vector in pairs]
            write_file(out, json.dumps(listed).encode())
        rows = [{"row": i, "source": name} for i, (name, _) in enumerate(named)] + rows
    show(rows, as_json)
