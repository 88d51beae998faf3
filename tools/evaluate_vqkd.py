"""Measure a trained visual tokenizer on pictures that it never saw, and write results/vqkd.json.

    python tools/evaluate_vqkd.py data_samples/checkpoints/vqkd results/vqkd.json

Held out: the drawings of OpenMoji (a vendor that was not trained on) and the test split of scenes.
Codes are judged by what a linear classifier reads from them: the emoji's Unicode subgroup, from the
histogram of the picture's codes, trained on the other vendors and tested on a new vendor ("style"),
on new concepts, and on both. The tokenizer itself saw the new concepts without any label. Lines to
compare with: pixel codes (k-means on the pixels of patches, same number), an untrained encoder with
k-means codes, random codes under the trained encoder, and the most frequent class. About three CPU
minutes; `--every 4` takes one.
"""

import argparse
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from sklearn.cluster import MiniBatchKMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.utils.data import Subset

from minibeit3.codebook import CodeUsage, code_usage, nearest
from minibeit3.data.emoji import Emoji
from minibeit3.data.paths import data_root
from minibeit3.data.scene_captions import SceneCaptions
from minibeit3.provenance import provenance, write_results
from minibeit3.teacher import build_teacher
from minibeit3.train_vqkd import TRAIN_STYLES, stack_images, to_float
from minibeit3.visual_tokenizer import VQKD

SCENES = 1000
TEACHER_LOOKS = 4  # the cosine is taken on every fourth picture: the teacher is slow
ROOT = Path(__file__).resolve().parents[1]


class Labelled(NamedTuple):
    """pictures: uint8 (n, 3, s, s); labels: int64 (n,) subgroup; codes: code point of each."""

    pictures: Tensor
    labels: np.ndarray
    codes: list[str]


def load(styles: tuple[str, ...], size: int, every: int) -> Labelled:
    """Every n-th emoji of `styles` on white."""
    dataset = Emoji(styles=styles, size=size)
    chosen = Subset(dataset, range(0, len(dataset), every))
    samples = [chosen[index] for index in range(len(chosen))]
    labels = np.array([sample.label for sample in samples])
    return Labelled(stack_images([chosen]), labels, [str(s.info["code"]) for s in samples])


def in_batches(function: Callable[[Tensor], Tensor], pictures: Tensor) -> Tensor:
    """`function` of float pictures, 128 at a time."""
    with torch.no_grad():
        return torch.cat([function(to_float(part)) for part in pictures.split(128)])


def histograms(tokens: Tensor, codes: int) -> np.ndarray:
    """Square roots of the code counts of every picture, float (n, codes)."""
    return F.one_hot(tokens, codes).sum(1).sqrt().double().numpy()


