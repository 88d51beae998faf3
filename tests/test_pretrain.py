"""The pretraining recipe: equal thirds, the paper's ratios, no held-out data, exact resume."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from minibeit3 import PRESETS, from_pretrained
from minibeit3.data.emoji import Emoji, concepts, held_codes
from minibeit3.data.glosses import PlainTexts
from minibeit3.data.scene_captions import SceneCaptions
from minibeit3.data.scene_pairs import SceneTwins
from minibeit3.data.scene_splits import shows_held_pair
from minibeit3.objective import MaskedDataModel
from minibeit3.pretrain import Hiding, KnownEmoji, PretrainingBatches, Streams, open_data, pretrain
from minibeit3.text_tokenizer import TextTokenizer
from minibeit3.train import TrainConfig

CONFIG = replace(PRESETS["tiny"], depth=2, width=32, ffn_width=32, heads=2, fusion_layers=1)


def streams() -> Streams:
    scenes, others = SceneCaptions("train", 100), SceneCaptions("val", 100)
    return Streams([scenes, others], [scenes], [scenes])


def batches(hiding: Hiding | None = None, seed: int = 0, pairs: int | None = None) -> Any:
    tokenizer, data, hiding = TextTokenizer.lab(), streams(), hiding or Hiding()
    return PretrainingBatches(data, 24, tokenizer, CONFIG, hiding, 24, seed, pairs)


def brightness(image: Tensor) -> Tensor:
    """A visual tokenizer of four codes, which a few steps can learn."""
    cells = torch.nn.functional.avg_pool2d(image.mean(dim=1, keepdim=True), 8)
    return (cells.flatten(1) * 3.999).long().clamp(0, 3)


def test_a_batch_holds_equal_thirds_hidden_by_the_papers_ratios() -> None:
    b = batches().batch(0)
    assert b.image is not None and b.text is not None and b.hidden_patches is not None
    assert len(b.image) == 16 and len(b.text) == 16 and b.pairs == 8
    assert (b.hidden_patches.sum(dim=1) == round(0.4 * 64)).all()
    assert b.text_real is not None and b.hidden_words is not None and b.words is not None
    words = b.text_real.sum(dim=1) - 2
    count = b.hidden_words.sum(dim=1)
    assert torch.equal(count[:8], (0.5 * words[:8] + 0.5).floor().clamp(min=1).long())
    assert torch.equal(count[8:], (0.15 * words[8:] + 0.5).floor().clamp(min=1).long())


def test_a_batch_depends_on_seed_and_number_alone() -> None:
    first, again = batches().batch(3), batches().batch(3)
    assert first.pairs == again.pairs and first.codes is again.codes is None
    for one, two in zip(first, again, strict=True):
        assert not isinstance(one, Tensor) or torch.equal(one, two)
    others = batches().batch(4), batches(seed=1).batch(3)
    assert not any(torch.equal(first.words, other.words) for other in others)


def test_pairs_are_an_image_and_its_own_caption_and_datasets_take_turns() -> None:
    source = batches()
    found, b = source.samples(0), source.batch(0)
    assert len({s.key for s in found["images"]}) == 8
    assert [s.key.split("/")[-2] for s in found["images"]] == ["train", "val"] * 4
    tokenizer = TextTokenizer.lab()
    for row, sample in enumerate(found["pairs"]):
        assert tokenizer.decode(b.words[row]) in sample.texts
        assert torch.equal((b.image[8 + row] * 127.5 + 127.5).round().byte(), sample.image)


def test_the_knobs_of_the_study_leave_images_of_pairs_whole() -> None:
    b = batches(Hiding(pair_images=False, pair_text=0.9)).batch(0)
    assert b.hidden_patches[:8].any() and not b.hidden_patches[8:].any()
    assert b.hidden_words[:8].sum() > batches().batch(0).hidden_words[:8].sum()


@pytest.mark.parametrize(("share", "k"), [(0.5, 4), (0.75, 6)])
def test_one_side_of_every_pair_is_whole_and_the_other_hidden(share: float, k: int) -> None:
    b = batches(Hiding(one_side=share)).batch(0)
    words, patches = b.hidden_words[:8].any(dim=1), b.hidden_patches[8:].any(dim=1)
    assert words[:k].all() and not words[k:].any() and torch.equal(patches, ~words)
    assert torch.equal(b.text[k:8], b.words[k:8]) and not torch.equal(b.text[:k], b.words[:k])
    assert b.hidden_patches[:8].any(dim=1).all() and b.hidden_words[8:].any(dim=1).all()
    with pytest.raises(ValueError, match="would hide nothing"):
        Hiding(one_side=0.5, pair_images=False)
    for none_left in (0.0, 1.0):
        with pytest.raises(ValueError, match=f"share of {none_left} of the pairs"):
            Hiding(one_side=none_left)


@pytest.mark.parametrize("share", [None, 0.5])
def test_twins_lose_what_tells_them_apart_and_other_pairs_what_they_would_lose_alone(
    share: float | None,
) -> None:
    size = CONFIG.image_size
    scenes = SceneCaptions("train", 50, size)
    plain = Streams([scenes], [PlainTexts("train")], [scenes, scenes])
    mixed = replace(plain, pairs=[scenes, SceneTwins("train", 50, size)])
    hiding = Hiding(one_side=share)
    one, other = (
        PretrainingBatches(data, 24, TextTokenizer.lab(), CONFIG, hiding, 64, seed=0)
        for data in (plain, mixed)
    )
    tokenizer = TextTokenizer.lab()
    alone: Any = one.batch(0)
    b: Any = other.batch(0)
    worded = range(8 if share is None else 4)
    for row, sample in enumerate(other.samples(0)["pairs"]):
        words, hidden = b.words[row], b.hidden_words[row]
        if row not in worded:
            assert not hidden.any() and torch.equal(b.text[row], words)
        elif row % 2:
            said, twin = sample.texts[0].split(), str(sample.info["other"]).split()
            told = [x for x, y in zip(said, twin, strict=True) if x != y]
            assert told and tokenizer.decode(words[hidden]).split() == told
            assert (b.text[row][hidden] == tokenizer.mask_id).all()
            assert torch.equal(b.text[row][~hidden], words[~hidden])
        else:
            width = min(len(words), alone.words.shape[1])
            assert torch.equal(words[:width], alone.words[row, :width]) and hidden.any()


def test_more_pairs_take_evenly_from_images_and_texts() -> None:
    source = batches(pairs=16)
    assert {name: len(found) for name, found in source.samples(1).items()} == {
        "images": 4, "pairs": 16, "texts": 4
    }  # fmt: skip
    b = source.batch(1)
    assert b.pairs == 16 and len(b.image) == len(b.text) == 20
    for wrong in (0, 24, 7):
        with pytest.raises(ValueError, match=f"{wrong} pairs in a batch of 24"):
            batches(pairs=wrong)


def test_held_out_concepts_and_compositions_are_never_seen() -> None:
    unseen = KnownEmoji(64)
    seen = {unseen.emoji.items[row][1].code for row in unseen.rows}
    for holdout in ("concept", "composition"):
        held = {concept.code for _, concept in Emoji(split="test", holdout=holdout).items}
        assert held and not held & seen
    assert not any(style == "openmoji" for style, _ in unseen.emoji.items)


def test_emoji_scenes_and_texts_of_pretraining_show_nothing_held_out() -> None:
    data = open_data(["emoji-scenes", "glosses"], 64)
    scenes, texts = data.pairs[0], data.texts[0]
    assert isinstance(scenes, SceneCaptions) and isinstance(texts, PlainTexts)
    held = {concept.name for concept in concepts() if concept.code in held_codes()}
    glosses = {concept.gloss for concept in concepts() if concept.code in held_codes()} - {None}
    assert held & set(scenes.world.kinds) and glosses & {t for _, t in PlainTexts().items}
    for i in range(300):
        scene, _, _ = scenes.scene(i)
        assert scene.style != "openmoji" and not shows_held_pair(scene)
        assert not held & {thing.kind for thing in scene.things}
    assert not glosses & {text for _, text in texts.items}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["emoji"], "no texts"),
        (["glosses"], "no images and pairs"),
        (["emojis", "glosses"], "unknown data 'emojis'"),
        (["scenes:0", "glosses"], "scenes:0"),
    ],
)
def test_unknown_or_missing_data_is_refused(names: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_data(names, 64)


def test_scenes_of_few_things_can_be_named() -> None:
    scenes = open_data(["scenes-2", "glosses"], 64).pairs[0]
    assert isinstance(scenes, SceneCaptions)
    assert {len(scenes.scene(i)[0].things) for i in range(50)} == {1, 2}
    with pytest.raises(ValueError, match="most 9 things"):
        open_data(["scenes-9", "glosses"], 64)


def test_a_weight_draws_a_dataset_more_often() -> None:
    data = open_data(["emoji", "scenes:3", "glosses"], 64)
    assert len(data.images) == len(data.pairs) == 4 and len(data.texts) == 1


def plan(steps: int) -> TrainConfig:
    return TrainConfig(
        steps=steps, batch_size=12, lr=3e-3, warmup=2, dtype="float32", log_every=1, save_every=3
    )


def test_it_learns_and_a_stopped_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    whole, records = pretrain(CONFIG, streams(), brightness, plan(12), tmp_path / "whole")
    assert records[-1]["loss"] < 0.95 * records[0]["loss"]
    pretrain(CONFIG, streams(), brightness, plan(12), tmp_path / "cut", until=5)
    again, _ = pretrain(CONFIG, streams(), brightness, plan(12), tmp_path / "cut")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    saved = from_pretrained(tmp_path / "cut/model")
    assert isinstance(saved, MaskedDataModel)
    assert torch.equal(saved.mim_head.weight, whole.mim_head.weight)


def test_thirds_and_vocabularies_must_fit(tmp_path: Path) -> None:
    odd = replace(plan(12), batch_size=10)
    with pytest.raises(ValueError, match="10 is no multiple of three"):
        pretrain(CONFIG, streams(), brightness, odd, tmp_path)
    small = replace(CONFIG, vocab_size=100)
    with pytest.raises(ValueError, match="4000 ids, the model only 100"):
        pretrain(small, streams(), brightness, plan(12), tmp_path)


def test_a_run_can_begin_with_the_weights_of_another_of_the_same_sizes(tmp_path: Path) -> None:
    model, _ = pretrain(CONFIG, streams(), brightness, plan(3), tmp_path / "one")
    still = replace(plan(3), steps=1, warmup=0, lr=0.0, min_lr=0.0)
    data = streams()
    begun, _ = pretrain(CONFIG, data, brightness, still, tmp_path / "two", start=tmp_path / "one")
    fresh, _ = pretrain(CONFIG, data, brightness, still, tmp_path / "three")
    pairs = [(begun.state_dict(), same) for same in (model.state_dict(), fresh.state_dict())]
    alike = [all(torch.equal(a[n], b[n]) for n in a) for a, b in pairs]
    assert alike == [True, False]
    other = replace(CONFIG, heads=4)
    with pytest.raises(ValueError, match=r"other sizes.*'heads': \(2, 4\)"):
        pretrain(other, data, brightness, still, tmp_path / "four", start=tmp_path / "one")
