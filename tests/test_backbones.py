"""Properties of both backbones: shapes, streams, routes, visibility, initial values, bad input."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from minibeit3 import PRESETS, BEiT3Config, build_backbone, count_parameters, preset, routing_table
from minibeit3.attention import attend, attention_pattern
from minibeit3.cache import LayerCache
from minibeit3.embed import Streams
from minibeit3.routing import Expert, Route, routes_for
from minibeit3.visibility import caption_rule

VARIANTS = ("paper", "released")
SMALL = BEiT3Config(
    depth=3,
    width=48,
    ffn_width=96,
    heads=4,
    fusion_layers=1,
    image_size=32,
    patch_size=8,
    max_text_length=20,
    vocab_size=97,
    visual_vocab_size=31,
)


def small(variant: str) -> Any:  # either backbone, whose parts a type checker cannot know
    config = SMALL if variant == "paper" else replace(SMALL, variant="released", fusion_layers=0)
    return build_backbone(config, torch.Generator().manual_seed(0)).eval()


def inputs(images: int = 3, texts: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    image = torch.randn(images, 3, 32, 32, generator=g)
    text = torch.randint(3, 97, (texts, 10), generator=g)
    real = torch.arange(10)[None] < torch.randint(4, 11, (texts, 1), generator=g)
    return image, text, real


# Parameters ------------------------------------------------------------------------------------


def test_giant_has_the_parameters_of_the_papers_table_2() -> None:
    counts = count_parameters(PRESETS["giant"])
    assert counts["vision_experts"] == counts["language_experts"] == 692_362_240
    assert counts["vl_experts"] == 51_927_168
    assert counts["attention"] == 317_419_520
    assert round(counts["backbone"] / 1e6, 1) == 1_847.2
    assert round(counts["total"] / 1e6, 1) == 1_948.9


@pytest.mark.parametrize(("name", "size"), [("base", 276_510_730), ("large", 746_709_514)])
def test_released_presets_have_the_sizes_of_the_pretrained_files(name: str, size: int) -> None:
    assert count_parameters(preset(name, "released"))["total"] == size


@pytest.mark.parametrize("name", ["base", "large"])
def test_paper_sized_base_and_large_have_the_stated_backbones(name: str) -> None:
    millions = {"base": 201.9, "large": 596.6}[name]
    assert round(count_parameters(PRESETS[name])["backbone"] / 1e6, 1) == millions


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_parts_add_up_to_the_backbone(variant: str) -> None:
    model = small(variant)
    counts = count_parameters(model.config)
    assert counts["backbone"] == sum(p.numel() for p in model.parameters())


# Streams ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_mixed_pass_equals_three_separate_passes(variant: str) -> None:
    model = small(variant)
    image, text, real = inputs(images=5, texts=6)
    hidden = torch.rand(5, 16, generator=torch.Generator().manual_seed(2)) < 0.4
    mixed = model(image, text, real, hidden, pairs=3)
    alone = model(image=image[:2], hidden_patches=hidden[:2])
    pairs = model(image[2:], text[:3], real[:3], hidden[2:])
    texts = model(text=text[3:], text_real=real[3:])
    torch.testing.assert_close(mixed.image, torch.cat([alone.image, pairs.image]))
    torch.testing.assert_close(mixed.text, torch.cat([pairs.text, texts.text]))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_missing_modality_gives_none(variant: str) -> None:
    image, text, _ = inputs()
    assert small(variant)(image=image).text is None
    assert small(variant)(text=text).image is None


@pytest.mark.parametrize("variant", VARIANTS)
def test_padding_words_change_nothing(variant: str) -> None:
    model, (image, text, real) = small(variant), inputs()
    other = torch.where(real, text, (text + 5) % 97)
    first, second = model(image, text, real), model(image, other, real)
    torch.testing.assert_close(first.image, second.image)
    torch.testing.assert_close(first.text[real], second.text[real])
    cut = int(real.sum(dim=1).min())
    short = model(image[:1], text[:1, : int(real[0].sum())])
    torch.testing.assert_close(first.image[:1], short.image)
    assert cut < 10


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("with_image", [True, False])
def test_a_text_of_only_padding_stays_finite(variant: str, with_image: bool) -> None:
    image, text, real = inputs()
    real[1] = False
    out = small(variant)(image if with_image else None, text, real)
    assert out.text.isfinite().all()
    whole = small(variant)(image[:1] if with_image else None, text[:1], real[:1])
    torch.testing.assert_close(out.text[:1], whole.text)


@pytest.mark.parametrize("variant", VARIANTS)
def test_nothing_of_a_hidden_patch_reaches_the_model(variant: str) -> None:
    model, (image, _, _) = small(variant), inputs()
    hidden = torch.zeros(3, 16, dtype=torch.bool)
    hidden[:, 5] = True
    other = image.clone()
    other[:, :, 8:16, 8:16] += 3  # patch 5 of a 4 x 4 grid
    same = model(image, hidden_patches=hidden).image, model(other, hidden_patches=hidden).image
    torch.testing.assert_close(*same)
    assert not torch.allclose(model(image).image, model(other).image)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_caption_rule_hides_the_future_and_keeps_words_from_images(variant: str) -> None:
    model, (image, text, _) = small(variant), inputs()
    rule = caption_rule(17, 10)
    changed = text.clone()
    changed[:, 6:] = (changed[:, 6:] + 1) % 97
    first, second = (model(image, t, visible=rule) for t in (text, changed))
    torch.testing.assert_close(first.image, second.image)
    torch.testing.assert_close(first.text[:, :6], second.text[:, :6])
    assert not torch.allclose(first.text[:, 6], second.text[:, 6])


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_cache_continues_a_text_where_it_stopped(variant: str) -> None:
    model, (image, text, _) = small(variant), inputs()
    whole = model(image, text, visible=caption_rule(17, 10))
    cache = [LayerCache() for _ in range(3)]
    routes = routes_for(model.config, paired=True)
    model.encode(model.embed(image), routes=routes, cache=cache)
    model.encode(
        model.embed(text=text[:, :7]),
        visible=caption_rule(17, 7)[17:],
        routes=routes,
        cache=cache,
    )
    tail = model.embed(text=text[:, 7:], text_start=7)
    out = model.encode(tail, visible=caption_rule(17, 10)[24:], routes=routes, cache=cache)
    torch.testing.assert_close(out.text, whole.text[:, 7:])


@pytest.mark.parametrize("variant", VARIANTS)
def test_recomputation_gives_the_same_gradients(variant: str) -> None:
    model, (image, text, real) = small(variant).train(), inputs()
    grads = []
    for recompute in (False, True):
        model.zero_grad()
        x = model.embed(image, text)
        g = torch.Generator().manual_seed(3)
        out = model.encode(x, real, generator=g, recompute=recompute)
        (out.image.square().mean() + out.text.square().mean()).backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for plain, again in zip(*grads, strict=True):
        torch.testing.assert_close(plain, again)


# Routes ----------------------------------------------------------------------------------------


def touched(model: Any, out: Streams) -> set[str]:
    model.zero_grad()
    torch.stack([s.square().sum() for s in out if s is not None]).sum().backward()
    names = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum()}
    return {f"{n.split('.')[1]}{n.split('.')[4]}" for n in names if ".ffn.experts." in n}


def test_the_routing_table_names_exactly_the_experts_that_get_gradients() -> None:
    model, (image, text, _) = small("paper"), inputs()
    for lengths, out in {
        (17, 0): model(image=image),
        (0, 10): model(text=text),
        (17, 10): model(image, text),
    }.items():
        table = routing_table(model.config, *lengths)
        assert [len(row) for row in table] == [sum(lengths)] * 3
        expected = {f"{layer}{expert}" for layer, row in enumerate(table) for expert in row}
        assert touched(model, out) == expected
    assert touched(model, model(image=image)) == {"0V", "1V", "2V"}
    assert touched(model, model(image, text)) == {"0V", "1V", "0L", "1L", "2VL"}


def test_only_the_top_layers_own_a_vision_language_expert() -> None:
    model: Any = build_backbone(replace(SMALL, fusion_layers=2))
    owners = [list(block.ffn.experts) for block in model.blocks]
    assert owners == [["V", "L"], ["V", "L", "VL"], ["V", "L", "VL"]]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_text_never_touches_vision_weights_nor_an_image_language_weights(variant: str) -> None:
    model, (image, text, _) = small(variant), inputs()
    for out, other in ((model(image=image).image, "L"), (model(text=text).text, "V")):
        model.zero_grad()
        out.sum().backward()
        used = [n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()]
        assert not [n for n in used if f".experts.{other}." in n]


def test_an_own_route_sends_the_image_through_another_expert() -> None:
    model, (image, _, _) = small("paper"), inputs()
    astray = [Route(Expert.L, Expert.L)] * 3
    assert not torch.allclose(model(image=image).image, model(image=image, routes=astray).image)
    assert touched(model, model(image=image, routes=astray)) == {"0L", "1L", "2L"}


def test_spans_send_single_tokens_astray_and_equal_a_loop_over_tokens() -> None:
    model = small("paper")
    experts, x = model.blocks[0].ffn, torch.randn(2, 17, 48)
    spans = ((Expert.V, 5), (Expert.L, 1), (Expert.V, 11))
    loop = [experts.experts["L" if i == 5 else "V"](x[:, i : i + 1]) for i in range(17)]
    torch.testing.assert_close(experts.dispatch(x, spans), torch.cat(loop, dim=1))


@pytest.mark.parametrize("spans", [((Expert.V, 16),), ((Expert.V, 9), (Expert.L, 9)), ()])
def test_a_route_that_does_not_tile_the_tokens_is_refused(spans: tuple) -> None:
    with pytest.raises(ValueError, match="17"):
        small("paper")(image=inputs()[0], routes=[Route(spans, Expert.L)] * 3)


def test_wrong_numbers_of_routes_and_missing_experts_are_refused() -> None:
    image = inputs()[0]
    with pytest.raises(ValueError, match="2 routes for 3 layers"):
        small("paper")(image=image, routes=[Route(Expert.V, Expert.L)] * 2)
    with pytest.raises(ValueError, match="VL"):
        small("released")(image=image, routes=[Route(Expert.VL, Expert.L)] * 3)


# Attention -------------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True])
def test_the_fast_attention_equals_its_formula(masked: bool) -> None:
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 7, 8, generator=g) for _ in range(3))
    visible = torch.rand(2, 1, 7, 7, generator=g) < 0.7 if masked else None
    if visible is not None:
        visible[..., 0] = True
    pattern = attention_pattern(q, k, visible)
    torch.testing.assert_close(pattern.sum(dim=-1), torch.ones(2, 3, 7))
    x = torch.stack([q, k, v], dim=2).permute(0, 3, 2, 1, 4).flatten(2)  # (B, S, three H K)
    heads_apart = attend(x, visible, heads=3).unflatten(2, (3, 8)).transpose(1, 2)
    torch.testing.assert_close(heads_apart, pattern @ v)


def test_the_matmul_attention_for_bf16_training_equals_the_fused_one() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(1, 5, 48, generator=g)
    half = attend(x.bfloat16().requires_grad_(), None, heads=2)
    torch.testing.assert_close(half.float(), attend(x, None, heads=2), atol=0.03, rtol=0.03)


# Initial values --------------------------------------------------------------------------------


def test_paper_weights_start_as_beits_with_depth_scaled_outputs() -> None:
    config = replace(SMALL, width=192, ffn_width=384, depth=4)
    model = build_backbone(config, torch.Generator().manual_seed(0))
    cut = 0.02 * 0.5396  # deviation of a normal cut at one deviation
    for name, p in model.named_parameters():
        kind = name.split(".")[-2]
        if p.ndim == 1 and name.endswith("bias"):
            assert not p.any(), name
        elif "norm" in name:
            assert (p == 1).all(), name
        elif name == "image_embed.patch.weight":  # uniform, as torch starts a convolution
            bound = p[0].numel() ** -0.5
            assert 0.99 * bound < p.abs().max() <= bound
            assert p.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
        else:
            writes = kind in ("out", "fc2")
            scale = math.sqrt(2 * (int(name.split(".")[1]) + 1)) if writes else 1
            few = 0.35 if p.ndim == 1 else 0.05
            assert p.std().item() == pytest.approx(cut / scale, rel=few), name
            assert p.abs().max() <= 0.02 / scale + 1e-8


def test_released_weights_start_with_magnetos_gain() -> None:
    config = replace(SMALL, width=192, ffn_width=384, variant="released", fusion_layers=0)
    model: Any = build_backbone(config, torch.Generator().manual_seed(0))
    gain, plain = math.sqrt(math.log(2 * 3)), 0.02 * 0.5396
    block = model.blocks[1]
    q, k, v = block.attn.project_in.experts["V"].qkv.weight.chunk(3)
    expert = block.ffn.experts["L"]
    out = block.attn.project_out.experts["L"].out.weight
    for weight, expected in ((q, 1), (k, 1), (v, gain), (out, gain), (expert.fc2.weight, gain)):
        assert weight.std().item() == pytest.approx(expected * plain, rel=0.05)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_same_seed_gives_the_same_weights(variant: str) -> None:
    first, second = small(variant).state_dict(), small(variant).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_stochastic_depth_drops_whole_samples_pairs_together_and_rises_with_depth() -> None:
    from minibeit3.init import stochastic_depth

    x = Streams(torch.zeros(900, 2, 4), torch.zeros(1000, 3, 4))
    scales = stochastic_depth(0.4, 3, x, 700, torch.Generator().manual_seed(0))
    kept = []
    for first, _ in scales:
        assert first is not None and first.image is not None and first.text is not None
        assert torch.equal(first.image[200:], first.text[:700])  # the pairs
        kept.append((first.text > 0).float().mean().item())
        assert first.text.mean().item() == pytest.approx(1, abs=0.08)
    assert kept == pytest.approx([1.0, 0.8, 0.6], abs=0.05)


def test_evaluation_drops_nothing_and_training_does() -> None:
    model, image = small("paper"), inputs()[0]
    torch.testing.assert_close(model(image=image).image, model(image=image).image)
    model: Any = build_backbone(replace(SMALL, drop_path=0.9)).train()
    x = model.embed(image.repeat(8, 1, 1, 1))
    one, two = (model.encode(x, generator=torch.Generator().manual_seed(s)).image for s in (0, 1))
    assert not torch.allclose(one, two)


# Bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": torch.zeros(3, 3, 40, 40)}, r"\(3, 3, 40, 40\).*32"),
        ({"image": torch.zeros(3, 1, 32, 32)}, r"\(3, 1, 32, 32\)"),
        ({"image": torch.zeros(3, 32, 32)}, "image is"),
        ({"image": torch.zeros(3, 3, 32, 32, dtype=torch.uint8)}, "uint8"),
        ({"text": torch.zeros(3, 21, dtype=torch.int64), "text_real": None}, "table has 20"),
        ({"text": torch.full((3, 10), 97)}, r"97 leave the vocabulary 0\.\.96"),
        ({"text": torch.full((3, 10), -1)}, "-1"),
        ({"text": torch.zeros(3, 10)}, "float32"),
        ({"text": torch.zeros(3, 0, dtype=torch.int64), "text_real": None}, "length > 0"),
        ({"text_real": torch.ones(3, 9, dtype=torch.bool)}, r"\(3, 9\)"),
        ({"text_real": torch.ones(3, 10)}, "float32"),
        ({"hidden_patches": torch.zeros(3, 15, dtype=torch.bool)}, r"\(3, 15\).*\(3, 16\)"),
        ({"hidden_patches": torch.zeros(3, 16)}, "float32"),
        ({"pairs": 4}, "4 pairs"),
        ({"image": torch.zeros(2, 3, 32, 32)}, "2 images and 3 texts"),
        ({"image": None, "text": None, "text_real": None}, "neither image nor text"),
        ({"image": None, "pairs": 2}, "2 pairs"),
        ({"pairs": 2, "visible": torch.ones(27, 27, dtype=torch.bool)}, "visible"),
    ],
)
def test_bad_calls_name_the_value_and_the_limit(variant: str, change: dict, message: str) -> None:
    image, text, real = inputs()
    call = {"image": image, "text": text, "text_real": real} | change
    with pytest.raises(ValueError, match=message):
        small(variant)(**call)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 50}, "50 does not divide into 4"),
        ({"image_size": 33}, "33 is no multiple of patch_size 8"),
        ({"fusion_layers": 4}, "4 is above 3"),
        ({"variant": "released"}, "fusion_layers 1"),
        ({"variant": "huge"}, "huge"),
        ({"depth": 0}, "depth is 0"),
        ({"heads": 2.0}, "heads is 2.0"),
        ({"drop_path": 1.0}, "drop_path 1.0"),
    ],
)
def test_sizes_that_clash_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **change)


def test_unknown_presets_and_fields_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'huge'.*tiny.*giant"):
        preset("huge")
    with pytest.raises(TypeError, match="colour"):
        BEiT3Config(depth=1, width=4, ffn_width=4, heads=1, colour=3)  # pyright: ignore


def test_routing_needs_tokens() -> None:
    with pytest.raises(ValueError, match="no tokens"):
        routing_table(SMALL, 0, 0)


def test_forward_reaches_the_attention_kernel_in_at_most_four_own_frames(monkeypatch) -> None:
    import traceback

    import minibeit3.attention as module

    seen: list[int] = []
    kernel = module.F.scaled_dot_product_attention

    def spy(*args: Any, **options: Any) -> torch.Tensor:
        own = [f for f in traceback.extract_stack() if Path(f.filename).parent.name == "minibeit3"]
        names = [f.name for f in own if "<" not in f.name]
        seen.append(len(names) - names.index("encode") - 1)
        return kernel(*args, **options)

    monkeypatch.setattr(module.F, "scaled_dot_product_attention", spy)
    small("paper")(image=inputs()[0])
    assert max(seen) == 4  # block, its attention, joint attention, attend


def test_nothing_about_a_call_is_stored_on_a_module() -> None:
    model, (image, text, real) = small("paper"), inputs()
    before = {n: set(vars(m)) for n, m in model.named_modules()}
    model(image, text, real)
    assert before == {n: set(vars(m)) for n, m in model.named_modules()}
    assert not [b for b in model.buffers()]
    assert isinstance(model, nn.Module)
