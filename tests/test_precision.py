"""Which number format a run computes in, and that it keeps it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from minibeit3 import precision
from minibeit3.batches import Batches
from minibeit3.distributed import Team
from minibeit3.precision import CHOSEN, PAYS, autocast, bfloat16_pays, pick_dtype
from minibeit3.train import TrainConfig, train

CPU = torch.device("cpu")
OTHER = {torch.float32: torch.bfloat16, torch.bfloat16: torch.float32}


@pytest.fixture(autouse=True)
def untried() -> Iterator[None]:
    """The trial's result is kept for a process; each test has its own."""
    bfloat16_pays.cache_clear()
    yield
    bfloat16_pays.cache_clear()


def able(monkeypatch: pytest.MonkeyPatch, avx: bool, amx: bool) -> None:
    """A CPU with these instructions."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)


@pytest.mark.parametrize(("avx", "amx"), [(True, False), (True, True), (False, True)])
@pytest.mark.parametrize("times", [0.4, 1.4, 2.4])
def test_auto_is_bfloat16_where_its_products_are_enough_faster_and_nowhere_else(
    avx: bool, amx: bool, times: float, monkeypatch: pytest.MonkeyPatch
):
    able(monkeypatch, avx, amx)
    seconds = {torch.float32: times, torch.bfloat16: 1.0}
    monkeypatch.setattr(precision, "product_seconds", seconds.__getitem__)
    dtype = pick_dtype("auto", CPU)
    assert dtype == (torch.bfloat16 if times > PAYS else torch.float32)
    with autocast(CPU, dtype):
        assert torch.mm(torch.ones(2, 2), torch.ones(2, 2)).dtype == dtype


def test_a_cpu_that_emulates_bfloat16_is_not_made_to_try(monkeypatch: pytest.MonkeyPatch):
    able(monkeypatch, False, False)
    monkeypatch.delattr(precision, "product_seconds")
    assert pick_dtype("auto", CPU) == torch.float32


def test_the_trial_measures_both_types_once_a_process(monkeypatch: pytest.MonkeyPatch):
    able(monkeypatch, True, False)
    asked, measure = [], precision.product_seconds

    def spy(dtype: torch.dtype) -> float:
        asked.append(dtype)
        return measure(dtype, turns=2)

    monkeypatch.setattr(precision, "product_seconds", spy)
    assert pick_dtype("auto", CPU) == pick_dtype("auto", CPU)
    assert asked == [torch.float32, torch.bfloat16]


# A run


def run(folder: Path, until: int, **changes: Any) -> list[torch.dtype]:
    """The types of products that the updates of a run saw."""
    values: dict[str, Any] = {"steps": 4, "batch_size": 2, "lr": 1e-2, "save_every": 1} | changes
    config, seen = TrainConfig(**values), []

    def step(model: nn.Module, x: Tensor, generator: torch.Generator):
        out = model(x)
        seen.append(out.dtype)
        return out.float().square().mean(), {}

    torch.manual_seed(0)
    source = Batches(list(torch.randn(6, 3)), 2, 0, lambda rows, _: torch.stack(rows))
    train(nn.Linear(3, 1), step, source, config, folder, until=until)
    return seen


@pytest.mark.parametrize("first", OTHER)
def test_a_resumed_run_keeps_the_type_it_began_with_where_the_trial_would_differ(
    first: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(precision, "bfloat16_pays", lambda: first == torch.bfloat16)
    assert run(tmp_path, 2) == [first] * 2
    monkeypatch.setattr(precision, "bfloat16_pays", lambda: first != torch.bfloat16)
    assert run(tmp_path, 4) == [first] * 2
    assert run(tmp_path / "new", 1) == [OTHER[first]]


def test_a_named_type_leaves_no_note_and_a_damaged_note_is_named(tmp_path: Path):
    run(tmp_path / "named", 1, dtype="float32")
    assert not (tmp_path / "named" / CHOSEN).exists()
    run(tmp_path / "auto", 1)
    (tmp_path / "auto" / CHOSEN).write_text("float64")
    with pytest.raises(ValueError, match="says 'float64', not float32 or bfloat16: remove it"):
        run(tmp_path / "auto", 2)


@pytest.mark.parametrize(("mean", "taken"), [(0.0, 0), (0.5, 0), (1.0, 1)])
def test_processes_that_differ_all_take_float32(
    mean: float, taken: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Team, "mean", lambda self, value: torch.tensor(mean))
    types = torch.float32, torch.bfloat16
    mine = types if mean == 0.5 else (types[int(mean)],)
    assert {Team(size=2).agreed(one, CPU) for one in mine} == {types[taken]}
