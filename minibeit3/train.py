"""The training loop, for pretraining and fine-tuning alike.

It knows no task: `step` turns a batch into a loss, a source gives batch after batch. Step n uses
nothing but the parameters, the optimiser and (seed, n), so a run that was killed continues with
the same bits, and nothing else has to be saved.
"""

import math
import random
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from minibeit3 import runfolder, sharded
from minibeit3.batches import Source, generator_of, read, seed_of, to_device
from minibeit3.distributed import Metrics, Step, Team, whole
from minibeit3.float8 import float8_products
from minibeit3.muon import Muon
from minibeit3.optimiser import learning_rate, parameter_groups
from minibeit3.precision import DType, autocast, keep_dtype, pick_device, run_dtype
from minibeit3.runlog import Record, RunLog, read_metrics

ALONE = Team()
FREE = ("workers", "save_every", "log_every")  # may change when a run is resumed
LONG = 1000  # steps; the lab's live runs are shorter, and small models compile for minutes


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to train; the defaults are the paper's pretraining recipe (Table 11) where it says.

    steps: updates of the parameters. batch_size: samples per update, in `accumulate` equal parts.
    lr, min_lr, warmup: cosine from `lr` to `min_lr` after `warmup` steps of linear rise. clip:
    largest norm of the gradient, None = any. layer_decay: see `optimiser.layer_scales`. dtype:
    see `precision.run_dtype`; "float8": see `float8`. save_every: steps between checkpoints, 0 =
    save nothing. log_every: steps between records. workers: processes that prepare batches.
    compile: "auto" = on CUDA, unless the run is too short to earn back what compiling costs.
    """

    steps: int
    batch_size: int
    lr: float
    min_lr: float = 1e-6
    warmup: int = 0
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    clip: float | None = 3.0
    layer_decay: float = 1.0
    accumulate: int = 1
    dtype: DType = "auto"
    seed: int = 0
    save_every: int = 500
    log_every: int = 10
    workers: int = 0
    compile: bool | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be 1 or more")
        for name in ("warmup", "save_every", "workers", "lr", "min_lr", "weight_decay", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be 0 or more")
        if self.warmup >= self.steps:
            raise ValueError(
                f"warmup {self.warmup} leaves nothing of {self.steps} steps: make it shorter"
            )
        if self.dtype not in get_args(DType):
            raise ValueError(f"unknown dtype {self.dtype!r}: choose {', '.join(get_args(DType))}")
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size {self.batch_size} does not split into {self.accumulate} equal parts"
            )
        if self.clip is not None and self.clip <= 0:
            raise ValueError(f"clip {self.clip} must be above 0, or None to leave gradients alone")

    @property
    def part_size(self) -> int:
        """Samples that go through the model at a time: the size of the source's batches."""
        return self.batch_size // self.accumulate


