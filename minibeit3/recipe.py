"""What a fine-tuning recipe is: data, a head, a loss, figures and the lines beside them.

`recipes/` holds the recipes, `finetune` trains any of them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from minibeit3.backbones import Backbone
from minibeit3.batches import Batches, Source, order, to_device
from minibeit3.config import BEiT3Config
from minibeit3.data.images import to_model
from minibeit3.data.records import Records
from minibeit3.data.sample import Sample
from minibeit3.optimiser import no_weight_decay
from minibeit3.text_tokenizer import TextTokenizer
from minibeit3.train import TrainConfig

Blind = Literal["image", "text"]
Split = Literal["val", "test"]
Samples = Sequence[Sample]
Figures = dict[str, float]

SCENES = 1_000_000  # more than any run here sees: scenes are drawn when they are needed
TEXT_LENGTH = 64
EVALUATION_BATCH = 100


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a recipe has to know before it opens its data.

    config: sizes of the backbone. labels: how many training samples, None = all there are.
    blind: the modality that the model never sees, a control. holdout: what training leaves out and
    the evaluation asks for. split: what the evaluation reads; choose settings on "val". data: where
    the user's data are (public data sets). seed: which samples `labels` takes.
    """

    config: BEiT3Config
    tokenizer: TextTokenizer
    labels: int | None = None
    blind: Blind | None = None
    holdout: str | None = None
    split: Split = "test"
    data: Path | None = None
    seed: int = 0

    def pixels(self, images: Sequence[Tensor | None]) -> Tensor:
        """uint8 pictures (3, H, W) of any sizes as the model's float (B, 3, S, S).

        All grey when the model is blind for images. ValueError for a missing picture.
        """
        found = [image for image in images if image is not None]
        if len(found) < len(images):
            raise ValueError(f"{len(images) - len(found)} of {len(images)} samples have no picture")
        size = self.config.image_size
        if self.blind == "image":
            return torch.zeros(len(found), self.config.channels, size, size)
        if len({image.shape for image in found}) == 1:
            return to_model(torch.stack(found), size)
        return torch.stack([to_model(image, size) for image in found])

    def words(self, texts: Sequence[str], longest: int = TEXT_LENGTH) -> tuple[Tensor, Tensor]:
        """ids int64 (B, T) and real bool (B, T), True = a token; only <s> and </s> when blind.

        longest: tokens after which a text is cut.
        """
        seen = ["" for _ in texts] if self.blind == "text" else texts
        return self.tokenizer.batch(seen, min(longest, self.config.max_text_length))

    def choose(self, samples: Any) -> Samples:
        """`labels` of the samples, drawn by the seed. ValueError when there are not as many."""
        total = len(samples)
        if self.labels is None and total:
            return samples
        if not 1 <= (self.labels or 0) <= total:
            asked = "all" if self.labels is None else self.labels
            raise ValueError(
                f"{asked} training samples asked for, the data have {total}: at least 1 is needed"
            )
        return Part(samples, order(total, self.seed, 0)[: self.labels])

    def root(self) -> Path:
        """The folder of the user's data. ValueError when none was given."""
        if self.data is None:
            raise ValueError("this recipe reads your data: give its folder as data= or --data")
        return self.data


class Part(Sequence[Sample]):
    """Some samples of a data set."""

    def __init__(self, samples: Any, indices: Sequence[int]) -> None:
        self.samples, self.indices = samples, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Any) -> Any:
        return self.samples[self.indices[index]]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One task of one mode, ready to be trained.

    about: what it trains on, for people. build(backbone, generator): the model with a fresh head.
    samples: for training. collate(samples, generator): a named tuple of tensors on the CPU; the
    generator is the batch's own, for augmentation. loss(model, batch): a scalar.
    evaluate(model, limit): figures by name, on at most `limit` samples of each split; the model is
    in evaluation mode. references(limit): what needs no model: chance, majority, simple rules; the
    same names after a prefix ("majority/accuracy"). plan: the default of the training.
    drop_path: stochastic depth. head_lr: factor on the learning rate of parameters `head.*`.
    undecayed(model): names of parameters without weight decay. final_norm: False = the backbone
    goes without its last norm (released ImageNet and VQA models). muon: True = the blocks' matrices
    step by Muon (`muon`): a departure of the lab's own recipes, whose runs are short.
    labels: names of the classes or answers in the head's order. goals: figure -> aim.
    controls: the values of `Setup` that the recipe knows, by field ("blind", "holdout", "split").
    source: what makes batches of samples. export(model, path): write predictions in the format that
    a benchmark's server takes; the file written.
    """

    name: str
    mode: str
    about: str
    build: Callable[[Backbone, torch.Generator], Any]
    samples: Samples
    collate: Callable[[list[Sample], torch.Generator], Any]
    loss: Callable[[Any, Any], Tensor]
    evaluate: Callable[[Any, int], Figures]
    references: Callable[[int], Figures]
    plan: TrainConfig
    drop_path: float = 0.1
    head_lr: float = 1.0
    undecayed: Callable[[nn.Module], set[str]] = no_weight_decay
    final_norm: bool = True
    muon: bool = False
    labels: tuple[str, ...] = ()
    goals: Mapping[str, float] = field(default_factory=dict)
    controls: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    source: Callable[..., Source] = Batches
    export: Callable[[Any, Path], Path] | None = None


def need(samples: Any, what: Literal["texts", "answers", "label"], name: str) -> Any:
    """The samples themselves; ValueError for an empty split, or one that lacks `what`.

    Records are looked through without decoding a picture, other data sets are not.
    """
    if not len(samples):
        raise ValueError(f"{name}: the split is empty, there is nothing to read")
    if isinstance(samples, Records):
        keys = [r.sample.key for r in samples.records if getattr(r.sample, what) in ((), None, {})]
        if keys:
            raise ValueError(
                f"{name}: {len(keys)} of {len(samples)} samples have no {what}, first {keys[:3]}"
            )
    return samples


def first(samples: Any, limit: int) -> list[Sample]:
    """At most `limit` samples, spread evenly over all of them."""
    total = len(samples)
    if limit < 1 or not total:
        raise ValueError(f"{limit} of {total} samples: nothing to evaluate")
    count = min(limit, total)
    return [samples[i * total // count] for i in range(count)]


def in_batches(
    model: Any, samples: Samples, collate: Callable[[list[Sample]], Any]
) -> Iterator[tuple[list[Sample], Any]]:
    """Samples by `EVALUATION_BATCH` with their batch on the model's device."""
    device = next(model.parameters()).device
    for start in range(0, len(samples), EVALUATION_BATCH):
        part = list(samples[start : start + EVALUATION_BATCH])
        yield part, to_device(collate(part), device)


def by_kind(name: str, hits: Sequence[float], kinds: Sequence[str]) -> Figures:
    """Mean of hits as `name`, and as `name`/kind for every kind of sample."""
    groups: dict[str, list[float]] = {}
    for hit, kind in zip(hits, kinds, strict=True):
        groups.setdefault(f"{name}/{kind}", []).append(float(hit))
    figures = {name: sum(map(float, hits)) / len(hits)}
    return figures | {kind: sum(part) / len(part) for kind, part in sorted(groups.items())}
