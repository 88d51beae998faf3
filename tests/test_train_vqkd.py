"""Training of the tokenizer: targets, order, schedule, stopping and going on."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from minibeit3.teacher import build_teacher
from minibeit3.train_vqkd import Plan, Targets, build_optimizer, teacher_targets, to_float, train
from minibeit3.visual_tokenizer import VQKD, VQKDConfig

TINY = VQKDConfig(
    image_size=16,
    patch=8,
    width=16,
    ffn_width=32,
    heads=2,
    depth=1,
    decoder_depth=1,
    codes=8,
    code_dim=4,
    teacher_dim=192,
)
PLAN = Plan(steps=8, batch=4, warmup=2, save_every=4)


def pictures(n: int = 24) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, 3, 16, 16), dtype=torch.uint8, generator=generator)


def targets() -> Targets:
    return teacher_targets(build_teacher("pixels"), pictures(), grid=2)


def test_targets_are_standardised_per_channel_and_come_in_the_pictures_order() -> None:
    found = teacher_targets(build_teacher("pixels"), pictures(), grid=2, batch=3)
    rows = found.rows(slice(None))
    assert found.features.dtype == torch.float16
    torch.testing.assert_close(rows.mean((0, 1)), torch.zeros(192), atol=1e-4, rtol=0)
    torch.testing.assert_close(rows.flatten(0, 1).std(0), torch.ones(192), atol=1e-4, rtol=0)
    last = build_teacher("pixels")(to_float(pictures()[23:]))
    torch.testing.assert_close(found.features[23:].float(), last, atol=2e-3, rtol=0)


def test_a_teacher_with_another_grid_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 2\) grid, the student \(4, 4\)"):
        teacher_targets(build_teacher("pixels"), pictures(), grid=4)


def test_every_epoch_shows_each_picture_once_in_an_order_of_its_own() -> None:
    epochs = [torch.cat([PLAN.batch_at(2 * e + i, 8) for i in range(2)]) for e in range(3)]
    assert all(sorted(epoch.tolist()) == list(range(8)) for epoch in epochs)
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 3
    assert torch.equal(PLAN.batch_at(5, 8), PLAN.batch_at(5, 8))
    with pytest.raises(ValueError, match="3 pictures do not fill one batch of 4"):
        PLAN.batch_at(0, 3)


def test_learning_rate_warms_up_and_falls_to_its_last_value() -> None:
    plan = Plan(steps=100, warmup=10, lr=1.0, last_lr=0.1)
    rates = [plan.lr_at(step) for step in range(101)]
    assert rates[9:11] == [1.0, 1.0]
    assert rates[0] == pytest.approx(0.1)
    assert rates[100] == pytest.approx(0.1)
    assert rates[55] == pytest.approx(0.55)
    assert all(a > b for a, b in pairwise(rates[10:]))


def test_only_matrices_decay() -> None:
    model = VQKD(TINY)
    decayed, free = (group["params"] for group in build_optimizer(model, PLAN).param_groups)
    names = {id(value): name for name, value in model.named_parameters()}
    assert len(decayed) + len(free) == len(names)
    assert all(names[id(value)].endswith("weight") and value.dim() > 1 for value in decayed)
    assert {"encoder.pos_embed", "decoder.cls_token"} <= {names[id(value)] for value in free}


def test_training_lowers_the_loss_and_starts_the_codebook(tmp_path: Path) -> None:
    model = train(VQKD(TINY), pictures(), targets(), replace(PLAN, steps=60, lr=1e-2), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [20, 40, 60]
    assert lines[-1]["loss"] < 0.95 * lines[0]["loss"]
    assert not model.training
    assert model.tokens(to_float(pictures())).shape == (24, 4)


def test_a_run_that_was_stopped_goes_on_bit_identically(tmp_path: Path) -> None:
    whole = train(VQKD(TINY), pictures(), targets(), PLAN, tmp_path / "whole")

    spoiled = targets()
    spoiled.features[PLAN.batch_at(5, 24)] = torch.nan
    with pytest.raises(
        FloatingPointError, match=r"loss is nan at step 5.*after step 4 is in .*stopped"
    ):
        train(VQKD(TINY), pictures(), spoiled, PLAN, tmp_path / "stopped")
    resumed = train(VQKD(TINY), pictures(), targets(), PLAN, tmp_path / "stopped")

    expected, found = whole.state_dict(), resumed.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_stored_run_of_another_plan_is_refused(tmp_path: Path) -> None:
    train(VQKD(TINY), pictures(), targets(), replace(PLAN, steps=1), tmp_path)
    with pytest.raises(ValueError, match="choose another --out"):
        train(VQKD(TINY), pictures(), targets(), PLAN, tmp_path)
    other = VQKD(replace(TINY, seed=1))
    with pytest.raises(ValueError, match="choose another --out"):
        train(other, pictures(), targets(), replace(PLAN, steps=1), tmp_path)