def pixel_codes(train: Tensor, test: Tensor, codes: int, patch: int) -> tuple[Tensor, Tensor]:
    """Tokens of both sets under k-means on the raw pixels of training patches."""

    def patches(pictures: Tensor) -> np.ndarray:
        x = rearrange(to_float(pictures), "B c (h p) (w q) -> (B h w) (p q c)", p=patch, q=patch)
        return x.numpy()

    means = MiniBatchKMeans(codes, batch_size=4096, n_init="auto", random_state=0, max_iter=5)
    means.fit(patches(train))
    n = (train.shape[-1] // patch) ** 2
    found = [np.asarray(means.predict(patches(x)), np.int64) for x in (train, test)]
    return torch.from_numpy(found[0]).view(-1, n), torch.from_numpy(found[1]).view(-1, n)


def untrained(model: VQKD, pictures: Tensor) -> VQKD:
    """The same sizes with initial weights; k-means codes from 256 pictures, then no step."""
    fresh = VQKD(model.config).eval()
    raw = in_batches(fresh.encode, pictures[:: len(pictures) // 256])
    fresh.codebook.start(F.normalize(raw.flatten(0, 1), dim=-1))
    return fresh


def random_codes(model: VQKD) -> Tensor:
    """A codebook (V, C) of unit vectors drawn at random."""
    generator = torch.Generator().manual_seed(0)
    return F.normalize(torch.randn(model.codebook.vectors.shape, generator=generator), dim=-1)


def probe(train: np.ndarray, test: np.ndarray, data: tuple[Labelled, Labelled]) -> dict[str, float]:
    """Accuracy of a linear classifier on what it did not see: style, concept, and both."""
    held = json.loads((data_root() / "emoji/splits.json").read_text("utf-8"))["concept"]
    new, new_test = (np.isin(part.codes, held["test"]) for part in data)
    labels, test_labels = (part.labels for part in data)

    def fit(x: np.ndarray, y: np.ndarray) -> LogisticRegression:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a fixed budget for every line
            return LogisticRegression(C=1.0, max_iter=100).fit(x, y)

    partial = fit(train[~new], labels[~new])
    return {
        "style": float(fit(train, labels).score(test, test_labels)),
        "concept": float(partial.score(train[new], labels[new])),
        "style_and_concept": float(partial.score(test[new_test], test_labels[new_test])),
    }


def most_frequent(data: tuple[Labelled, Labelled]) -> dict[str, float]:
    """Accuracy of always answering the largest class."""
    constant = [np.zeros((len(part.labels), 1)) for part in data]
    return probe(constant[0], constant[1], data)


def cosine(model: VQKD, pictures: Tensor, truth: Tensor) -> float:
    """Mean cosine of the decoded codes with standardised teacher features (n, N, dim)."""
    return F.cosine_similarity(in_batches(model.features, pictures), truth, dim=-1).mean().item()


def spread(usage: CodeUsage) -> dict[str, float]:
    """The part of a usage that a report needs."""
    return {"used": usage.used, "perplexity": usage.perplexity, "dead": usage.dead}


def evaluate(folder: Path, every: int) -> dict[str, object]:
    """All figures of the tokenizer saved in `folder`, on every n-th picture."""
    model = VQKD.from_pretrained(folder)
    recipe = json.loads((folder / "training.json").read_text())
    codes, patch, size = model.config.codes, model.config.patch, model.config.image_size
    teacher = build_teacher(recipe["teacher"], patch=patch)
    data = load(TRAIN_STYLES, size, every), load(("openmoji",), size, every)
    scenes = stack_images([SceneCaptions("test", SCENES // every, size=size)])
    shown = [part.pictures for part in data]
    units = [F.normalize(in_batches(model.encode, x), dim=-1) for x in (*shown, scenes)]
    tokens = [nearest(unit, model.codebook.vectors) for unit in units]

    fresh = untrained(model, shown[0])
    lines = {
        "trained": tokens[:2],
        "pixel_k_means": pixel_codes(shown[0], shown[1], codes, patch),
        "untrained_encoder": [in_batches(fresh.tokens, pictures) for pictures in shown],
        "random_codes": [nearest(unit, random_codes(model)) for unit in units[:2]],
    }
    accuracy = {
        name: probe(histograms(train, codes), histograms(test, codes), data)
        for name, (train, test) in lines.items()
    }
    accuracy["most_frequent_class"] = most_frequent(data)
    mean, std = (torch.tensor(recipe[f"target_{name}"]) for name in ("mean", "std"))
    looks = [pictures[::TEACHER_LOOKS] for pictures in (shown[1], scenes)]
    truth = [(in_batches(teacher, pictures) - mean) / std for pictures in looks]

    return {
        "what": "visual tokenizer of the lab on held-out pictures",
        "teacher": recipe["teacher"],
        "pictures": {"train": len(shown[0]), "openmoji": len(shown[1]), "scenes": len(scenes)},
        "seeds": 1,
        "codes": codes,
        "usage": spread(code_usage(torch.cat(tokens[1:]), codes)),
        "usage_openmoji": spread(code_usage(tokens[1], codes)),
        "usage_scenes": spread(code_usage(tokens[2], codes)),
        "usage_train_emoji": spread(code_usage(tokens[0], codes)),
        "teacher_cosine": {
            "openmoji": cosine(model, looks[0], truth[0]),
            "scenes": cosine(model, looks[1], truth[1]),
            "openmoji_of_another_picture": cosine(model, looks[0].roll(1, 0), truth[0]),
            "scenes_of_another_picture": cosine(model, looks[1].roll(1, 0), truth[1]),
        },
        "subgroup_accuracy": accuracy,
        "trained_beats_pixels": {
            split: accuracy["trained"][split] > accuracy["pixel_k_means"][split]
            for split in accuracy["trained"]
        },
        "budget": recipe["plan"] | {name: recipe[name] for name in ("pictures", "wall_s", "cpu_s")},
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("--every", type=int, default=1, help="use every n-th picture: faster")
    given = parser.parse_args()
    result = evaluate(given.folder, given.every)
    write_results(given.results, result | provenance("tools/evaluate_vqkd.py"))


if __name__ == "__main__":
    main()
