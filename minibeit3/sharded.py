"""Checkpoints of a run that no process holds whole, by torch.distributed.checkpoint.

`sharded-00001000/` has one safetensors file per process and, written last, `manifest.json` with
the step, the config and every file's SHA-256; without it the folder does not count. The default
format of torch.distributed.checkpoint would be pickle, which runs code when read. Any number of
processes may read it, one too.
"""

import hashlib
import json
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.tensor import DTensor, distribute_tensor

from minibeit3.runfolder import KEPT, sync
from minibeit3.storage import MANIFEST, read_json, write_file

MOMENTS = ("exp_avg", "exp_avg_sq")


def checkpoints(folder: Path) -> list[Path]:
    """All complete sharded checkpoints, oldest first."""
    return sorted(p for p in folder.glob("sharded-????????") if (p / MANIFEST).is_file())


def save(
    folder: Path,
    step: int,
    config: Mapping[str, Any],
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
) -> None:
    """Write the state of `step`, each process its share; every process must call it.

    config: JSON values. optimiser: AdamW. All but the last two checkpoints are removed.
    """
    path, first = folder / f"sharded-{step:08}", dist.get_rank() == 0
    steps = {
        name: optimiser.state[parameter]["step"].item()
        for name, parameter in model.named_parameters()
        if optimiser.state.get(parameter)
    }
    if first:
        shutil.rmtree(path, ignore_errors=True)  # what a crash left
    dist.barrier()
    writer = HuggingFaceStorageWriter(str(path), save_distributed=True)
    state_dict_saver.save(_tensors(model, optimiser, steps), storage_writer=writer)
    dist.barrier()
    if first:
        about = {"step": step, "config": config, "threads": torch.get_num_threads()}
        files = {file.name: _digest(file) for file in sorted(path.glob("*.safetensors"))}
        content = about | {"optimiser_steps": steps, "files": files}
        write_file(path / MANIFEST, json.dumps(content).encode())
        sync(folder)
        for old in checkpoints(folder)[:-KEPT]:
            shutil.rmtree(old)


def newest(folder: Path) -> dict[str, Any] | None:
    """Manifest of the newest intact checkpoint, with its "folder"; None where there is none.

    A damaged one is renamed to `*.damaged` with a warning, and the one before it taken.
    """
    for path in reversed(checkpoints(folder)):
        about = read_json(path / MANIFEST)
        if all((path / n).is_file() and _digest(path / n) == d for n, d in about["files"].items()):
            config = {k: tuple(v) if isinstance(v, list) else v for k, v in about["config"].items()}
            return about | {"config": config, "folder": path}
        path.rename(path.with_suffix(".damaged"))
        warnings.warn(f"{path} is damaged: looking for an older checkpoint", stacklevel=3)
    return None


def load(about: Mapping[str, Any], model: nn.Module, optimiser: torch.optim.Optimizer) -> None:
    """Bring both, sharded or not, to the checkpoint that `newest` found."""
    steps = about["optimiser_steps"]
    for name, parameter in model.named_parameters():
        if name in steps:
            count = torch.tensor(steps[name], device=parameter.device)
            moments = {m: torch.zeros_like(parameter, requires_grad=False) for m in MOMENTS}
            optimiser.state[parameter] = {"step": count, **moments}
    reader = HuggingFaceStorageReader(str(about["folder"]))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # it may be
        state_dict_loader.load(_tensors(model, optimiser, steps), storage_reader=reader)


def load_whole(
    state: Mapping[str, Any], model: nn.Module, optimiser: torch.optim.Optimizer
) -> None:
    """Bring both, sharded or not, to a state that one process saved (`train.keep`)."""
    own = model.state_dict()
    model.load_state_dict({n: _like(v, own.get(n)) for n, v in state["model"].items()})
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    moments = {
        i: {name: _like(value, parameters[i]) for name, value in values.items()}
        for i, values in state["optimiser"]["state"].items()
    }
    optimiser.load_state_dict(state["optimiser"] | {"state": moments})


def _tensors(
    model: nn.Module, optimiser: torch.optim.Optimizer, steps: Mapping[str, float]
) -> dict[str, Tensor]:
    """The parameters, buffers and moments themselves, by unique names."""
    found = {f"model.{name}": value for name, value in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for moment in MOMENTS if name in steps else ():
            found[f"{moment}.{name}"] = optimiser.state[parameter][moment]
    return found


def _like(value: Tensor, own: Tensor | None) -> Tensor:
    if isinstance(own, DTensor) and value.shape == own.shape:
        return distribute_tensor(value.to(own.device), own.device_mesh, own.placements)
    return value


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
