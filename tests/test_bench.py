"""The benchmark does its work fairly; the plan adds up; the GPU script runs."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from minibeit3 import PRESETS, bench, bench_growth, bench_machine, bench_peers, cli
from minibeit3 import bench_torchscale as ts
from minibeit3.objective import MaskedDataModel, masked_data_loss
from minibeit3.plan import Machine, plan
from minibeit3.visibility import caption_rule
from tests.test_backbones import SMALL, small
from tools import cpu_goals, gpu_goals, report_bench

WITHOUT = "pip install --no-deps torchscale"
BOTH = (torch.float32, torch.bfloat16)


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


@pytest.mark.slow
@pytest.mark.parametrize("work", bench.WORKS)
def test_every_contestant_of_every_work_runs_and_is_compared(work: str) -> None:
    config = replace(SMALL, max_text_length=32)
    times = bench.in_turns(bench.contestants(work, config, 1, 8, dtypes=BOTH), 1, cuda=False)
    rows = bench.table(times, bench.work_flops(config, work, 1, 8))
    types = [next(t for t in ("fp32", "bf16") if t in row["name"]) for row in rows]
    assert types == sorted(types, reverse=True) and len(set(types)) == 2
    assert len(rows) >= 2 and all(len(row["times_as_fast_as"]) == len(rows) - 1 for row in rows)
    assert all(row["seconds"] > 0 for row in rows)


def test_turns_alternate_and_ratios_are_of_pairs_within_a_round() -> None:
    order: list[str] = []
    runs: Any = {name: (lambda name=name: order.append(name)) for name in "ab"}
    times = bench.in_turns(runs, 2, cuda=False)
    assert order == list("ababab") and [len(t) for t in times.values()] == [2, 2]
    rows = bench.table({"a": [1.0, 2.0, 9.0], "b": [2.0, 4.0, 9.0]}, flops=6 * 10**9)
    assert rows[0]["times_as_fast_as"] == {"b": 2.0} and rows[1]["times_as_fast_as"] == {"a": 0.5}
    assert rows[0]["gflops_per_second"] == 3.0 and "share_of_matmul" not in rows[0]
    rows = bench.table({"a bf16": [2.0], "a fp32": [2.0]}, 6 * 10**9, {"fp32": 4.0, "bf16": 6.0})
    assert [row["share_of_matmul"] for row in rows] == [0.5, 0.75]


def test_a_gradient_is_a_step_that_changes_nothing() -> None:
    def moved(work: str) -> bool:
        torch.manual_seed(0)
        model = torch.nn.Linear(2, 1)
        before = model.weight.detach().clone()
        bench.learn(model, lambda: model(torch.ones(1, 2)).sum(), torch.float32, work)()
        assert model.weight.grad is None
        return not torch.equal(before, model.weight)

    assert moved("step") and not moved("gradient")


def test_the_cached_caption_is_the_one_without_cache() -> None:
    config = replace(SMALL, max_text_length=32)
    runs = bench.captions(config, bench.made_batch(config, 2, 8, "cpu"), "cpu")
    found: Any = runs["greedy"]()
    assert [len(ids) for ids in found] == [bench.WORDS] * 2
    assert runs["greedy without cache"]() == found


@pytest.mark.slow
def test_the_command_writes_what_it_shows(tmp_path: Path) -> None:
    command = ["bench", "tiny", "--work", "text", "--batch", "1", "--text-length", "4"]
    out = tmp_path / "deep" / "text.json"
    command += ["--rounds", "1", "--memory", "--grow", "--out", str(out)]
    run = CliRunner().invoke(cli.app, command)
    assert run.exit_code == 0 and "bound fp32" in run.output
    report = json.loads(out.read_text())
    assert [row["name"] for row in report["works"]["text"]][:2] == ["minibeit3 fp32", "bound fp32"]
    assert report["machine"]["threads"] == torch.get_num_threads()
    assert all(row["peak_bytes"] > 0 for row in report["works"]["text"])
    assert len(report["growth"]["text"]) == 4 and "exponent" in run.output


# The machine


def test_the_peak_is_what_tensors_hold_at_once_and_not_what_they_add_up_to() -> None:
    kept = torch.zeros(2**18)  # was there before

    def run() -> None:
        first = kept + 1  # 1 MiB
        second = torch.cat([first, first])  # 2 MiB more
        del first, second
        _ = kept + 2

    assert 3 * 2**20 <= bench_machine.peak_bytes(run, "cpu") < 3.1 * 2**20


def test_ceilings_are_of_both_types_and_the_machine_is_named() -> None:
    found = bench_machine.ceilings("cpu", side=64)
    assert set(found) == set(bench.NAMES.values()) and all(speed > 0 for speed in found.values())
    assert bench_machine.machine("cpu")["threads"] == torch.get_num_threads()


# Growth


def test_one_thing_grows_at_a_time() -> None:
    for what, sizes in bench_growth.variants(SMALL, 2).items():
        assert [size / sizes[0][0] for size, _, _ in sizes][-1] >= 3
        for _, config, batch in sizes:
            changed = {
                "batch": batch != 2,
                "sequence": config.image_size != SMALL.image_size,
                "depth": config.depth != SMALL.depth,
                "width": (config.width, config.ffn_width) != (SMALL.width, SMALL.ffn_width),
            }
            assert not any(is_other for name, is_other in changed.items() if name != what)
            assert config.width // config.heads == SMALL.width // SMALL.heads


@pytest.mark.slow
def test_the_exponent_is_that_of_a_power_law() -> None:
    assert bench_growth.exponent([1, 2, 4], [3.0, 12.0, 48.0]) == pytest.approx(2)
    rows = bench_growth.growth(SMALL, "text", 1, 4, "cpu", torch.float32, 1)
    assert [row["grows"] for row in rows] == ["batch", "sequence", "depth", "width"]


# Peers


@pytest.mark.filterwarnings("ignore")  # theirs
@pytest.mark.skipif(not ts.installed(), reason=WITHOUT)
@pytest.mark.parametrize("work", ["image", "text", "pair", "step", "gradient"])
def test_torchscale_does_the_same_work(work: str) -> None:
    b = bench.made_batch(SMALL, 1, 8, "cpu")
    ts.torchscale(work, SMALL, b, torch.float32)[""]()


@pytest.mark.filterwarnings("ignore")  # theirs
@pytest.mark.skipif(not ts.installed(), reason=WITHOUT)
def test_torchscale_s_loss_at_all_places_is_its_loss_at_hidden_ones() -> None:
    torch.manual_seed(0)
    model, b = ts.Masked(SMALL).eval(), bench.made_batch(SMALL, 2, 8, "cpu")
    torch.testing.assert_close(model.loss(b, everywhere=True), model.loss(b))


@pytest.mark.filterwarnings("ignore")  # theirs
@pytest.mark.skipif(not ts.installed(), reason=WITHOUT)
@torch.no_grad()
def test_torchscale_s_cached_caption_is_the_one_without_cache() -> None:
    torch.manual_seed(0)
    config = replace(SMALL, max_text_length=32)
    model, b = ts.Masked(config).eval(), bench.made_batch(config, 2, 8, "cpu")
    assert b.image is not None
    found = torch.stack(ts.captions(model, b, torch.float32)[", greedy"]())  # pyright: ignore
    ids = torch.zeros(2, 1, dtype=torch.int64)
    for _ in range(bench.WORDS):
        text = torch.cat([ids, torch.full_like(ids[:, :1], config.vocab_size - 1)], dim=1)
        rule = ~caption_rule(config.image_tokens, text.shape[1])
        given = {"textual_tokens": text, "visual_tokens": b.image[2:], "attn_mask": rule.float()}
        guess = model.word_head(model.backbone(**given)["encoder_out"][:, -1])
        ids = torch.cat([ids, guess.argmax(dim=-1, keepdim=True)], dim=1)
    assert torch.equal(found, ids)


@pytest.mark.filterwarnings("ignore")  # theirs
@pytest.mark.parametrize(
    ("name", "work"),
    [("timm BEiT-3", "image"), ("transformers BERT", "text"), ("transformers ViLT", "pair")],
)
def test_a_peer_does_its_work_and_no_other(name: str, work: str) -> None:
    peer = bench_peers.installed().get(name)
    if peer is None:
        pytest.skip(f"{name} is not installed")
    b = bench.made_batch(SMALL, 1, 8, "cpu")
    for other in bench.WORKS:
        runs = peer(other, SMALL, b, torch.float32)
        assert bool(runs) == (other == work)
        for run in runs.values():
            run()


# CPU goals


def figures(seconds: dict[str, float]) -> list[dict[str, Any]]:
    """Rows of a set in which each contestant took its seconds."""
    return bench.table({name: [value] for name, value in seconds.items()}, None)


def test_a_goal_is_met_by_ratios_of_its_own_set_and_auto_is_what_was_picked() -> None:
    rows = figures({"minibeit3 fp32": 2.0, "minibeit3 bf16": 1.0, "torchscale fp32": 3.0})
    sets = {"tiny step": {"rows": rows, "auto": "bf16"}}
    goal = ("tiny step", "minibeit3 auto", "torchscale fp32", 3.5)
    line = cpu_goals.reached(goal, sets)
    assert (line["got"], line["met"]) == (3.0, False)
    sets["tiny step"]["auto"] = "fp32"
    assert cpu_goals.reached(goal, sets)["got"] == 1.5
    same = ("tiny step", "minibeit3 auto", "minibeit3 fp32", 0.97)
    assert cpu_goals.reached(same, sets)["met"] is True
    assert cpu_goals.reached(("base text", *same[1:]), sets)["got"] is None


def test_a_goal_of_memory_is_an_upper_limit() -> None:
    sizes = {"minibeit3 fp32": 60, "torchscale fp32": 100}
    rows = [{"name": name, "peak_bytes": size} for name, size in sizes.items()]
    sets = {"480 px pair memory": {"rows": rows, "auto": "fp32"}}
    goal = ("480 px pair memory", "minibeit3 fp32", "torchscale fp32", 0.5)
    line = cpu_goals.reached(goal, sets)
    assert (line["got"], line["met"]) == (0.6, False)
    rows[0]["peak_bytes"] = 50
    assert cpu_goals.reached(goal, sets)["met"] is True


def test_every_goal_names_a_set_that_is_measured() -> None:
    caps = {f"automatic type, {cap}" for cap in cpu_goals.CAPS}
    assert {goal[0] for goal in cpu_goals.GOALS} <= {*cpu_goals.SETS, *caps}


def test_the_table_says_what_is_missing_and_what_was_missed() -> None:
    rows = figures({"minibeit3 fp32": 2.0, "torchscale fp32": 3.0})
    sets = {"tiny step": {"rows": rows, "auto": "fp32"}}
    goals = [cpu_goals.reached(goal, sets) for goal in cpu_goals.GOALS]
    text = report_bench.goal_table(goals)
    assert "1.50 |  | yes" in text.splitlines()[2] and "not measured" in text


def test_beside_a_goal_stands_what_the_bare_products_reach() -> None:
    seconds = {"minibeit3 bf16": 2.0, "torchscale fp32": 3.0, "bound bf16": 1.5, "bound fp32": 1.0}
    goal = ("tiny step", "minibeit3 auto", "torchscale fp32", 3.0)
    line = cpu_goals.reached(goal, {"tiny step": {"rows": figures(seconds), "auto": "bf16"}})
    assert (line["got"], line["bound"], line["met"]) == (1.5, 2.0, False)
    assert "1.50 | 2.00 | no" in report_bench.goal_table([line])


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


@pytest.mark.slow
def test_the_gpu_script_runs_dry() -> None:
    found = gpu_goals.measure("giant step, text 64", dry=True)
    assert {"minibeit3 fp32", "bound fp32"} <= {row["name"] for row in found["rows"]}
    assert found["memory"]["predicted_bytes"] > 0


def test_a_dry_run_reports_no_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["gpu_goals", "--dry-run", "--out", f"{tmp_path}/gpu.json"])
    monkeypatch.setattr(gpu_goals, "GOALS", {"tiny step": gpu_goals.GOALS["tiny step"]})
    gpu_goals.main()
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert report["dry_run"] and "no GPU figure was measured" in report["what"]
    line = report["goals"]["tiny step"]
    assert line["got"] is None and "minibeit3 fp32" in line["ran"] and "rows" not in line
