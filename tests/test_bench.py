"""The benchmark does its work fairly; the plan adds up; the GPU script runs."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from minibeit3 import PRESETS, bench, bench_torchscale, cli
from minibeit3.objective import MaskedDataModel, masked_data_loss
from minibeit3.plan import Machine, plan
from tests.test_backbones import SMALL, small
from tools import gpu_goals


def test_hidden_places_are_as_many_as_the_paper_hides() -> None:
    b = bench.made_batch(replace(SMALL, image_size=80), 4, 20, "cpu")
    assert b.hidden_patches is not None and b.hidden_words is not None
    assert (b.hidden_patches.sum(dim=1) == 40).all()
    assert b.hidden_words.sum(dim=1).tolist() == [10] * 4 + [3] * 4


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_the_loss_at_fixed_places_is_the_objective_s(variant: str) -> None:
    config = replace(small(variant).config, drop_path=0.0)
    model = MaskedDataModel(bench.build_backbone(config)).eval()
    b = bench.made_batch(config, 2, 10, "cpu")
    torch.testing.assert_close(bench.FixedPlaces(model, b)(), masked_data_loss(*model(b))[0])


@pytest.mark.parametrize("work", bench.WORKS)
def test_every_contestant_of_every_work_runs_and_is_compared(work: str) -> None:
    config = replace(SMALL, max_text_length=32)
    times = bench.in_turns(bench.contestants(work, config, 1, 8), 1, cuda=False)
    rows = bench.table(times, bench.work_flops(config, work, 1, 8))
    assert len(rows) >= 2 and all(len(row["times_as_fast_as"]) == len(rows) - 1 for row in rows)
    assert all(row["seconds"] > 0 for row in rows)


def test_turns_alternate_and_ratios_are_of_pairs_within_a_round() -> None:
    order: list[str] = []
    runs: Any = {name: (lambda name=name: order.append(name)) for name in "ab"}
    times = bench.in_turns(runs, 2, cuda=False)
    assert order == list("ababab") and [len(t) for t in times.values()] == [2, 2]
    rows = bench.table({"a": [1.0, 2.0, 9.0], "b": [2.0, 4.0, 9.0]}, flops=6 * 10**9)
    assert rows[0]["times_as_fast_as"] == {"b": 2.0} and rows[1]["times_as_fast_as"] == {"a": 0.5}
    assert rows[0]["gflops_per_second"] == 3.0


def test_the_cached_caption_is_the_one_without_cache() -> None:
    config = replace(SMALL, max_text_length=32)
    runs = bench.captions(config, bench.made_batch(config, 2, 8, "cpu"), "cpu")
    found: Any = runs["greedy"]()
    assert [len(ids) for ids in found] == [bench.WORDS] * 2
    assert runs["greedy without cache"]() == found


def test_the_command_writes_what_it_shows(tmp_path: Path) -> None:
    command = ["bench", "tiny", "--work", "text", "--batch", "1", "--text-length", "4"]
    out = tmp_path / "deep" / "text.json"
    run = CliRunner().invoke(cli.app, [*command, "--rounds", "1", "--out", str(out)])
    assert run.exit_code == 0 and "bound fp32" in run.output
    report = json.loads(out.read_text())
    assert [row["name"] for row in report["works"]["text"]][:2] == ["minibeit3 fp32", "bound fp32"]
    assert report["machine"]["threads"] == torch.get_num_threads()


@pytest.mark.skipif(not bench_torchscale.installed(), reason="pip install --no-deps torchscale")
@pytest.mark.parametrize("work", ["image", "text", "pair", "step"])
def test_torchscale_does_the_same_work(work: str) -> None:
    b = bench.made_batch(SMALL, 1, 8, "cpu")
    bench_torchscale.torchscale(work, SMALL, b, torch.float32)()


# The plan


def test_giant_at_the_papers_batch_fits_one_gpu_and_many() -> None:
    one, eight, many = (plan(PRESETS["giant"], n) for n in (1, 8, 256))
    assert one["kind"] == "one" and one["sent_bytes"] == 0 and not one["recompute"]
    assert one["state_bytes"] / 2**30 == pytest.approx(29.0, abs=0.1)
    assert one["compute_seconds"] == pytest.approx(8 * eight["compute_seconds"])
    for p in (one, eight, many):
        assert p["accumulate"] * p["triples_at_once"] == 2048
        assert p["accumulate"] % p["gpus"] == 0
        assert p["state_bytes"] + p["activation_bytes"] <= Machine().memory


def test_small_cards_shard_and_recompute_and_too_small_ones_are_refused() -> None:
    card = Machine(memory=24 * 2**30)
    p = plan(PRESETS["giant"], 8, machine=card)
    assert p["kind"] == "fsdp" and p["sent_bytes"] > plan(PRESETS["giant"], 8)["sent_bytes"]
    assert plan(PRESETS["giant"], 8, machine=Machine(memory=4.5 * 2**30))["recompute"]
    with pytest.raises(ValueError, match="take more GPUs"):
        plan(PRESETS["giant"], 1, machine=card)
    with pytest.raises(ValueError, match="2048 triples cannot be shared by 3"):
        plan(PRESETS["giant"], 3)


def test_info_shows_the_plan() -> None:
    run = CliRunner().invoke(cli.app, ["info", "giant", "--gpus", "8,64", "--json"])
    assert [p["gpus"] for p in json.loads(run.output)["plans"]] == [8, 64]


def test_the_gpu_script_runs_dry() -> None:
    found = gpu_goals.measure("giant step, text 64", dry=True)
    assert {"minibeit3 fp32", "bound fp32"} <= {row["name"] for row in found["rows"]}
    assert found["memory"]["predicted_bytes"] > 0
