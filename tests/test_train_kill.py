"""Runs that are killed, as a process is killed: whatever moment it is, nothing shows afterwards."""

import hashlib
import json
import multiprocessing
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from minibeit3 import runfolder
from minibeit3.batches import Batches
from minibeit3.runlog import METRICS, Record
from minibeit3.train import TrainConfig, train

pytestmark = pytest.mark.slow

KILLS = 4
STEPS = 40
SEEN = "seen.jsonl"  # every loss that any of the processes ever computed

# Children fork from a server that has imported torch already: a fresh import takes seconds each.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["minibeit3.train", "torch._dynamo"])


def stack(samples: list[Tensor], generator: torch.Generator) -> Tensor:
    x = torch.stack(samples)
    return x + 0.1 * torch.rand(x.shape, generator=generator)


def step(model: nn.Module, x: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Any]]:
    """Draws from every generator that training seeds."""
    noise = random.random() + float(np.random.rand()) + torch.rand(1, generator=generator)
    return (model(x).float() - noise * x.sum(1, keepdim=True)).square().mean(), {"noise": noise}


def train_in(folder: Path, dtype: Any, workers: int) -> None:
    """One process of a run, from wherever the folder stands."""
    multiprocessing.set_start_method("fork", force=True)  # workers of data: importing takes longer
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.1), nn.GELU(), nn.Linear(16, 1))
    rates: dict[str, Any] = {"lr": 1e-2, "warmup": 5, "dtype": dtype, "workers": workers}
    config = TrainConfig(steps=STEPS, batch_size=4, **rates, save_every=2, log_every=1)
    samples = list(torch.randn(30, 8))

    def note(record: Record) -> None:
        with (folder / SEEN).open("a") as file:
            file.write(json.dumps([record["step"], record["loss"].hex()]) + "\n")

    train(model, step, Batches(samples, config.part_size, 0, stack), config, folder, on_log=note)


def lines(path: Path) -> list[Any]:
    """Complete lines of a JSONL file."""
    found = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in found if line.endswith("\n")]


def result(folder: Path) -> tuple[list[tuple[float, str]], str]:
    """(step, loss in hex) of the log, and a hash of final parameters and optimiser."""
    state = torch.load(runfolder.checkpoints(folder)[-1], weights_only=True)
    sums = hashlib.sha256()
    for name, value in sorted(state["model"].items()):
        sums.update(name.encode() + value.numpy().tobytes())
    for index, moments in sorted(state["optimiser"]["state"].items()):
        for name, value in sorted(moments.items()):
            sums.update(f"{index}{name}".encode() + value.numpy().tobytes())
    assert state["step"] == STEPS
    return [(r["step"], r["loss"].hex()) for r in lines(folder / METRICS)], sums.hexdigest()


def finish(folder: Path, dtype: str, workers: int) -> None:
    child = processes.Process(target=train_in, args=(folder, dtype, workers))
    child.start()
    child.join(120)
    assert child.exitcode == 0


def kill_while_training(folder: Path, dtype: str, workers: int, chance: random.Random) -> bool:
    """Start or continue, kill a little later; True = it left a half-written checkpoint."""
    stop_at = len(lines(folder / SEEN)) + chance.randint(2, 6)
    child = processes.Process(target=train_in, args=(folder, dtype, workers))
    child.start()
    deadline = time.monotonic() + 120
    while len(lines(folder / SEEN)) < stop_at:
        assert child.is_alive() and time.monotonic() < deadline
        time.sleep(0.001)
    time.sleep(chance.random() * 0.02)
    child.kill()
    child.join()
    assert child.exitcode == -9
    return any(folder.glob("*.tmp"))


def kills_change_nothing(folder: Path, dtype: str, kills: int) -> int:
    """Assert it; returns how many kills fell into the writing of a checkpoint."""
    for name in ("whole", "killed"):
        (folder / name).mkdir()
    finish(folder / "whole", dtype, workers=0)
    chance, torn = random.Random(0), 0
    for kill in range(kills):
        torn += kill_while_training(folder / "killed", dtype, 2 * (kill % 4 == 1), chance)
    finish(folder / "killed", dtype, workers=0)
    losses, final = result(folder / "whole")
    assert [number for number, _ in losses] == list(range(1, STEPS + 1))
    assert result(folder / "killed") == (losses, final)
    seen = lines(folder / "killed" / SEEN)
    assert len(seen) >= STEPS
    assert [pair for pair in seen if tuple(pair) not in losses] == []
    return torn


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_killed_run_ends_with_the_bits_of_the_uninterrupted_one(tmp_path: Path, dtype: str):
    kills_change_nothing(tmp_path, dtype, KILLS)


def hold(folder: Path, entered: Any, forever: Any) -> None:
    with runfolder.locked(folder):
        entered.set()
        forever.wait()


def test_two_processes_never_share_a_folder_and_a_killed_one_frees_it(tmp_path: Path):
    entered, forever = processes.Event(), processes.Event()
    other = processes.Process(target=hold, args=(tmp_path, entered, forever))
    other.start()
    assert entered.wait(60)
    with (
        pytest.raises(BlockingIOError, match=f"in use by process {other.pid}"),
        runfolder.locked(tmp_path),
    ):
        raise AssertionError("entered")
    other.kill()
    other.join()
    with runfolder.locked(tmp_path):
        assert (tmp_path / "lock").read_text() != str(other.pid)
