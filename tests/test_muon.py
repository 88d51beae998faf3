"""Muon: orthogonal steps for the blocks' matrices, AdamW for the rest, one optimiser to save."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from minibeit3 import PRESETS, build_backbone
from minibeit3.muon import MOMENTUM, Muon, exact_orthogonal, muon_groups, orthogonalise
from minibeit3.objective import MaskedDataModel
from minibeit3.optimiser import parameter_groups
from minibeit3.pretrain import Streams, pretrain
from minibeit3.train import TrainConfig

CONFIG = replace(PRESETS["tiny"], depth=2, width=32, ffn_width=32, heads=2, fusion_layers=1)


@given(st.integers(2, 40), st.integers(2, 40), st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_the_iteration_comes_near_the_singular_value_formula(m: int, n: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    u, v = (torch.linalg.qr(torch.randn(k, min(m, n), generator=g))[0] for k in (m, n))
    matrix = 7 * (u * torch.linspace(0.3, 1, min(m, n))) @ v.T  # no singular value near zero
    found, exact = orthogonalise(matrix), exact_orthogonal(matrix)
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.5 and values.max() < 1.5
    assert (found - exact).norm() < 0.4 * exact.norm()


def test_matrices_of_blocks_take_muon_steps_and_every_parameter_is_stepped_once() -> None:
    model = MaskedDataModel(build_backbone(CONFIG))
    groups = muon_groups(model, 0.05)
    listed = [id(p) for group in groups for p in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in model.parameters())
    names = {id(p): name for name, p in model.named_parameters()}
    by_muon = {names[id(p)] for group in groups if group["muon"] for p in group["params"]}
    assert "backbone.blocks.1.ffn.experts.VL.fc1.weight" in by_muon
    assert all("blocks." in name and name.endswith("weight") for name in by_muon)
    assert not any("norm" in name for name in by_muon)


def test_a_step_is_the_formula_for_matrices_and_that_of_adamw_for_the_rest() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(6, 12)]), "head": nn.Linear(6, 2)})
    twin = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(6, 12)]), "head": nn.Linear(6, 2)})
    twin.load_state_dict(model.state_dict())
    groups, plain = muon_groups(model, 0.1), parameter_groups(twin, 0.1)
    ours, theirs = Muon(groups, lr=0.01), torch.optim.AdamW(plain, lr=0.01)
    weight = model["blocks"][0].weight  # pyright: ignore
    before, momentum = weight.detach().clone(), torch.zeros_like(weight)
    for _ in range(3):
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        gradient = weight.grad.clone()
        momentum = MOMENTUM * momentum + (1 - MOMENTUM) * gradient
        nesterov = (1 - MOMENTUM) * gradient + MOMENTUM * momentum
        before = before * (1 - 0.01 * 0.1) - 0.01 * 2**0.5 * orthogonalise(nesterov)
        ours.step()
        theirs.step()
    torch.testing.assert_close(weight.detach(), before)
    torch.testing.assert_close(model["head"].state_dict(), twin["head"].state_dict())
    torch.testing.assert_close(model["blocks"][0].bias, twin["blocks"][0].bias)  # pyright: ignore


def test_a_run_by_muon_resumes_bit_by_bit(tmp_path: Path) -> None:
    from minibeit3.data.glosses import PlainTexts
    from minibeit3.data.scene_captions import SceneCaptions

    scenes = SceneCaptions("train", 50)
    data = Streams([scenes], [PlainTexts("val")], [scenes])
    plan = TrainConfig(steps=6, batch_size=6, lr=1e-3, warmup=1, save_every=2, log_every=1)

    def codes(image: torch.Tensor) -> torch.Tensor:
        return (image.mean((1, 2, 3)) * 100).long()[:, None].expand(-1, CONFIG.patches)

    def run(folder: str, until: int | None = None) -> Any:
        return pretrain(CONFIG, data, codes, plan, tmp_path / folder, muon=True, until=until)[0]

    whole = run("whole").state_dict()
    run("broken", until=3)
    again = run("broken").state_dict()
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    with pytest.raises(ValueError):
        pretrain(CONFIG, data, codes, plan, tmp_path / "broken")  # by AdamW: other groups
