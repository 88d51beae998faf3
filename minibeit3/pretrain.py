"""Pretraining by masked data modelling: which data, what is hidden, one step (paper, section 2).

Each batch holds equal thirds of images, texts and pairs, unless told otherwise. Everything in it is
a pure function of (seed, number), so that a killed run continues with the same bits.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from minibeit3.backbones import Backbone, build_backbone
from minibeit3.batches import generator_of, order, seed_of
from minibeit3.checkpoint import from_pretrained, save_pretrained
from minibeit3.config import BEiT3Config
from minibeit3.data.emoji import Emoji, concepts, held_codes
from minibeit3.data.folder import load_folder
from minibeit3.data.glosses import PlainTexts
from minibeit3.data.images import to_model
from minibeit3.data.sample import Sample
from minibeit3.data.scene_captions import SceneCaptions
from minibeit3.data.scene_pairs import SceneTwins
from minibeit3.data.tar_shards import load_tar_shards
from minibeit3.distributed import Team
from minibeit3.masking import (
    IMAGE_RATIO,
    PAIR_TEXT_RATIO,
    TEXT_RATIO,
    Replacement,
    blockwise_mask,
    mask_differences,
    mask_patches,
    mask_text,
    replace_bert,
)
from minibeit3.muon import muon_groups
from minibeit3.objective import Loss, MaskedBatch, MaskedDataModel, masked_data_loss
from minibeit3.runlog import Record
from minibeit3.storage import CONFIG
from minibeit3.text_tokenizer import TextTokenizer
from minibeit3.train import ALONE, TrainConfig, train

Codes = Callable[[Tensor], Tensor]  # float images (B, C, H, W) in [0, 1] to int64 (B, N)
SCENES = 1_000_000  # more than any run here sees: scenes are drawn when they are needed


@dataclass(frozen=True, kw_only=True)
class Hiding:
    """What is hidden: the paper's ratios (section 2.3), and the knobs of the study.

    pair_images: False leaves the images of pairs whole (Departure, when used). one_side: hides
    words in this share of the pairs and patches in the others, so that the other half of a pair is
    always whole (Departure, when used). draw: which patches.
    replace: what a hidden word becomes; 80/10/10 as in the released captioning code.
    """

    image: float = IMAGE_RATIO
    text: float = TEXT_RATIO
    pair_text: float = PAIR_TEXT_RATIO
    pair_images: bool = True
    one_side: float | None = None
    draw: Callable[[int, int, torch.Generator | None], Tensor] = blockwise_mask
    replace: Replacement = replace_bert

    def __post_init__(self) -> None:
        if self.one_side is None:
            return
        if not 0 < self.one_side < 1:
            raise ValueError(
                f"words hidden in a share of {self.one_side} of the pairs: give one between 0 and "
                "1; pair_images=False is the case of 1"
            )
        if not self.pair_images:
            raise ValueError(
                "one side of a pair hidden and its images whole: some of the pairs would hide "
                "nothing; choose one of the two"
            )


@dataclass(frozen=True)
class Streams:
    """Datasets by stream; a sample is drawn from each dataset of a stream in turn."""

    images: Sequence[Dataset[Sample]] = field(default_factory=list)
    texts: Sequence[Dataset[Sample]] = field(default_factory=list)
    pairs: Sequence[Dataset[Sample]] = field(default_factory=list)


class KnownEmoji(Dataset[Sample]):
    """Training emoji without the concepts and compositions that the tests hold out."""

    def __init__(self, size: int) -> None:
        self.emoji = Emoji(split="train", size=size, background="random")
        kept = enumerate(self.emoji.items)
        self.rows = [row for row, (_, concept) in kept if concept.code not in held_codes()]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        return self.emoji[self.rows[index]]


def known_texts() -> PlainTexts:
    """Training glosses and examples without the definitions of held-out emoji."""
    held = {concept.gloss for concept in concepts() if concept.code in held_codes()}
    return PlainTexts("train", without=held)


def open_data(names: Sequence[str], size: int) -> Streams:
    """The streams of named data, training splits only.

    emoji, scenes, emoji-scenes: images and pairs; scenes-2: of at most two things; scene-twins:
    their captions lose at once what the twin's caption has not. glosses: texts.
    A path is a folder of images with captions or of tar shards, or one tar (images and pairs).
    "name:3" draws three times as often.
    ValueError for unknown names, and when a stream stays empty.
    """
    images: list[Dataset[Sample]] = []
    texts: list[Dataset[Sample]] = []
    for name in names:
        name, _, weight = name.partition(":")
        match name:
            case "emoji":
                data, into = KnownEmoji(size), images
            case "scenes":
                data, into = SceneCaptions("train", SCENES, size), images
            case _ if few := re.fullmatch(r"scenes-(\d)", name):
                data, into = SceneCaptions("train", SCENES, size, most=int(few[1])), images
            case "scene-twins":
                data, into = SceneTwins("train", SCENES, size), images
            case "emoji-scenes":
                data = SceneCaptions("train", SCENES, size, world="emoji", holdout="any")
                into = images
            case "glosses":
                data, into = known_texts(), texts
            case _ if name.endswith(".tar") or any(Path(name).glob("*.tar")):
                data, into = load_tar_shards(name), images
            case _ if Path(name).is_dir():
                data, into = load_folder(name), images
            case _:
                known = (
                    "emoji, scenes, scenes-1 to -6, scene-twins, emoji-scenes, glosses, "
                    "a folder or tars"
                )
                raise ValueError(f"unknown data {name!r}: choose from {known}")
        if weight and not (weight.isdigit() and int(weight) > 0):
            raise ValueError(f"{name}:{weight}: the weight is a whole number from 1 up")
        into += [data] * int(weight or 1)
    if not images or not texts:
        missing = "images and pairs" if not images else "texts"
        raise ValueError(f"{', '.join(names)}: no {missing} among the data; add some")
    return Streams(images, texts, images)


class PretrainingBatches:
    """Source of masked batches of `size` samples: `pairs` pairs, the rest half images half texts.

    pairs: None = a third. ValueError when the rest cannot be halved.
    """

    def __init__(
        self,
        data: Streams,
        size: int,
        tokenizer: TextTokenizer,
        config: BEiT3Config,
        hiding: Hiding,
        text_length: int,
        seed: int,
        pairs: int | None = None,
    ) -> None:
        self.data, self.sizes, self.seed = data, sizes_of(size, pairs), seed
        self.tokenizer, self.config = tokenizer, config
        self.hiding, self.text_length = hiding, min(text_length, config.max_text_length)

    def samples(self, number: int) -> dict[str, list[Sample]]:
        """The samples of batch `number` by stream: images, pairs, texts."""
        found: dict[str, list[Sample]] = {}
        for which, stream in enumerate(("images", "pairs", "texts")):
            datasets: Sequence[Any] = getattr(self.data, stream)
            found[stream], size = [], self.sizes[stream]
            for place in range(number * size, (number + 1) * size):
                dataset = datasets[place % len(datasets)]
                epoch, at = divmod(place // len(datasets), len(dataset))
                seed = seed_of(self.seed, which, place % len(datasets))
                found[stream].append(dataset[order(len(dataset), seed, epoch)[at]])
        return found

    def names(self, number: int) -> list[str]:
        """Keys of the samples of batch `number`."""
        return [sample.key for part in self.samples(number).values() for sample in part]

    def batch(self, number: int) -> MaskedBatch:
        """Batch `number`, hidden and collated; `codes` is None until the step computes them."""
        g, found, hide = generator_of(self.seed, number, 3), self.samples(number), self.hiding

        def text_of(sample: Sample) -> str:
            return sample.texts[int(torch.randint(len(sample.texts), (), generator=g))]

        pictures = [s.image for s in found["images"] + found["pairs"] if s.image is not None]
        image = torch.cat([to_model(p[None], self.config.image_size) for p in pictures])
        words, real = self.tokenizer.batch(
            [text_of(sample) for sample in found["pairs"] + found["texts"]], self.text_length
        )
        n, ids = self.sizes["pairs"], self.tokenizer
        hidden = [
            mask_text(part, ok, ratio, ids.mask_id, ids.vocab_size, g, hide.replace)
            for part, ok, ratio in (
                (words[:n], real[:n], hide.pair_text),
                (words[n:], real[n:], hide.text),
            )
        ]
        text, hidden_words = (torch.cat(parts) for parts in zip(*hidden, strict=True))
        self._hide_differences(found["pairs"], words, real, text, hidden_words)
        patches = mask_patches(len(image), self.config.grid, hide.image, g, hide.draw)
        of_pairs = patches[self.sizes["images"] :]
        if not hide.pair_images:
            of_pairs[:] = False
        if hide.one_side is not None:
            worded = round(n * hide.one_side)
            of_pairs[:worded] = False
            text[worded:n], hidden_words[worded:n] = words[worded:n], False
        return MaskedBatch(image, patches, None, text, real, hidden_words, words, pairs=n)

    def _hide_differences(
        self, pairs: Sequence[Sample], words: Tensor, real: Tensor, text: Tensor, hidden: Tensor
    ) -> None:
        """In place: pairs that know another caption lose what it has not, and only that."""
        told = [(row, s.info["other"]) for row, s in enumerate(pairs) if "other" in s.info]
        if not told:
            return
        rows = torch.tensor([row for row, _ in told])
        other, _ = self.tokenizer.batch([str(caption) for _, caption in told], self.text_length)
        other = F.pad(other, (0, words.shape[1]))[:, : words.shape[1]]
        text[rows], hidden[rows] = mask_differences(
            words[rows], other, real[rows], self.tokenizer.mask_id
        )


def sizes_of(size: int, pairs: int | None = None) -> dict[str, int]:
    """How many samples of each stream a batch of `size` holds; ValueError when they do not fit."""
    if pairs is None and size % 3:
        raise ValueError(f"batch_size {size} is no multiple of three: thirds are equal")
    pairs = size // 3 if pairs is None else pairs
    if (size - pairs) % 2 or not 0 < pairs < size:
        raise ValueError(
            f"{pairs} pairs in a batch of {size}: some samples must be left, and evenly many, "
            "half of them images, half texts"
        )
    return {"images": (size - pairs) // 2, "pairs": pairs, "texts": (size - pairs) // 2}


def masked_step(
    codes: Codes, image_weight: float = 1.0, loss: Loss = masked_data_loss
) -> Callable[[nn.Module, MaskedBatch, torch.Generator], tuple[Tensor, Mapping[str, Tensor]]]:
    """The step of `train`: visual codes of the whole image are the targets of hidden patches.

    loss: what is minimised; with `masked_pixel_loss`, codes gives pixels.
    """

    def step(
        model: nn.Module, batch: MaskedBatch, generator: torch.Generator
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        assert batch.image is not None
        with torch.no_grad(), torch.autocast(batch.image.device.type, enabled=False):
            batch = batch._replace(codes=codes(batch.image.float() / 2 + 0.5))
        patches, words = model(batch, generator)
        return loss(patches, words, image_weight)

    return step


def pretrain(
    config: BEiT3Config,
    data: Streams | Sequence[str],
    codes: Codes,
    plan: TrainConfig,
    folder: Path | str,
    *,
    tokenizer: TextTokenizer | None = None,
    hiding: Hiding | None = None,
    image_weight: float = 1.0,
    text_length: int = 32,
    muon: bool = False,
    pairs: int | None = None,
    build: Callable[[BEiT3Config, torch.Generator], Backbone] = build_backbone,
    start: Path | str | None = None,
    until: int | None = None,
    device: str = "auto",
    on_log: Callable[[Record], None] | None = None,
    team: Team = ALONE,
) -> tuple[MaskedDataModel, list[Record]]:
    """Pretrain a fresh model, or go on with the run in `folder`; the model and its records.

    data: streams, or names for `open_data`. codes: the visual tokenizer, `VQKD.tokens`.
    plan: batch_size is images + pairs + texts, of each a third unless `pairs` says how many pairs.
    tokenizer: None = the lab's. hiding: None = the paper's. muon: see `muon`; False = AdamW, the
    paper's. build: the fresh backbone. start: folder of a pretrained model whose weights to begin
    with, None = fresh ones. team: the processes that share the run (`distributed`). The finished
    model is saved to `folder`/model. ValueError when `start` holds a model of another size or kind.
    """
    sizes_of(plan.part_size, pairs)
    tokenizer = tokenizer or TextTokenizer.lab()
    if tokenizer.vocab_size > config.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} ids, the model only {config.vocab_size}"
        )
    streams = data if isinstance(data, Streams) else open_data(data, config.image_size)
    torch.manual_seed(plan.seed)  # the heads; the backbone has its own generator
    model = MaskedDataModel(build(config, generator_of(plan.seed)))
    if start is not None:
        model.load_state_dict(weights_of(start, config))
    source = PretrainingBatches(
        streams,
        plan.part_size,
        tokenizer,
        config,
        hiding or Hiding(),
        text_length,
        plan.seed,
        pairs,
    )
    step = masked_step(codes, image_weight)
    groups = muon_groups(model, plan.weight_decay, plan.layer_decay) if muon else None
    records = train(
        model,
        step,
        source,
        plan,
        folder,
        until=until,
        device=device,
        groups=groups,
        on_log=on_log,
        team=team,
    )
    model = team.gather(model, lambda: MaskedDataModel(build_backbone(config)))
    if team.first:
        save_pretrained(model, Path(folder) / "model", tokenizer)
    return model, records


def weights_of(start: Path | str, config: BEiT3Config) -> dict[str, Tensor]:
    """The weights of a pretrained model of these sizes; its stochastic depth may differ."""
    start = Path(start)
    folder = start if (start / CONFIG).is_file() else start / "model"
    model = from_pretrained(folder)
    if not isinstance(model, MaskedDataModel):
        raise ValueError(f"{start} holds a {type(model).__name__}: name a pretrained model")
    found = asdict(replace(model.backbone.config, drop_path=config.drop_path))
    differ = {k: (found[k], v) for k, v in asdict(config).items() if found[k] != v}
    if differ:
        raise ValueError(f"{start} is a model of other sizes than asked for (its, asked): {differ}")
    return model.state_dict()