def train(
    model: nn.Module,
    step: Step,
    source: Source,
    config: TrainConfig,
    folder: Path | str,
    *,
    resume: Literal["auto", "never"] = "auto",
    until: int | None = None,
    device: str = "auto",
    groups: list[dict[str, Any]] | None = None,
    on_log: Callable[[Record], None] | None = None,
    team: Team = ALONE,
) -> list[Record]:
    """Train `model` in place, in evaluation mode afterwards; returns the records of the whole run.

    step(model, batch, generator): mean loss of a batch and scalars to log. The generator (CPU) and
    torch's, numpy's and Python's global ones start anew from (seed, number of the batch).
    source: batches of `config.part_size` samples. Update n takes batches n * accumulate and on;
    their losses are averaged, which equals the loss of one big batch if each is a mean over
    equally many targets. folder: checkpoints and metrics.jsonl. resume: "auto" continues what the
    folder holds, "never" refuses a used folder. until: stop and save after this many updates.
    groups: of `optimiser.parameter_groups` or `muon.muon_groups`, None = the config's for AdamW.
    on_log: gets every record before it is written; may evaluate and add scalars (with several
    processes in the first one only). team: see `distributed`. A record's cpu_seconds are those of
    this process, of its earlier lives too, without the data's workers.

    FloatingPointError: loss or gradient is not finite (names step, samples and last checkpoint;
    parameters stay as they were, gradients are left to look at). BlockingIOError: another run uses
    the folder. OSError: no room for a checkpoint. ValueError: folder of another config, or all its
    checkpoints damaged.
    """
    folder, where = Path(folder), pick_device(device)
    dtype = team.agreed(run_dtype(config.dtype, where, folder), where)
    model.to(where)
    if config.dtype == "float8" and team.kind == "fsdp":
        raise ValueError("float8 exchanges layers that fsdp has sharded: use ddp, or bfloat16")
    runner, step = team.spread(model, step, where, dtype, compiles(config, where))
    if groups is None:
        groups = parameter_groups(model, config.weight_decay, config.layer_decay)
    elif team.kind == "fsdp":
        raise ValueError("fsdp replaces the parameters: leave `groups` to the config, or use ddp")
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    kind = Muon if "muon" in groups[0] else torch.optim.AdamW
    optimiser = kind(groups, betas=config.betas, eps=config.eps, fused=True)
    stop = config.steps if until is None else min(until, config.steps)
    parts = config.accumulate

    lock = runfolder.locked(folder) if team.first else nullcontext()
    eight = float8_products(model, where) if config.dtype == "float8" else nullcontext()
    with lock, borrowed_randomness(where), eight:
        start = restore(model, optimiser, config, folder, resume, team)
        if team.first and config.dtype == "auto" and config.save_every:
            keep_dtype(dtype, folder)
        own = team.share(range(start * parts, stop * parts))
        batches = read(source, own, config.workers)
        began, spent = time.monotonic(), cpu_seconds(folder, start) - time.process_time()
        optimiser.zero_grad()
        with RunLog(folder, start) if team.first else nullcontext() as log, closing(batches):
            for done in range(start, stop):
                rate = learning_rate(done, config.steps, config.warmup, config.lr, config.min_lr)
                for group in optimiser.param_groups:
                    group["lr"] = rate * group["scale"]
                runner.train()
                numbers = team.share(range(done * parts, (done + 1) * parts))
                loss, metrics = backward(
                    runner, step, batches, numbers, config.seed, where, dtype, team
                )
                grads = [p.grad for p in trained.values() if p.grad is not None]
                norm = whole(get_total_norm(grads))
                if not math.isfinite(loss + norm.item()):
                    raise not_finite(done + 1, loss, norm, numbers, source, trained, folder)
                if config.clip is not None:
                    clip_grads_with_norm_(trained.values(), config.clip, norm)
                optimiser.step()
                optimiser.zero_grad()
                now = done + 1

                if now % config.log_every == 0 or now in (1, config.steps):
                    each = (time.monotonic() - began) / (now - start)
                    record = averages(metrics, team) | {
                        "step": now,
                        "loss": loss,
                        "lr": rate,
                        "grad_norm": norm.item(),
                        "samples_per_second": config.batch_size / each,
                        "seconds_left": (config.steps - now) * each,
                        "cpu_seconds": spent + time.process_time(),
                    }
                    if on_log is not None and team.first:
                        on_log(record)
                    if log:
                        log.write(record)
                if config.save_every and (now % config.save_every == 0 or now == stop):
                    if log:
                        log.settle()
                    keep(model, optimiser, config, folder, now, team)
    model.eval()
    return read_metrics(folder)


def compiles(config: TrainConfig, device: torch.device) -> bool:
    """Whether a run trains compiled code: as the config says, or by device and length."""
    if config.compile == "auto":
        return device.type == "cuda" and config.steps >= LONG
    return config.compile


def backward(
    model: nn.Module,
    step: Step,
    batches: Iterator[Any],
    numbers: range,
    seed: int,
    device: torch.device,
    dtype: torch.dtype,
    team: Team = ALONE,
) -> tuple[float, list[Metrics]]:
    """Add the gradients of the mean loss over the batches `numbers`; that loss, their metrics."""
    losses, metrics = [], []
    for number in numbers:
        batch = to_device(next(batches), device)
        seed_everything(seed_of(seed, number))
        with team.syncing(model, number == numbers[-1]):
            with autocast(device, dtype):
                loss, scalars = step(model, batch, generator_of(seed, number, 2))
            (loss / len(numbers)).backward()
        losses.append(loss.detach())
        metrics.append(scalars)
    return team.mean(torch.stack(losses).mean()).item(), metrics


