"""Sequence-to-sequence: captions of scenes and of emoji."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minibeit3.data.emoji import Emoji
from minibeit3.data.sample import Sample
from minibeit3.data.scene_captions import SceneCaptions
from minibeit3.data.scene_text import is_true
from minibeit3.data.scenes import from_dict
from minibeit3.metrics import cider
from minibeit3.modes import ImageCaptioner, hide_words
from minibeit3.recipe import (
    SCENES,
    TEXT_LENGTH,
    Figures,
    Part,
    Recipe,
    Setup,
    by_kind,
    first,
    in_batches,
)
from minibeit3.recipes.dual import trained_emoji
from minibeit3.references import nearest_picture
from minibeit3.train import TrainConfig

PLAN = TrainConfig(
    steps=2000, batch_size=48, lr=1e-3, warmup=200, layer_decay=0.9, save_every=500, log_every=20
)
HIDE = 0.7  # of the words, as in the released recipe
BEAMS = {"greedy": 1, "beam 3": 3}
KNOWN = 1000  # training pictures that the nearest one is looked for among
HOLDOUTS = ("combo", "relation", "count", "size")


class Hidden(NamedTuple):
    """Captions with words hidden.

    image: float (B, 3, S, S). shown: int64 (B, T). real: bool (B, T), True = a token. hidden: bool
    (B, T), True = to be guessed. targets: int64 (B, T), the caption.
    """

    image: Tensor
    shown: Tensor
    real: Tensor
    hidden: Tensor
    targets: Tensor


def scenes_captions(setup: Setup) -> Recipe:
    """Scenes of shapes; the caption names every thing, large before small, from left to right."""

    def scenes(split: str, length: int) -> SceneCaptions:
        return SceneCaptions(split, length, setup.config.image_size, holdout=setup.holdout)

    def splits(limit: int) -> dict[str, list[Sample]]:
        names = {"": setup.split} if not setup.holdout else {"held/": "test", "control/": "control"}
        return {k: first(scenes(split, limit), limit) for k, split in names.items()}

    def judge(samples: Sequence[Sample], told: Sequence[str]) -> Figures:
        pairs = list(zip(samples, told, strict=True))
        things = [f"{len(_scene(sample).things)} things" for sample in samples]
        true = [is_true(text, _scene(sample)) for sample, text in pairs]
        exact = [text == canonical(sample) for sample, text in pairs]
        meant = cider(told, [(canonical(sample),) for sample in samples])
        figures = by_kind("true", true, things) | by_kind("exact", exact, things)
        return figures | {"CIDEr": sum(meant) / len(meant)}

    return _captions(
        "scenes-captions",
        "scenes of shapes with captions that name every thing",
        setup,
        scenes("train", SCENES),
        canonical,
        splits,
        judge,
        goals={"beam 3/true": 0.90, "beam 3/exact": 0.80},
        controls={"blind": ("image",), "holdout": HOLDOUTS, "split": ("val", "test")},
    )


def emoji_captions(setup: Setup) -> Recipe:
    """Names of emoji, learned from three vendors, told for the drawings of a fourth (OpenMoji)."""
    training = trained_emoji(setup.config.image_size)
    known = {training.samples.items[i][1].code for i in training.indices}

    def splits(limit: int) -> dict[str, list[Sample]]:
        far = Emoji(("openmoji",), size=setup.config.image_size, background="random")
        rows = [i for i, (_, concept) in enumerate(far.items) if concept.code in known]
        return {"": first(Part(far, rows), limit)}

    def judge(samples: Sequence[Sample], told: Sequence[str]) -> Figures:
        named = {str(sample.info["code"]): name(sample) for sample in samples}
        exact, shared = [], []
        for sample, text in zip(samples, told, strict=True):
            same = sample.info["same"]
            assert isinstance(same, tuple)
            right = {named[code].lower() for code in same if code in named}
            exact.append(text in right)
            words = {word for title in right for word in title.split()}
            shared.append(bool(words & set(text.split())))
        meant = cider(told, [sample.texts for sample in samples])
        return {
            "exact": sum(exact) / len(exact),
            "a word of it": sum(shared) / len(shared),
            "CIDEr": sum(meant) / len(meant),
        }

    return _captions(
        "emoji-captions",
        "emoji of three vendors with their names",
        setup,
        training,
        name,
        splits,
        judge,
        goals={},
        controls={"blind": ("image",)},
    )


def _captions(
    title: str,
    about: str,
    setup: Setup,
    training: Any,
    caption: Callable[[Sample], str],
    splits: Callable[[int], dict[str, list[Sample]]],
    judge: Callable[[Sequence[Sample], Sequence[str]], Figures],
    goals: dict[str, float],
    controls: dict[str, tuple[str, ...]],
) -> Recipe:
    """What the two recipes share: hidden words, decoding, the leak, the blind lines."""
    words = setup.tokenizer

    def evaluate(model: ImageCaptioner, limit: int) -> Figures:
        figures: Figures = {}
        for prefix, samples in splits(limit).items():
            for way, beams in BEAMS.items():
                told = tell(model, samples, setup, beams)
                found = judge(samples, told)
                figures |= {f"{prefix}{way}/{key}": value for key, value in found.items()}
            forced = forced_figures(model, samples, setup, caption)
            figures |= {prefix + key: value for key, value in forced.items()}
        if setup.holdout:
            for way in BEAMS:
                control, held = (figures[f"{p}/{way}/exact"] for p in ("control", "held"))
                figures[f"gap/{way}/exact"] = control - held
        return figures

    def references(limit: int) -> Figures:
        known = first(training, KNOWN)
        common = Counter(map(caption, known)).most_common(1)[0][0]
        lines: Figures = {}
        for prefix, samples in splits(limit).items():
            nearest = nearest_picture(pictures(known), pictures(samples))
            guesses = {
                "most common caption": [common for _ in samples],
                "nearest pixels": [caption(known[i]) for i in nearest],
            }
            for line, told in guesses.items():
                plain = [words.decode(words.token_ids(text)) for text in told]
                found = judge(samples, plain)
                lines |= {f"{line}/{prefix}{key}": value for key, value in found.items()}
        return lines

    return Recipe(
        name=title,
        mode="seq2seq",
        about=about,
        build=lambda backbone, g: ImageCaptioner(
            backbone, words.bos_id, words.pad_id, words.eos_id, words.mask_id, g
        ),
        samples=setup.choose(training),
        collate=lambda samples, g: captions_batch(samples, setup, caption, g),
        loss=lambda model, batch: model.loss(*batch),
        evaluate=evaluate,
        references=references,
        plan=PLAN,
        muon=True,
        goals=goals,
        controls=controls,
    )


def captions_batch(
    samples: Sequence[Sample],
    setup: Setup,
    caption: Callable[[Sample], str],
    generator: torch.Generator,
) -> Hidden:
    """Pictures with their captions, `HIDE` of the words hidden; ValueError for one without."""
    silent = [sample.key for sample in samples if not sample.texts]
    if silent:
        raise ValueError(f"{len(silent)} of {len(samples)} pictures have no caption: {silent[:3]}")
    words = setup.tokenizer
    text, real = setup.words([caption(sample) for sample in samples])
    shown, hidden = hide_words(text, real, HIDE, words.vocab_size, generator, words.mask_id)
    return Hidden(setup.pixels([sample.image for sample in samples]), shown, real, hidden, text)


def tell(model: ImageCaptioner, samples: Sequence[Sample], setup: Setup, beams: int) -> list[str]:
    """A caption for every picture; beams: 1 = greedy."""
    longest = min(TEXT_LENGTH, setup.config.max_text_length)
    batches = in_batches(model, samples, lambda part: setup.pixels([s.image for s in part]))
    ids = [found for _, image in batches for found in model.generate(image, longest, beams)]
    return [setup.tokenizer.decode(caption) for caption in ids]


def forced_figures(
    model: ImageCaptioner, samples: Sequence[Sample], setup: Setup, caption: Callable[[Sample], str]
) -> Figures:
    """Teacher-forced accuracy of one hidden word per caption, and what later words change of it.

    leak: share of guesses that differ when all words after the hidden one are replaced by others.
    It is 0 under the caption rule; under any other, guesses lean on what generation will not have.
    """
    words, right, changed = setup.tokenizer, [], []
    g = torch.Generator().manual_seed(0)

    def batch(part: Sequence[Sample]) -> tuple[Tensor, Tensor, Tensor]:
        return setup.pixels([s.image for s in part]), *setup.words([caption(s) for s in part])

    for _, (image, text, real) in in_batches(model, samples, batch):
        place = torch.rand(len(text), generator=g).to(text.device) * (real.sum(dim=1) - 1)
        at = place.long()[:, None] + 1  # never <s>
        column = torch.arange(text.shape[1], device=text.device)
        other = torch.randint(3, words.vocab_size, text.shape, generator=g).to(text.device)
        shown = torch.where(column == at, words.mask_id, text)
        misled = torch.where((column > at) & real, other, shown)
        guesses = [model(image, x, real).gather(1, at[..., None].expand(-1, -1, words.vocab_size))
                   .argmax(dim=-1) for x in (shown, misled)]  # fmt: skip
        right += (guesses[0] == text.gather(1, at))[:, 0].tolist()
        changed += (guesses[0] != guesses[1])[:, 0].tolist()
    return {"forced": sum(right) / len(right), "leak": sum(changed) / len(changed)}


def canonical(sample: Sample) -> str:
    """The one caption of a scene that names every thing in its order."""
    return str(sample.info["canonical"])


def name(sample: Sample) -> str:
    """The emoji's name, as the tokenizer can say it back."""
    return str(sample.info["name"])


def pictures(samples: Sequence[Sample]) -> list[Tensor]:
    """The samples' pictures; ValueError when one has none."""
    found = [sample.image for sample in samples if sample.image is not None]
    if len(found) < len(samples):
        raise ValueError(f"{len(samples) - len(found)} of {len(samples)} samples have no picture")
    return found


def _scene(sample: Sample) -> Any:
    scene = sample.info["scene"]
    assert isinstance(scene, dict)
    return from_dict(scene)
