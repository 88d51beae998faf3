"""Data order as a pure function of (seed, number): nothing to save, nothing to restore.

Batch `number` of a run is the same whoever loads it, in whatever order, after any interruption.
"""

import hashlib
from array import array
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader


class Source(Protocol):
    """What a training run reads. Both methods depend on nothing but `number` (0, 1, 2, ...)."""

    def batch(self, number: int) -> Any:
        """Batch `number`: tensors, or dicts, sequences, named tuples, dataclasses of them."""
        ...

    def names(self, number: int) -> list[str]:
        """The keys of its samples, for error messages."""
        ...


def seed_of(*numbers: int) -> int:
    """One seed, 0 <= seed < 2^63, out of several numbers: neighbours get unrelated seeds."""
    digest = hashlib.sha256(repr(numbers).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator_of(*numbers: int) -> torch.Generator:
    """A fresh CPU generator that starts from `seed_of(*numbers)`."""
    return torch.Generator().manual_seed(seed_of(*numbers))


@lru_cache(maxsize=32)  # mixed batches follow several datasets at once
def order(size: int, seed: int, epoch: int) -> Sequence[int]:
    """Every index below `size` once, shuffled anew for each epoch."""
    return array("q", torch.randperm(size, generator=generator_of(seed, epoch)).numpy().tobytes())


class Batches:
    """Shuffled batches of a dataset; a batch may span two epochs, so none is short."""

    def __init__(
        self,
        samples: Sequence[Any],
        size: int,
        seed: int,
        collate: Callable[[list[Any], torch.Generator], Any],
    ) -> None:
        """collate: samples and the batch's own generator (for augmentation) to one batch."""
        if not len(samples) or size < 1:
            raise ValueError(f"{len(samples)} samples in batches of {size}: both must be above 0")
        self.samples, self.size, self.seed, self.collate = samples, size, seed, collate

    def indices(self, number: int) -> list[int]:
        """The places of batch `number` in the dataset."""
        places = range(number * self.size, (number + 1) * self.size)
        total = len(self.samples)
        return [order(total, self.seed, place // total)[place % total] for place in places]

    def batch(self, number: int) -> Any:
        """Batch `number`, collated."""
        chosen = [self.samples[i] for i in self.indices(number)]
        return self.collate(chosen, generator_of(self.seed, number, 1))

    def names(self, number: int) -> list[str]:
        """Keys of its samples, or their indices where samples have no key."""
        return [str(getattr(self.samples[i], "key", i)) for i in self.indices(number)]


class _Numbered:
    """A source as the indexable thing that DataLoader asks for."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __getitem__(self, number: int) -> Any:
        return self.source.batch(number)


def _as_is(batch: Any) -> Any:
    return batch


def read(source: Source, numbers: range, workers: int) -> Generator[Any, None, None]:
    """Batches `numbers` in order; workers: processes that prepare them ahead, 0 = none."""
    if workers == 0:
        yield from (source.batch(number) for number in numbers)
        return
    yield from DataLoader(
        _Numbered(source),  # pyright: ignore[reportArgumentType]
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        collate_fn=_as_is,
    )


def to_device(batch: Any, device: torch.device) -> Any:
    """The batch with every tensor in it on `device`; what is no tensor stays as it is."""
    match batch:
        case Tensor():
            return batch.to(device, non_blocking=True)
        case Mapping():
            return {key: to_device(value, device) for key, value in batch.items()}
        case tuple() if hasattr(batch, "_fields"):
            return type(batch)(*(to_device(value, device) for value in batch))
        case list() | tuple():
            return type(batch)(to_device(value, device) for value in batch)
        case _ if is_dataclass(batch) and not isinstance(batch, type):
            moved = {f.name: to_device(getattr(batch, f.name), device) for f in fields(batch)}
            return replace(batch, **moved)
    return batch