def averages(metrics: list[Metrics], team: Team = ALONE) -> Record:
    """Mean of each scalar over the parts of a batch, those of other processes too."""
    values = {
        name: [torch.as_tensor(part[name]).detach() for part in metrics] for name in metrics[0]
    }
    means = {name: torch.stack(parts).float().mean() for name, parts in values.items()}
    return {name: team.mean(mean).item() for name, mean in means.items()}


def cpu_seconds(folder: Path, step: int) -> float:
    """What the run in `folder` had used up to `step`, as far as its log says."""
    records = [record for record in read_metrics(folder) if record["step"] <= step]
    return records[-1].get("cpu_seconds", 0.0) if records else 0.0


def keep(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    config: TrainConfig,
    folder: Path,
    step: int,
    team: Team = ALONE,
) -> None:
    """Write the checkpoint after `step` updates."""
    if team.kind == "fsdp":
        sharded.save(folder, step, asdict(config), model, optimiser)
        return
    if not team.first:
        return
    state = {
        "step": step,
        "config": asdict(config),
        "threads": torch.get_num_threads(),
        "model": model.state_dict(),
        "optimiser": optimiser.state_dict(),
    }
    runfolder.save(folder, step, state)


def restore(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    config: TrainConfig,
    folder: Path,
    resume: Literal["auto", "never"],
    team: Team = ALONE,
) -> int:
    """Bring model and optimiser to the folder's newest checkpoint; the updates made so far."""
    with team.first_then_rest():  # the first one puts damaged checkpoints aside
        state, shards = runfolder.load_newest(folder), sharded.newest(folder)
    if shards is not None and (state is None or shards["step"] > state["step"]):
        state = shards
    if resume == "never" and (state is not None or read_metrics(folder)):
        raise ValueError(f"{folder} holds a run already: name an empty folder")
    if state is None:
        if config.save_every and team.kind != "fsdp":
            keep(model, optimiser, config, folder, 0, team)  # an interrupted start can be repeated
        return 0
    now, then = asdict(config), state["config"]
    differ = {k: (then[k], now[k]) for k in now if k not in FREE and then.get(k) != now[k]}
    if differ:
        raise ValueError(f"{folder} was begun with another config (then, now): {differ}")
    if state["threads"] != torch.get_num_threads():
        warnings.warn(
            f"{folder} was begun with {state['threads']} threads, this run has "
            f"{torch.get_num_threads()}: sums round differently, results may differ in last bits",
            stacklevel=3,
        )
    if state is shards:
        sharded.load(state, model, optimiser)
    else:
        sharded.load_whole(state, model, optimiser)
    return state["step"]


def not_finite(
    step: int,
    loss: float,
    norm: Tensor,
    numbers: range,
    source: Source,
    trained: Mapping[str, Tensor],
    folder: Path,
) -> FloatingPointError:
    """The error that tells all one needs to look into a loss that exploded."""
    bad = [
        n for n, p in trained.items() if p.grad is not None and not whole(p.grad.isfinite().all())
    ]
    kept = runfolder.checkpoints(folder)
    return FloatingPointError(
        f"step {step}: loss {loss}, gradient norm {norm.item()}; the parameters are unchanged. "
        f"Samples: {[name for number in numbers for name in source.names(number)]}. "
        f"Gradients not finite in {len(bad)} of {len(trained)} parameters, first {bad[:3]}. "
        f"Last good checkpoint: {kept[-1] if kept else 'none'}"
    )


def seed_everything(seed: int) -> None:
    """Start torch's, numpy's and Python's global generators from one seed.

    Saving and restoring their states instead has an order that one can get wrong: DataLoader, for
    one, draws from torch's generator when it starts.
    """
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


@contextmanager
def borrowed_randomness(device: torch.device) -> Iterator[None]:
    """Give the caller's global generators back as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
