"""RoutingExplorer: what it says about experts, parameters and what-if routes is what happens."""

from functools import cache
from itertools import pairwise

import pytest
import torch

from minibeit3 import build_backbone, preset
from minibeit3.backbones import Backbone
from minibeit3.config import PRESETS, Variant
from minibeit3.explore import RoutingExplorer
from minibeit3.explore.routes import (
    STRAYS,
    USES,
    boxes,
    distances,
    experts_met,
    flops,
    layer_outputs,
    parameter_sizes,
    parameters_touched,
    stray_routes,
)
from minibeit3.info import forward_flops
from minibeit3.routing import Expert, Route, routes_for

TEXT = torch.tensor([[0, 5, 6, 7, 2]])
IMAGE = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
VARIANTS: tuple[Variant, ...] = ("paper", "released")


@cache
def tiny(variant: Variant) -> Backbone:
    return build_backbone(preset("tiny", variant), torch.Generator().manual_seed(0)).eval()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("stray", STRAYS)
def test_parameters_touched_are_those_with_a_gradient(variant: Variant, stray: str) -> None:
    backbone = tiny(variant)
    hidden = torch.zeros(1, 64, dtype=torch.bool)
    hidden[0, 0] = True  # so that the mask vector takes part
    for use in USES.values():
        backbone.zero_grad()
        routes = stray_routes(backbone.config, use, stray)
        image, text = IMAGE if use.image else None, TEXT if use.text else None
        shown = hidden if use.image else None
        out = backbone(image, text, hidden_patches=shown, pairs=int(use.together), routes=routes)
        torch.stack([s.square().sum() for s in out if s is not None]).sum().backward()
        counted = sum(p.numel() for p in backbone.parameters() if p.grad is not None)
        assert parameters_touched(backbone.config, routes, use) == counted


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_usual_routes_move_nothing_and_strays_only_what_can_see_them(variant: Variant) -> None:
    backbone = tiny(variant)
    for name, use in USES.items():
        far = {}
        for stray in STRAYS:
            routes = stray_routes(backbone.config, use, stray)
            far[stray] = distances(backbone, use, IMAGE, TEXT, routes)[-1]
        assert far["nothing"] == (0.0, 0.0)
        if use.image:
            assert 0 < far["one patch"][0] < far["whole image"][0]
        words_see_patches = name in ("fusion encoder", "sequence-to-sequence")
        assert (far["whole image"][1] > 0) == words_see_patches


def test_an_encoder_of_images_is_blind_to_text_in_the_causal_use_too() -> None:
    backbone, use = tiny("paper"), USES["sequence-to-sequence"]
    routes = routes_for(backbone.config, paired=True)
    other = TEXT.clone()
    other[0, 2] = 99
    a, b = (layer_outputs(backbone, use, IMAGE, t, routes)[-1] for t in (TEXT, other))
    assert a.image is not None and b.image is not None and torch.equal(a.image, b.image)


def test_vl_layers_and_texts_do_not_go_astray() -> None:
    config = preset("tiny")
    routes = stray_routes(config, USES["fusion encoder"], "whole image")
    assert routes[0] == Route(Expert.L, Expert.L) and routes[-1] == Route(Expert.VL, Expert.VL)
    with pytest.raises(ValueError, match=r"'two'.*one patch"):
        stray_routes(config, USES["fusion encoder"], "two")


def test_an_empty_span_meets_nobody_and_boxes_tile_their_strip() -> None:
    route = Route(((Expert.V, 3), (Expert.L, 0)), Expert.L)
    assert experts_met(route, USES["vision encoder"]) == {"V"}
    found = boxes(((Expert.V, 36), (Expert.L, 1), (Expert.V, 28)), 70, 380)
    assert found[0][1] == 70 and found[-1][2] == 380 and found[1][2] - found[1][1] >= 14
    assert all(a[2] == b[1] for a, b in pairwise(found))


def test_two_towers_cost_an_image_and_a_text() -> None:
    config = preset("base")
    image, text = (forward_flops(config, mode, 9) for mode in ("image", "text"))
    assert flops(config, USES["dual encoder"], 9) == image + text
    assert flops(config, USES["fusion encoder"], 9) > image + text  # a larger attention


def test_every_control_redraws_over_its_whole_range() -> None:
    explorer = RoutingExplorer([tiny("paper"), tiny("released")], IMAGE, TEXT)
    settings = [(False, name, stray) for name in USES for stray in STRAYS]
    settings += [(True, name, "one patch") for name in USES]
    for released, name, stray in settings:
        explorer.released.value, explorer.use.value = released, name
        explorer.stray.value = stray
        assert ("released tiny" if released else "paper tiny") in repr(explorer)
        assert name in repr(explorer) and "GFLOPs" in repr(explorer)
    for size in PRESETS:
        explorer.size.value = size
        assert ("away from the usual" in repr(explorer)) == (size == "tiny")


def test_the_picture_is_kept_with_its_sentence_and_png() -> None:
    explorer = RoutingExplorer([tiny("paper")], IMAGE, TEXT)
    bundle = explorer._repr_mimebundle_()
    assert bundle["text/plain"] == repr(explorer) and "layers 5-6 VL" in repr(explorer)
    total = sum(parameter_sizes(preset("tiny")).values())
    assert f"of {total / 1e6:.1f} million" in bundle["text/html"] and bundle["image/png"]
