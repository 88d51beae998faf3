"""How far a guesser gets that does not see everything; writes results/scene_blind_lines.json.

    python tools/scene_blind_lines.py results/scene_blind_lines.json

For the questions: chance (1 / number of possible answers), the most frequent answer of each type,
a classifier of the question's words, and a classifier of the picture's contents. The picture alone
cannot be at chance where the answer must be in it: "distinct" is 1 / number of different values in
the scene, the fair line there. For the statements: a classifier of the words, and what one picture
gives away by counting. A model that looks must be far above all of these.
"""

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sklearn.feature_extraction import DictVectorizer
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from minibeit3.data.scene_pairs import SceneStatements, one_picture_leak
from minibeit3.data.scene_questions import Question
from minibeit3.data.scene_vqa import SceneVQA
from minibeit3.data.scenes import Scene, world_named
from minibeit3.provenance import provenance

ROOT = Path(__file__).resolve().parents[1]
TRAIN, TEST, SEEDS = 5000, 3000, 3
Posed = tuple[Question, str, Scene, tuple[str, ...]]


def posed(split: str, start: int, length: int, world: str = "shapes") -> list[Posed]:
    """Items `start` .. `start + length` of a split, not drawn."""
    data = SceneVQA(split, start + length, world=world)
    return [data.pose(i) for i in range(start, start + length)]


def words_only(train: Sequence[str], answers: Sequence[str], test: Sequence[str]) -> np.ndarray:
    """Answers that a logistic regression on 1- to 3-grams gives to the test texts."""
    model = make_pipeline(
        CountVectorizer(ngram_range=(1, 3), binary=True, token_pattern=r"\w+"),
        LogisticRegression(max_iter=400),
    )
    return model.fit(train, answers).predict(test)


def contents_only(
    train: Sequence[Scene], answers: Sequence[str], test: Sequence[Scene]
) -> np.ndarray:
    """Answers of a logistic regression on what is in the picture: kinds, colours, sizes, pairs."""

    def bag(scene: Scene) -> dict[str, int]:
        named = ((t.kind, t.colour, t.size, f"{t.colour} {t.kind}") for t in scene.things)
        return Counter(name for names in named for name in names)

    model = make_pipeline(DictVectorizer(), LogisticRegression(max_iter=400))
    return model.fit([bag(s) for s in train], answers).predict([bag(s) for s in test])


def question_lines(train: Sequence[Posed], test: Sequence[Posed], world: str) -> dict[str, dict]:
    """Accuracy of every blind line by question type, and over all types."""
    vocabulary = world_named(world)
    words, answers, scenes = ([], []), ([], []), ([], [])
    for side, items in enumerate((train, test)):
        for question, answer, scene, _ in items:
            words[side].append(question.ask(vocabulary))
            answers[side].append(answer)
            scenes[side].append(scene)
    frequent: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for question, answer, *_ in train:
        frequent[question.type][answer] += 1
    truth = np.array(answers[1])
    kinds = np.array([question.type for question, *_ in test])
    right = {
        "chance": np.array([1 / len(options) for *_, options in test]),
        "majority": truth == [frequent[kind].most_common(1)[0][0] for kind in kinds],
        "question only": truth == words_only(words[0], answers[0], words[1]),
        "image only": np.zeros(len(test)),
    }
    for kind in frequent:  # told the type, so that it need not guess what sort of word is asked
        chosen = [i for i, item in enumerate(train) if item[0].type == kind]
        there = np.flatnonzero(kinds == kind)
        guess = contents_only(
            [scenes[0][i] for i in chosen],
            [answers[0][i] for i in chosen],
            [scenes[1][i] for i in there],
        )
        right["image only"][there] = truth[there] == guess
    values = {"colour": "colour", "hop": "colour", "shape": "kind", "size": "size"}
    right["distinct"] = np.array(
        [
            1 / len({getattr(t, values[kind]) for t in scene.things}) if kind in values else np.nan
            for kind, scene in zip(kinds, scenes[1], strict=True)
        ]
    )
    lines = {name: _by_type(hits, kinds) for name, hits in right.items()}
    del lines["distinct"]["all"]
    return lines


def statement_lines(train: SceneStatements, test: SceneStatements) -> dict[str, dict]:
    """Accuracy from the statement's words and from one picture, by statement type."""
    items = [[data.pose(i) for i in range(len(data))] for data in (train, test)]
    texts = [[item[1] for item in side] for side in items]
    truths = [[str(item[2]) for item in side] for side in items]
    kinds = np.array([item[0] for item in items[1]])
    guess = words_only(texts[0], truths[0], texts[1])
    leak = one_picture_leak((kind, truth, facts) for kind, _, truth, facts, _ in items[1])
    return {
        "statement only": _by_type(guess == np.array(truths[1]), kinds),
        "left picture only": {kind: left for kind, (left, _) in leak.items()},
        "right picture only": {kind: right for kind, (_, right) in leak.items()},
    }


def _by_type(hits: np.ndarray, kinds: np.ndarray) -> dict[str, float]:
    return {"all": float(hits.mean())} | {
        str(kind): float(hits[kinds == kind].mean())
        for kind in np.unique(kinds)
        if not np.isnan(hits[kinds == kind]).any()
    }


def _summary(runs: list[dict[str, dict]]) -> dict[str, dict]:
    return {
        line: {
            kind: {
                "mean": round(float(np.mean([run[line][kind] for run in runs])), 4),
                "sd": round(float(np.std([run[line][kind] for run in runs], ddof=1)), 4),
            }
            for kind in runs[0][line]
        }
        for line in runs[0]
    }


def main() -> None:
    """Measure all lines over disjoint parts of the data and write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    result: dict[str, object] = {
        "what": "accuracy of blind guessers on scene questions and statements",
        "seeds": SEEDS,
        "budget": {"train questions": TRAIN, "test questions": TEST},
        **provenance("tools/scene_blind_lines.py"),
    }
    for world in ("shapes", "emoji"):
        runs = [
            question_lines(
                posed("train", seed * TRAIN, TRAIN, world),
                posed("test", seed * TEST, TEST, world),
                world,
            )
            for seed in range(SEEDS)
        ]
        result[f"{world} questions"] = _summary(runs)
    statements = statement_lines(SceneStatements("train", 4000), SceneStatements("test", 4000))
    result["shapes statements"] = statements
    out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
