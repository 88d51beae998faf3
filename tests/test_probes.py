"""The probes, on models that are built to know the answer, to ignore the picture, or to fail."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from minibeit3 import PRESETS, build_backbone, probes
from minibeit3.checkpoint import save_pretrained
from minibeit3.data.images import to_model
from minibeit3.data.sample import Sample
from minibeit3.data.scene_captions import SceneCaptions
from minibeit3.data.scene_words import HIDDEN, word_posterior
from minibeit3.data.scenes import Scene, from_dict
from minibeit3.objective import Guess, MaskedBatch, MaskedDataModel
from minibeit3.probes_codes import code_baselines, masked_codes, nearest_visible
from minibeit3.probes_score import derangement, score
from minibeit3.probes_text import masked_text, ngram_guesses, text_baselines
from minibeit3.probes_words import PICTURES, exact, masked_words, word_ceiling
from minibeit3.text_tokenizer import TextTokenizer
from minibeit3.visual_tokenizer import VQKD, VQKDConfig

TOKENIZER = TextTokenizer.lab()
TINY = replace(PRESETS["tiny"], depth=1, width=32, ffn_width=32, heads=2, fusion_layers=1)


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    data = SceneCaptions("test", 40)
    return [sample for sample in data if exact(sample, TOKENIZER)]


def certain(right: Tensor, targets: Tensor, classes: int) -> Guess:
    """A guess that puts everything on the ids `right`."""
    return Guess(torch.eye(classes)[right], targets, torch.ones_like(targets, dtype=torch.bool))


class Model(MaskedDataModel):
    def __init__(self) -> None:
        super().__init__(build_backbone(TINY, torch.Generator().manual_seed(0)))
        self.eval()


class Oracle(Model):
    """Recognises every picture and says the likeliest word, else the likeliest of all scenes."""

    def __init__(self, samples: list[Sample]) -> None:
        super().__init__()
        self.scenes: dict[bytes, Scene] = {}
        for sample in samples:
            assert sample.image is not None
            scene = from_dict(sample.info["scene"])  # pyright: ignore[reportArgumentType]
            self.scenes[to_model(sample.image, 64).numpy().tobytes()] = scene

    def forward(
        self, batch: MaskedBatch, generator: torch.Generator | None = None
    ) -> tuple[Guess | None, Guess | None]:
        said: list[int] = []
        assert batch.text is not None and batch.words is not None
        assert batch.text_real is not None and batch.hidden_words is not None
        for row, (ids, real) in enumerate(zip(batch.text, batch.text_real, strict=True)):
            pieces = [TOKENIZER.piece(int(i)) for i in ids[real][1:-1]]
            caption = " ".join(HIDDEN if p == "<mask>" else p.removeprefix("▁") for p in pieces)
            scene = None
            if batch.image is not None:
                scene = self.scenes.get(batch.image[row].numpy().tobytes())
            try:
                posterior = word_posterior(caption, scene)
            except ValueError:  # the picture belongs to another caption
                posterior = word_posterior(caption)
            best = [max(place, key=lambda word: place[word]) for place in posterior]
            said += [TOKENIZER.token_ids(word)[0] for word in best]
        targets = batch.words[batch.hidden_words]
        return None, certain(torch.tensor(said, dtype=torch.int64), targets, 4000)


class Blind(Model):
    """Guesses from the visible ids alone."""

    def forward(
        self, batch: MaskedBatch, generator: torch.Generator | None = None
    ) -> tuple[Guess | None, Guess | None]:
        assert batch.text is not None and batch.words is not None
        assert batch.hidden_words is not None
        likely = TOKENIZER.batch(["a and the of is large"], 32)[0][0, 1:-1]
        said = likely[batch.text.sum(1) % len(likely)][:, None].expand_as(batch.text)
        at = batch.hidden_words
        return None, certain(said[at], batch.words[at], 4000)


def test_an_oracle_reaches_the_ceiling_and_a_wrong_or_no_picture_takes_it_to_the_floor(
    samples: list[Sample],
) -> None:
    model, ceiling = Oracle(samples), word_ceiling(samples, TOKENIZER)
    found = {p: masked_words(model, samples, TOKENIZER, picture=p) for p in PICTURES}
    assert found["right"] == ceiling["seen_guess"]
    seen, blind = ceiling["seen"]["all"], ceiling["blind"]["all"]
    assert found["right"]["all"].low <= seen.accuracy <= found["right"]["all"].high
    assert found["blank"] == found["none"]
    assert found["blank"]["all"].low <= blind.accuracy <= found["blank"]["all"].high
    assert found["shuffled"]["all"].high < found["right"]["all"].low
    content = {p: found[p]["content"].accuracy for p in PICTURES}
    assert content["right"] > content["blank"] + 0.2


def test_a_model_that_ignores_the_picture_scores_the_same_with_every_picture(
    samples: list[Sample],
) -> None:
    first, *others = (masked_words(Blind(), samples, TOKENIZER, picture=p) for p in PICTURES)
    assert 0 < first["all"].accuracy < 1
    assert all(other == first for other in others)


def test_classes_divide_the_hidden_words(samples: list[Sample]) -> None:
    found = masked_words(Blind(), samples, TOKENIZER)
    parts = {name: found[name].n for name in found.keys() - {"all", "content"}}
    assert set(parts) == {"colour", "shape", "size", "relation", "count", "function"}
    assert sum(parts.values()) == found["all"].n
    assert found["content"].n == found["all"].n - found["function"].n


def test_captions_whose_ceiling_is_not_exact_are_refused(samples: list[Sample]) -> None:
    bare = replace(samples[0], texts=("two red shapes",))
    assert not exact(bare, TOKENIZER)
    assert not exact(replace(samples[0], info={}), TOKENIZER)
    with pytest.raises(ValueError, match="two red shapes"):
        word_ceiling([bare], TOKENIZER)


class Reader(Model):
    """Knows the codes of the picture that belongs to a text, and nothing without a text."""

    def __init__(self, codes: dict[int, Tensor]) -> None:
        super().__init__()
        self.codes = codes

    def forward(
        self, batch: MaskedBatch, generator: torch.Generator | None = None
    ) -> tuple[Guess | None, Guess | None]:
        assert batch.codes is not None and batch.hidden_patches is not None
        said = torch.zeros_like(batch.codes)
        if batch.text is not None:
            rows = [self.codes[int(row[row > 3].sum())] for row in batch.text]
            said = torch.stack(rows)
        at = batch.hidden_patches
        return certain(said[at], batch.codes[at], 512), None


def brightness(image: Tensor) -> Tensor:
    """A visual tokenizer: the brightness of every patch, 1 to 400."""
    return 1 + (torch.nn.functional.avg_pool2d(image.mean(1), 8).flatten(1) * 399).long()


def test_codes_are_found_by_the_right_text_only(samples: list[Sample]) -> None:
    text = {int(sum(TOKENIZER.token_ids(sample.texts[0]))): sample for sample in samples}
    own = list(text.values())
    codes = {}
    for total, sample in text.items():
        assert sample.image is not None
        codes[total] = brightness(to_model(sample.image[None], 64) / 2 + 0.5)[0]
    model = Reader(codes)
    right, wrong, none = (
        masked_codes(model, own, TOKENIZER, brightness, text=t)
        for t in ("right", "shuffled", "none")
    )
    assert (right.accuracy, none.accuracy) == (1, 0)
    assert 0 < wrong.accuracy < 1
    assert right.n == len(own) * round(0.4 * 64)


def test_the_nearest_visible_code_and_the_mode_are_those_computed_by_hand() -> None:
    codes = torch.tensor([[10, 11, 12, 13, 14, 15, 16, 17, 18]])
    hidden = torch.tensor([[False, True, True, True, True, True, False, True, False]])
    copied = nearest_visible(codes, hidden, 3)
    assert copied.tolist() == [[10, 10, 10, 10, 10, 18, 16, 16, 18]]
    with pytest.raises(ValueError, match="no visible patch"):
        nearest_visible(codes, torch.ones_like(hidden), 3)
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    grey = Sample(key="grey", image=image + 90)
    halves = Sample(key="halves", image=torch.cat([image[:, :32], image[:, 32:] + 90], 1))
    found = code_baselines([halves], [grey], brightness, 64)
    hidden_in_lower = found["global_mode"].accuracy * found["global_mode"].n
    assert hidden_in_lower == pytest.approx(round(hidden_in_lower))
    assert code_baselines([grey], [grey], brightness, 64)["nearest_visible"].accuracy == 1
    assert code_baselines([grey], [grey], brightness, 64)["global_mode"].accuracy == 1


def test_the_ngram_model_uses_the_longest_context_and_falls_back_to_frequency() -> None:
    training = [[0, 10, 11, 12], [0, 10, 11, 12], [0, 20, 11, 13], [0, 13, 13, 13, 13]]
    contexts = [(10, 11), (20, 11), (11,), (99,), ()]
    common, guesses = ngram_guesses(contexts, training, 100)
    assert common == 13
    assert guesses == [12, 13, 12, 13, 13]


def test_text_baselines_rank_as_they_must_on_a_text_that_repeats() -> None:
    texts = ["a large cat sleeps in the red house", "the red house is a large house"] * 20
    found = text_baselines(texts, texts, TOKENIZER)
    assert found["ngram"].accuracy > 0.7 > found["unigram"].accuracy > 0
    assert masked_text(Blind(), texts, TOKENIZER).n == found["ngram"].n


@pytest.mark.parametrize("n", [2, 3, 10, 101])
def test_shuffling_leaves_nothing_in_its_place(n: int) -> None:
    order = derangement(n, torch.Generator().manual_seed(n))
    assert sorted(order.tolist()) == list(range(n))
    assert (order != torch.arange(n)).all()
    with pytest.raises(ValueError, match="at least 2"):
        derangement(1, torch.Generator())


def test_the_interval_knows_that_places_of_one_sample_belong_together() -> None:
    right = torch.arange(400) % 40 < 20
    alone = score(right, torch.arange(400))
    together = score(right, torch.arange(400) // 20)
    assert alone.accuracy == together.accuracy == 0.5
    assert together.high - together.low > 3 * (alone.high - alone.low)
    assert alone.low == pytest.approx(0.45, abs=0.01)
    with pytest.raises(ValueError, match="nothing was hidden"):
        score(right[:0], torch.arange(0))


def test_wrong_names_and_train_mode_are_refused(samples: list[Sample]) -> None:
    with pytest.raises(ValueError, match="'dark': choose one of right"):
        masked_words(Blind(), samples, TOKENIZER, picture="dark")
    with pytest.raises(ValueError, match=r"model\.eval"):
        masked_words(Model().train(), samples, TOKENIZER)
    with pytest.raises(ValueError, match="without a picture"):
        masked_words(Model(), [Sample(key="k", texts=("a cat",))], TOKENIZER)


@pytest.mark.slow
def test_the_command_writes_every_figure_with_machine_and_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probes, "HOLDOUTS", ("size",))
    save_pretrained(Model(), tmp_path / "model", TOKENIZER)
    tokenizer = VQKD(
        VQKDConfig(
            image_size=64,
            patch=8,
            width=16,
            ffn_width=16,
            heads=1,
            depth=1,
            decoder_depth=1,
            codes=512,
            code_dim=4,
            teacher_dim=4,
        )
    )
    tokenizer.codebook.start(torch.nn.functional.normalize(torch.randn(600, 4), dim=-1))
    tokenizer.save_pretrained(tmp_path / "vqkd")
    out = tmp_path / "results" / "tiny.json"
    line = f"{tmp_path} --visual-tokenizer {tmp_path / 'vqkd'} --out {out}"
    few = " --samples 4 --texts 4 --ngram-texts 50"
    probes.main((line + few).split())
    result = json.loads(out.read_text())
    assert set(result) >= {"goals", "machine", "commit", "command", "seeds", "budget"}
    assert result["command"].startswith("python -m minibeit3.probes")
    assert {"right", "seen", "blind"} <= set(result["words"]["scenes/size/test"])
    assert {"right", "none", "global_mode"} <= set(result["codes"]["emoji/style"])
    by_share = result["codes_by_share_hidden"]["scenes/test"]
    assert all(set(scores) == {"right", "shuffled", "none"} for scores in by_share.values())
    asked = [by_share[share]["right"]["n"] for share in ("0.6", "0.8", "0.9")]
    assert result["codes"]["scenes/test"]["right"]["n"] < asked[0] < asked[1] < asked[2]
    assert set(result["texts"]) == {"model", "unigram", "ngram"}
    assert result["goals"]["words_with_picture_of_ceiling"]["met"] is False
    with pytest.raises(ValueError, match="neither a model nor a checkpoint"):
        probes.open_model(tmp_path / "results")
