"""One run in several processes, on torch's own engines; `torchrun` starts them.

    torchrun --nproc-per-node 2 --max-restarts 3 -m -- minibeit3 pretrain run --accumulate 2

(After two dashes torchrun reads no option: it takes `--start` for the beginning of one of its own.)
Process r of W takes parts r, r + W, ... of every batch; gradients are averaged. The parts are those
of one process with the same `accumulate`, so neither what is learned nor the order of the data
depends on W, and a job may go on with more or fewer processes. A worker that dies stops its job;
with --max-restarts it starts again at the last checkpoint. On CPUs (gloo) a restart also needs
TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in torchrun's environment: else the new processes find the
addresses of the dead ones and wait for them.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._composable.checkpoint_activation import checkpoint as recompute_block
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from minibeit3.model import Block
from minibeit3.released import DecoupledBlock

Metrics = Mapping[str, float | Tensor]
Step = Callable[[nn.Module, Any, torch.Generator], tuple[Tensor, Metrics]]
Kind = Literal["ddp", "fsdp"]
Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class Team:
    """The processes of a run; `Team()` is one process by itself, which changes nothing.

    rank, size: this process and how many there are. kind: None = by itself; "ddp" = each holds the
    whole model; "fsdp" = each holds its share of every parameter, gradient and moment.
    recompute: True = keep only the inputs of each block and compute the rest twice.
    """

    rank: int = 0
    size: int = 1
    kind: Kind | None = None
    recompute: bool = False

    @property
    def first(self) -> bool:
        """True in the one process that writes and talks."""
        return self.rank == 0

    def share(self, numbers: range) -> range:
        """The batches of this process; ValueError unless all get equally many."""
        if len(numbers) % self.size:
            raise ValueError(
                f"{len(numbers)} parts of a batch cannot be shared by {self.size} processes: "
                f"set accumulate to a multiple of {self.size}"
            )
        return numbers[self.rank :: self.size]

    def spread(
        self, model: nn.Module, step: Step, device: torch.device, dtype: torch.dtype, compiled: bool
    ) -> tuple[nn.Module, Step]:
        """What to train and how to step it. "fsdp" shards the model's parameters in place."""
        blocks = [m for m in model.modules() if isinstance(m, Block | DecoupledBlock)]
        for block in blocks if self.recompute else ():
            recompute_block(block)
        if self.kind == "fsdp":
            mesh = init_device_mesh(device.type, (self.size,))
            low = None if dtype == torch.float32 else dtype
            policy = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32)
            for block in blocks:
                if compiled:
                    block.compile()
                fully_shard(block, mesh=mesh, mp_policy=policy)
            task = Whole(model, step)
            fully_shard(task, mesh=mesh, mp_policy=policy)
            return task, _run
        runner: Any = torch.compile(model) if compiled else model
        if self.kind is None:
            return runner, step
        # A task that reads one modality leaves the other's experts without gradients.
        return DistributedDataParallel(Whole(runner, step), find_unused_parameters=True), _run

    @contextmanager
    def syncing(self, runner: nn.Module, last: bool) -> Iterator[None]:
        """Forward and backward of one part: gradients travel after the last one only."""
        if isinstance(runner, DistributedDataParallel) and not last:
            with runner.no_sync():
                yield
            return
        if isinstance(runner, FSDPModule):
            runner.set_requires_gradient_sync(last)
        yield

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a scalar over the processes."""
        if self.size == 1:
            return value
        total = value.detach().double()
        dist.all_reduce(total)
        return total / self.size

    def agreed(self, dtype: torch.dtype, device: torch.device) -> torch.dtype:
        """The type that all processes named; float32 if they differ."""
        low = torch.tensor(float(dtype != torch.float32), device=device)
        return dtype if self.mean(low) in (0, 1) else torch.float32

    @contextmanager
    def first_then_rest(self) -> Iterator[None]:
        """The first process runs the block alone, then all others do."""
        if not self.first:
            dist.barrier()
        yield
        if self.first and self.size > 1:
            dist.barrier()

    def gather(self, model: Model, fresh: Callable[[], Model]) -> Model:
        """The model with whole parameters; `fresh` makes one to put a sharded one's into."""
        if self.kind != "fsdp":
            return model
        state = {name: whole(value).cpu() for name, value in model.state_dict().items()}
        model = fresh()
        model.load_state_dict(state)
        return model.eval()


class Whole(nn.Module):
    """A model and its step as one module: the engines act in its forward, whatever step calls."""

    def __init__(self, model: nn.Module, step: Step) -> None:
        super().__init__()
        self.model, self.step = model, step

    def forward(self, batch: Any, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        return self.step(self.model, batch, generator)


def _run(runner: nn.Module, batch: Any, generator: torch.Generator) -> tuple[Tensor, Metrics]:
    return runner(batch, generator)


def whole(value: Tensor) -> Tensor:
    """A sharded tensor with all its parts, in every process; any other tensor as it is."""
    return value.full_tensor() if isinstance(value, DTensor) else value


@contextmanager
def joined(
    kind: Kind = "ddp", recompute: bool = False, timeout: timedelta = timedelta(minutes=10)
) -> Iterator[Team]:
    """The team that torchrun started this process in; without torchrun, a team of one.

    timeout: how long a process waits for another that says nothing before it gives up.
    """
    if kind not in ("ddp", "fsdp"):
        raise ValueError(f"unknown kind {kind!r}: choose ddp or fsdp")
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield Team(recompute=recompute)
        return
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if cuda else "gloo", timeout=timeout)
    rank, size = dist.get_rank(), dist.get_world_size()
    yield Team(rank=rank, size=size, kind=kind, recompute=recompute)
    dist.destroy_process_group()
