"""Lines beside the vision and language encoders that no backbone of ours has a part in.

    python tools/reference_lines.py results/reference_lines.json

Emoji subgroups: one linear layer on shrunk pixels and on EfficientNet-Lite0's features (trained
with ImageNet's labels on photographs), for few labels and all. Scenes of one thing: the same for
colour and kind. Glosses: a linear support vector machine on TF-IDF. All on the recipes' own
training and test data, over seeds where labels are few: the seed draws which. --data adds Fashion-
MNIST from the folder of its idx.gz files.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from minibeit3 import PRESETS
from minibeit3.data.glosses import Glosses
from minibeit3.provenance import provenance, write_results
from minibeit3.recipe import SCENES, Setup, first
from minibeit3.recipes import open_recipe
from minibeit3.recipes.dual import trained_emoji
from minibeit3.recipes.vision import OneThing, emoji_tests, labels_of, pictures
from minibeit3.references_linear import linear, lite0, pixels, tfidf_svm
from minibeit3.text_tokenizer import TextTokenizer

ROOT = Path(__file__).resolve().parents[1]
SEEDS = 3
EMOJI_LABELS = (200, None)
GLOSS_LABELS = (1000, 4000, None)
SCENE_LABELS, SCENE_TESTS = (200, 2000), 1000
Lines = dict[str, dict[str, float | int]]


def chosen(total: int, labels: int | None, seed: int) -> list[int]:
    """The places that a recipe with labels=N and this seed trains on."""
    words = TextTokenizer.lab()
    setup = Setup(config=PRESETS["tiny"], tokenizer=words, labels=labels, seed=seed)
    places: Any = range(total)
    return list(setup.choose(places))  # pyright: ignore[reportReturnType, reportArgumentType]


def over_seeds(name: str, labels: int | None, measure: Callable[[int], dict[str, float]]) -> Lines:
    """Mean and deviation of each figure; one run where all labels are taken."""
    runs = [measure(seed) for seed in range(SEEDS if labels else 1)]
    count = "all" if labels is None else labels
    return {
        f"{name}, labels={count}/{key}": {
            "mean": round(statistics.mean(run[key] for run in runs), 4),
            "sd": round(statistics.stdev(run[key] for run in runs), 4) if len(runs) > 1 else 0.0,
            "n": len(runs),
        }
        for key in runs[0]
    }


def share(told: Sequence[int], truth: Sequence[int]) -> float:
    """Share of equal classes."""
    return float(np.mean(np.asarray(told) == np.asarray(truth)))


def emoji_lines(every: int) -> Lines:
    """Subgroups of emoji from the two features, on the recipe's splits."""
    training, lines = trained_emoji(PRESETS["tiny"].image_size), {}
    known = first(training, len(training) // every)
    asked = {
        prefix: first(data, len(data) // every)
        for prefix, data in emoji_tests(PRESETS["tiny"].image_size).items()
    }
    labels = np.array([sample.label for sample in known])
    for name, features in (("pixels", pixels), ("Lite0", lite0)):
        seen = features(pictures(known))
        tests = {
            prefix: (features(pictures(samples)), [sample.label for sample in samples])
            for prefix, samples in asked.items()
        }
        for few in EMOJI_LABELS:

            def measure(seed: int, few: int | None = few, seen=seen, tests=tests) -> dict:
                rows = chosen(len(known), few, seed)
                both = np.concatenate([found for found, _ in tests.values()])
                told = linear(seen[rows], labels[rows].tolist(), both)
                figures, start = {}, 0
                for prefix, (found, truth) in tests.items():
                    figures[f"{prefix}top1"] = share(told[start : start + len(found)], truth)
                    start += len(found)
                return figures

            lines |= over_seeds(f"{name}, linear", few, measure)
    return lines


def scene_lines() -> Lines:
    """Colour and kind of the one thing in a scene, from the two features."""
    recipe_of = partial(Setup, config=PRESETS["tiny"], tokenizer=TextTokenizer.lab())
    data = OneThing("test", SCENES, PRESETS["tiny"].image_size)
    asked, classes = first(data, SCENE_TESTS), len(data.classes)
    truth, lines = labels_of(asked, classes).tolist(), {}
    for name, features in (("pixels", pixels), ("Lite0", lite0)):
        test = features(pictures(asked))
        for few in SCENE_LABELS:

            def measure(seed: int, few: int = few, features=features, test=test) -> dict:
                recipe = open_recipe("scenes-classes", recipe_of(labels=few, seed=seed))
                known = list(recipe.samples)
                told = linear(features(pictures(known)), labels_of(known, classes).tolist(), test)
                return {"top1": share(told, truth)}

            lines |= over_seeds(f"{name}, linear", few, measure)
    return lines


def gloss_lines() -> Lines:
    """Subjects of definitions from their words."""
    training, test = Glosses("train", 8), Glosses("test", 8)
    known, asked = first(training, len(training)), first(test, len(test))
    lines: Lines = {}
    for few in GLOSS_LABELS:

        def measure(seed: int, few: int | None = few) -> dict[str, float]:
            rows = chosen(len(training), few, seed)
            told = tfidf_svm(
                [known[i].texts[0] for i in rows],
                [training.items[i][1] for i in rows],
                [sample.texts[0] for sample in asked],
            )
            return {"top1": share(told, [label for _, label in test.items])}

        lines |= over_seeds("TF-IDF, linear", few, measure)
    return lines


def main() -> None:
    """Measure all lines and write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, help="folder of Fashion-MNIST's idx.gz files")
    parser.add_argument("--every", type=int, default=1, help="take every n-th emoji")
    parser.add_argument("--only", help="this recipe's lines alone, the others stay as they are")
    given = parser.parse_args()
    torch.manual_seed(0)
    made: dict[str, Callable[[], Lines]] = {
        "glosses": gloss_lines,
        "emoji-classes": lambda: emoji_lines(given.every),
        "scenes-classes": scene_lines,
    }
    origin = provenance("tools/reference_lines.py")
    kept = json.loads(given.out.read_text()) if given.only else {}
    result: dict[str, object] = {
        **kept,
        "what": "top-1 of linear classifiers on features that no backbone of ours gave",
        "seeds": SEEDS,
        "emoji": kept.get("emoji", f"every {given.every}" if given.every > 1 else "all"),
        **origin,
        "command": "; ".join([kept["command"]] * bool(kept) + [origin["command"]]),
        **{name: make() for name, make in made.items() if given.only in (None, name)},
    }
    if given.data:
        words = TextTokenizer.lab()
        setup = Setup(config=PRESETS["tiny"], tokenizer=words, data=given.data)
        found = open_recipe("fashion-mnist", setup).references(2000)
        result["fashion-mnist"] = {name: round(value, 4) for name, value in found.items()}
    write_results(given.out, result)


if __name__ == "__main__":
    main()
