"""Decoding by tables, where every answer can be listed, and by captioners with caches."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise, product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minibeit3 import few_rows as few_rows_module
from minibeit3.backbones import build_backbone
from minibeit3.cache import LayerCache
from minibeit3.config import BEiT3Config
from minibeit3.decoding import Score, beam_search, decode, nucleus
from minibeit3.modes import ImageCaptioner, hide_words, seq2seq

PAPER = BEiT3Config(
    depth=3, width=24, ffn_width=48, heads=2, fusion_layers=1, image_size=16, patch_size=4,
    max_text_length=12, vocab_size=20,
)  # fmt: skip
CONFIGS = {"paper": PAPER, "released": replace(PAPER, variant="released", fusion_layers=0)}
IMAGE = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
BOS, PAD, EOS, MASK = 0, 1, 2, 19

both_variants = pytest.mark.parametrize("variant", CONFIGS)


def captioner(variant: str) -> ImageCaptioner:
    """Random weights, large enough for opinions about the next word."""
    generator = torch.Generator().manual_seed(6)
    model = ImageCaptioner(build_backbone(CONFIGS[variant], generator), generator=generator)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    return model.eval()


def recomputed(model: ImageCaptioner, image: Tensor) -> Score:
    """The scorer without caches: the whole caption and <mask> at every step."""

    def score(ids: Tensor, rows: Tensor | None) -> Tensor:
        which = torch.arange(len(image)).repeat_interleave(len(ids) // len(image))
        masks = torch.full_like(ids[:, :1], model.mask_id)
        return model(image[which], torch.cat([ids, masks], dim=1))[:, -1]

    return score


@both_variants
@torch.no_grad()
def test_caches_score_as_full_recomputation_does(variant: str) -> None:
    model, generator = captioner(variant), torch.Generator().manual_seed(1)
    cached, full = model.scorer(IMAGE), recomputed(model, IMAGE)
    rows = torch.arange(3).repeat_interleave(2)
    ids = torch.full((6, 1), BOS)
    for _ in range(5):
        torch.testing.assert_close(cached(ids, rows), full(ids, None), rtol=1e-5, atol=1e-5)
        rows = torch.tensor([0, 0, 3, 2, 5, 4])  # rows change places within their image
        words = torch.randint(3, 19, (6, 1), generator=generator)
        ids = torch.cat([ids[rows], words], dim=1)


@both_variants
@torch.no_grad()
def test_products_of_few_rows_leave_the_scores_as_they_are(
    variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (few_rows_module, seq2seq):
        monkeypatch.setattr(module, "LARGE", 1)
    model, ids = captioner(variant), torch.full((3, 1), BOS)
    torch.testing.assert_close(
        model.scorer(IMAGE)(ids, None), recomputed(model, IMAGE)(ids, None), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("shape", [(1, 1024), (3, 1024), (2, 4, 1024)])
@torch.no_grad()
def test_a_large_matrix_times_few_rows_is_the_plain_product(shape: tuple[int, ...]) -> None:
    g = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(s, generator=g) for s in (shape, (1030, 1024), (1030,)))
    with few_rows_module.few_rows():
        found = F.linear(x, weight, bias)
    torch.testing.assert_close(found, F.linear(x, weight, bias), rtol=1e-4, atol=1e-4)


def test_other_products_are_left_to_torch() -> None:
    x, weight = torch.randn(8, 1024), torch.randn(1024, 1024)
    may = few_rows_module.reads_once
    both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    with torch.no_grad():
        assert may(x, weight) == both
        others = (torch.randn(9, 1024), weight), (x, weight[:-1]), (x.double(), weight.double())
        assert not any(may(*other) for other in others)
        with torch.autocast("cpu"):
            assert not may(x, weight)
    assert not may(x, weight)  # mkldnn tensors are not for gradients


@both_variants
def test_keys_and_values_of_an_image_are_kept_once_for_all_its_beams(
    variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = []

    class Watched(LayerCache):
        def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            k, v = super().extend(k, v)
            kept.append((len(k), len(v), k.shape[2]))
            return k, v

    monkeypatch.setattr(seq2seq, "LayerCache", Watched)
    model = captioner(variant)
    with torch.no_grad():
        model.mlm_head.bias[EOS] = -1e4
    model.generate(IMAGE, max_length=8, beams=4)
    layers, image_tokens = 3, 17
    steps = [image_tokens + 4 * (t + 1) for t in range(1, 7)]  # one word a step, and the masks
    assert kept == [(3, 3, size) for size in (image_tokens, *steps) for _ in range(layers)]


@torch.no_grad()
def test_a_row_that_continues_another_image_s_caption_is_named() -> None:
    score = captioner("paper").scorer(IMAGE)
    score(torch.full((6, 1), BOS), torch.arange(3).repeat_interleave(2))
    with pytest.raises(ValueError, match="of 3 images"):
        score(torch.full((6, 2), BOS), torch.tensor([0, 2, 1, 3, 4, 5]))


@both_variants
@pytest.mark.parametrize("beams", [1, 3])
@torch.no_grad()
def test_captions_by_caches_are_those_by_recomputation(variant: str, beams: int) -> None:
    model = captioner(variant)
    start, full = torch.full((3, 1), BOS), recomputed(model, IMAGE)
    if beams == 1:
        found = list(decode(full, start, EOS, words=6))
    else:
        found = beam_search(full, start, EOS, beams, max_length=9, length_penalty=0.6)
    expected = [[i for i in ids.tolist() if i not in (BOS, PAD, EOS, MASK)] for ids in found]
    assert model.generate(IMAGE, max_length=9, beams=beams) == expected
    assert len({tuple(ids) for ids in expected}) > 1


@torch.no_grad()
def test_the_image_is_encoded_once_and_not_once_per_beam() -> None:
    model, sizes = captioner("paper"), []
    embed = model.backbone.image_embed
    embed.register_forward_hook(lambda module, call, out: sizes.append(len(out)))
    model.generate(IMAGE, max_length=8, beams=4)
    assert sizes == [3]


def test_generating_leaves_the_model_as_it_was_and_ignores_stochastic_depth() -> None:
    config = replace(PAPER, drop_path=0.9)
    model = ImageCaptioner(build_backbone(config, torch.Generator().manual_seed(0))).train()
    model.backbone.blocks[0].eval()
    modes = [module.training for module in model.modules()]
    assert model.generate(IMAGE) == model.generate(IMAGE) == model.eval().generate(IMAGE)
    model.train()
    model.backbone.blocks[0].eval()
    model.generate(IMAGE)
    assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"max_length": 3}, "4..12"),
        ({"max_length": 13}, "4..12"),
        ({"max_length": 9, "beams": 0}, "beams 0"),
        ({"max_length": 9, "length_penalty": -1.0}, "length_penalty -1.0"),
        ({"max_length": 9, "temperature": 1.0}, "generator="),
    ],
)
def test_impossible_ways_to_generate_are_named(arguments: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        partial(captioner("paper").generate, **arguments)(IMAGE)  # pyright: ignore[reportArgumentType]


def test_sampled_captions_follow_the_generator() -> None:
    model = captioner("paper")

    def sampled(seed: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(seed)
        return model.generate(IMAGE, max_length=12, temperature=2.0, generator=generator)

    assert sampled(0) == sampled(0)
    assert sampled(0) != sampled(1)


@both_variants
@torch.no_grad()
def test_a_word_sees_the_image_and_its_past_only(variant: str) -> None:
    model = captioner(variant)
    text = torch.randint(3, 19, (3, 6), generator=torch.Generator().manual_seed(2))
    later = text.clone()
    later[:, 3] = 3 + (text[:, 3] - 2) % 16
    before, after = model(IMAGE, text), model(IMAGE, later)
    torch.testing.assert_close(before[:, :3], after[:, :3])
    assert not any(torch.allclose(before[:, i], after[:, i], atol=1e-4) for i in (3, 4, 5))
    assert not torch.allclose(before, model(IMAGE.flip(0), text), atol=1e-4)


def table(seed: int, images: int, words: int, peaked: float = 2.0) -> tuple[Score, Tensor]:
    """A scorer whose logits depend on image, place and last word, and its table."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, 8, words, words, generator=generator) * peaked

    def score(ids: Tensor, rows: Tensor | None) -> Tensor:
        image = torch.arange(images).repeat_interleave(len(ids) // images)
        return logits[image, ids.shape[1], ids[:, -1]]

    return score, logits


@settings(max_examples=20)
@given(seed=st.integers(0, 200), penalty=st.sampled_from([0.0, 0.6, 2.0]))
def test_beams_that_hold_everything_find_the_best_caption(seed: int, penalty: float) -> None:
    score, logits = table(seed, images=2, words=4)
    start, longest = torch.full((2, 1), BOS), 4  # words; max_length has 3 places more
    found = beam_search(score, start, EOS, 4**longest, longest + 3, penalty)
    log_p = logits.log_softmax(dim=-1)
    for image, caption in enumerate(found):
        scores = {}
        for count in range(longest + 1):
            for words in product([0, 1, 3], repeat=count):
                ids = [BOS, *words]
                parts = [log_p[image, i + 1, a, b] for i, (a, b) in enumerate(pairwise(ids))]
                last = log_p[image, len(ids), ids[-1]]
                end = last.max() if count == longest else last[EOS]
                scores[tuple(ids)] = float(sum(parts) + end) / (len(ids) + 1) ** penalty
        assert scores[tuple(caption.tolist())] == pytest.approx(max(scores.values()), abs=1e-5)


def test_more_beams_find_a_caption_that_greedy_misses() -> None:
    logits = torch.full((5, 5), -20.0)
    logits[BOS, 3], logits[BOS, 4] = 0.0, -0.1  # 3 looks better at first, then has no good end
    logits[3] = 0.0
    logits[4, EOS] = 0.0

    def score(ids: Tensor, rows: Tensor | None) -> Tensor:
        return logits[ids[:, -1]]

    start = torch.full((1, 1), BOS)
    assert decode(score, start, EOS, words=1).tolist() == [[BOS, 3]]
    assert beam_search(score, start, EOS, 2, 8, 0.0)[0].tolist() == [BOS, 4]


def test_a_length_penalty_favours_longer_captions() -> None:
    score, _ = table(5, images=8, words=6, peaked=1.0)
    start = torch.full((8, 1), BOS)
    short, long = (
        sum(len(ids) for ids in beam_search(score, start, EOS, 6, 8, penalty))
        for penalty in (0.0, 2.0)
    )
    assert short < long


def test_greedy_stops_where_every_caption_has_ended() -> None:
    ends_at = torch.tensor([1, 3])
    calls = []

    def score(ids: Tensor, rows: Tensor | None) -> Tensor:
        calls.append(ids.shape[1])
        word = torch.full_like(ends_at, 4).masked_fill(ends_at == ids.shape[1], EOS)
        return torch.eye(6)[word]

    ids = decode(score, torch.full((2, 1), BOS), EOS, words=9)
    assert ids.tolist() == [[BOS, EOS, EOS, EOS], [BOS, 4, 4, EOS]]
    assert calls == [1, 2, 3]


@pytest.mark.parametrize(
    ("temperature", "top_p", "expected"),
    [
        (1.0, 1.0, [0.5, 0.3, 0.15, 0.05]),
        (1.0, 0.7, [0.625, 0.375, 0, 0]),
        (0.5, 1.0, [0.25 / 0.365, 0.09 / 0.365, 0.0225 / 0.365, 0.0025 / 0.365]),
        (1.0, 1e-6, [1.0, 0, 0, 0]),
    ],
)
def test_nucleus_draws_by_the_truncated_probabilities(
    temperature: float, top_p: float, expected: list[float]
) -> None:
    order = [2, 0, 3, 1]
    logits = torch.tensor([0.3, 0.05, 0.5, 0.15]).log().expand(20_000, 4)
    drawn = nucleus(logits, temperature, top_p, torch.Generator().manual_seed(0))
    share = torch.bincount(drawn, minlength=4)[order] / len(drawn)
    torch.testing.assert_close(share, torch.tensor(expected), atol=0.015, rtol=0)


@pytest.mark.parametrize(("temperature", "top_p"), [(0.0, 1.0), (1.0, 0.0), (1.0, 1.5)])
def test_nucleus_refuses_impossible_numbers(temperature: float, top_p: float) -> None:
    with pytest.raises(ValueError, match="top_p"):
        nucleus(torch.zeros(1, 3), temperature, top_p, torch.Generator())


LENGTHS = st.lists(st.integers(2, 12), min_size=1, max_size=6)


def caption_batch(lengths: list[int]) -> tuple[Tensor, Tensor]:
    real = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    text = torch.full(real.shape, 7).masked_fill(~real, PAD)
    text[:, 0] = BOS
    text[torch.arange(len(lengths)), torch.tensor(lengths) - 1] = EOS
    return text, real


@given(lengths=LENGTHS, ratio=st.floats(0.05, 1.0), seed=st.integers(0, 99))
def test_the_exact_share_of_words_hides_and_nothing_else_changes(
    lengths: list[int], ratio: float, seed: int
) -> None:
    text, real = caption_batch(lengths)
    shown, hidden = hide_words(text, real, ratio, 20, torch.Generator().manual_seed(seed))
    expected = [min(max(int(n * ratio + 0.5), 1), n - 1) for n in lengths]
    assert hidden.sum(dim=1).tolist() == expected
    assert not hidden[:, 0].any()
    assert not (hidden & ~real).any()
    assert torch.equal(shown[~hidden], text[~hidden])
    again, where = hide_words(text, real, ratio, 20, torch.Generator().manual_seed(seed))
    assert torch.equal(again, shown)
    assert torch.equal(where, hidden)


def test_hidden_words_show_mask_or_themselves_or_any_word_by_8_to_1_to_1() -> None:
    text, real = caption_batch([12] * 4000)
    shown, hidden = hide_words(text, real, 0.5, 1000, torch.Generator().manual_seed(0), mask_id=998)
    at = shown[hidden]
    same = at == text[hidden]
    share = torch.stack([at == 998, same, ~same & (at != 998)]).float().mean(dim=1)
    torch.testing.assert_close(share, torch.tensor([0.8, 0.1, 0.1]), atol=0.01, rtol=0)
    random = at[~same & (at != 998)]
    assert random.min() == 3
    assert random.max() >= 995
    place = hidden.float().mean(dim=0)
    torch.testing.assert_close(place[1:], torch.full((11,), 6 / 11), atol=0.03, rtol=0)


def test_a_caption_without_words_hides_nothing() -> None:
    text = torch.tensor([[BOS, PAD, PAD], [PAD, PAD, PAD]])
    shown, hidden = hide_words(text, text != PAD, 0.5, 20, torch.Generator())
    assert torch.equal(shown, text)
    assert not hidden.any()


def test_hide_words_names_bad_input() -> None:
    text, real = caption_batch([5])
    hide: Callable[..., object] = partial(hide_words, vocab=20, generator=torch.Generator())
    with pytest.raises(ValueError, match="ratio"):
        hide(text, real, ratio=0.0)
    with pytest.raises(ValueError, match="text_real"):
        hide(text, real.long(), ratio=0.5)


def test_the_loss_reads_hidden_places_only() -> None:
    model = captioner("paper")
    text, real = caption_batch([9, 7, 5])
    shown, hidden = hide_words(text, real, 0.6, 20, torch.Generator().manual_seed(0))
    loss = partial(model.loss, IMAGE, shown, real, hidden)
    expected = loss(text)
    assert torch.equal(loss(torch.where(hidden, text, 5)), expected)
    assert not torch.equal(loss(torch.where(hidden, 5, text)), expected)
    assert loss(text, iteration=12_000) == expected
    assert loss(text, iteration=12_001) < expected
    with pytest.raises(ValueError, match="hide_words"):
        model.loss(IMAGE, shown, real, torch.zeros_like(hidden), text)


@both_variants
def test_a_captioner_trained_on_three_captions_says_them(variant: str) -> None:
    generator = torch.Generator().manual_seed(0)
    config = replace(CONFIGS[variant], depth=2, drop_path=0.0)
    model = ImageCaptioner(build_backbone(config, generator), generator=generator)
    captions = [[5, 6, 7, 8], [9, 6], [10, 11, 5, 5, 12]]
    text, real = caption_batch([len(words) + 2 for words in captions])
    for row, words in enumerate(captions):
        text[row, 1 : 1 + len(words)] = torch.tensor(words)
    text, real, image = text.repeat(6, 1), real.repeat(6, 1), IMAGE.repeat(6, 1, 1, 1)
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(80):
        shown, hidden = hide_words(text, real, 0.7, 20, generator)
        loss = model.loss(image, shown, real, hidden, text)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    for beams in (1, 3):
        assert model.generate(IMAGE, max_length=12, beams=beams) == captions
