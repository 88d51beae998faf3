"""Fusion encoder: visual questions, statements about two pictures, binding."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, zeros

from minibeit3.data.sample import Sample
from minibeit3.data.scene_questions import ANSWERS, COUNTS, YES_NO
from minibeit3.data.scene_splits import EMOJI_ONLY, SHAPES_ONLY
from minibeit3.data.scene_vqa import SceneVQA
from minibeit3.data.scenes import SIZES
from minibeit3.modes import VisualQuestionAnswerer
from minibeit3.recipe import SCENES, Figures, Recipe, Setup, by_kind, first, in_batches
from minibeit3.references import majority, words_only
from minibeit3.train import TrainConfig

PLAN = TrainConfig(
    steps=2000, batch_size=48, lr=1e-3, warmup=200, layer_decay=0.9, save_every=500, log_every=20
)
BLIND = ("image", "text")
REFERENCE_TRAINING = 5000


class Questions(NamedTuple):
    """image float (B, 3, S, S); text int64 (B, T); real bool (B, T); scores float (B, answers)."""

    image: Tensor
    text: Tensor
    real: Tensor
    scores: Tensor


def scenes_vqa(setup: Setup) -> Recipe:
    """Questions about scenes of shapes, all types; holdouts: the compositions kept out."""
    return _scene_questions("scenes-vqa", setup, "shapes", ANSWERS, SHAPES_ONLY)


def emoji_vqa(setup: Setup) -> Recipe:
    """Questions about scenes of emoji; holdouts: a vendor, or pairs of nouns."""
    return _scene_questions("emoji-vqa", setup, "emoji", (*YES_NO, *COUNTS, *SIZES), EMOJI_ONLY)


def _scene_questions(
    name: str, setup: Setup, world: str, answers: tuple[str, ...], holdouts: tuple[str, ...]
) -> Recipe:
    def questions(split: str, length: int = SCENES) -> SceneVQA:
        return SceneVQA(split, length, setup.config.image_size, world, setup.holdout)

    def splits(limit: int) -> dict[str, SceneVQA]:
        """Test splits by the prefix of their figures; an even number keeps twins together."""
        limit += limit % 2
        if setup.holdout is None:
            return {"": questions(setup.split, limit)}
        return {"held/": questions("test", limit), "control/": questions("control", limit)}

    def evaluate(model: VisualQuestionAnswerer, limit: int) -> Figures:
        figures: Figures = {}
        for prefix, data in splits(limit).items():
            samples = first(data, limit + limit % 2)
            told = answers_of(model, samples, setup, answers)
            figures |= {prefix + k: v for k, v in vqa_figures(samples, told).items()}
        if setup.holdout:
            figures["gap"] = figures["control/accuracy"] - figures["held/accuracy"]
        return figures

    def references(limit: int) -> Figures:
        known = first(questions("train", REFERENCE_TRAINING), min(4 * limit, REFERENCE_TRAINING))
        asked = first(next(iter(splits(limit).values())), limit)
        return vqa_references(known, asked)

    return Recipe(
        name=name,
        mode="fusion",
        about=f"questions about {world} scenes, drawn as they are needed, with balanced answers",
        build=lambda backbone, g: VisualQuestionAnswerer(backbone, len(answers), g),
        samples=setup.choose(questions("train")),
        collate=lambda samples, _: questions_batch(samples, setup, answers),
        loss=lambda model, batch: model.loss(*batch),
        evaluate=evaluate,
        references=references,
        plan=PLAN,
        labels=answers,
        goals={"accuracy": 0.90, "accuracy/relation": 0.90},
        controls={"blind": BLIND, "holdout": holdouts, "split": ("val", "test")},
    )


def questions_batch(samples: Sequence[Sample], setup: Setup, answers: Sequence[str]) -> Questions:
    """Pictures, questions and scores; ValueError for an answer that the model has no logit for."""
    place = {answer: i for i, answer in enumerate(answers)}
    scores = zeros(len(samples), len(answers))
    for row, sample in enumerate(samples):
        for answer, score in sample.answers.items():
            if answer not in place:
                raise ValueError(
                    f"{sample.key}: answer {answer!r} is not among the {len(place)} known answers"
                )
            scores[row, place[answer]] = score
    image = setup.pixels([sample.image for sample in samples])
    return Questions(image, *setup.words([sample.texts[0] for sample in samples]), scores)


def answers_of(
    model: VisualQuestionAnswerer, samples: Sequence[Sample], setup: Setup, answers: Sequence[str]
) -> list[str]:
    """The likeliest answer to each question."""
    told = []
    for _, batch in in_batches(model, samples, lambda part: questions_batch(part, setup, answers)):
        best = model(batch.image, batch.text, batch.real).argmax(dim=1).tolist()
        told += [answers[i] for i in best]
    return told


def vqa_figures(samples: Sequence[Sample], told: Sequence[str]) -> Figures:
    """Accuracy over all and by question type; pairs: twins that are both right.

    An answer counts with its soft score, which for generated questions is 0 or 1.
    """
    hits = [sample.answers.get(answer, 0.0) for sample, answer in zip(samples, told, strict=True)]
    figures = by_kind("accuracy", hits, [str(sample.info["type"]) for sample in samples])
    right = {sample.key: hit for sample, hit in zip(samples, hits, strict=True)}
    pairs = [
        min(hit, right[twin])
        for sample, hit in zip(samples, hits, strict=True)
        if (twin := _twin(sample)) in right
    ]
    return figures | ({"pairs": sum(pairs) / len(pairs)} if pairs else {})


def vqa_references(known: Sequence[Sample], asked: Sequence[Sample]) -> Figures:
    """Chance, the most frequent answer of each type, and a classifier of the question's words."""

    def kinds(samples: Sequence[Sample]) -> list[str]:
        return [str(sample.info["type"]) for sample in samples]

    def texts(samples: Sequence[Sample]) -> list[str]:
        return [sample.texts[0] for sample in samples]

    answers = [max(sample.answers, key=sample.answers.__getitem__) for sample in known]
    chance = [1 / len(_choices(sample)) for sample in asked]
    frequent = majority(kinds(known), answers, kinds(asked))
    worded = words_only(texts(known), answers, texts(asked))
    figures = by_kind("chance/accuracy", chance, kinds(asked))
    for name, told in (("majority", frequent), ("question only", worded)):
        figures |= {f"{name}/{k}": v for k, v in vqa_figures(asked, told).items()}
    return figures


def _twin(sample: Sample) -> Any:
    return sample.info.get("twin")


def _choices(sample: Sample) -> Sequence[str]:
    choices = sample.info["choices"]
    assert isinstance(choices, tuple)
    return choices
