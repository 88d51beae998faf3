"""The machine that figures belong to: what it is, what its products reach, what a run holds."""

import gc
import platform
import time
from typing import Any

import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from minibeit3.bench import NAMES, Run
from minibeit3.provenance import cpu_name

SIDE, TURNS = 1024, 4


def machine(device: str) -> dict[str, Any]:
    """What the figures belong to."""
    gpu = torch.cuda.get_device_name() if device == "cuda" else None
    return {
        "cpu": cpu_name(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "gpu": gpu,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "clock": "wall" if gpu else "process CPU time",
    }


def ceilings(device: str, side: int = SIDE) -> dict[str, float]:
    """GFLOP/s of one large square product by the type's name, the best of a few turns."""
    clock = time.perf_counter if device == "cuda" else time.process_time
    found = {}
    for dtype, name in NAMES.items():
        a, b = (torch.full((side, side), 0.5, dtype=dtype, device=device) for _ in range(2))
        seconds = []
        for _ in range(TURNS + 1):
            began = clock()
            F.linear(a, b)
            if device == "cuda":
                torch.cuda.synchronize()
            seconds.append(clock() - began)
        found[name] = 2 * side**3 / min(seconds[1:]) / 1e9
    return found


def peak_bytes(run: Run, device: str) -> int:
    """The most that tensors of a run hold at once, beyond what was there before it.

    On a CPU the allocator's every event is added up; what libraries take for themselves is not
    seen. The run is called twice, so that what stays from its first call (moments) does not count.
    """
    run()
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as seen:
        run()
    assert seen.profiler is not None and seen.profiler.kineto_results is not None
    events: Any = seen.profiler.kineto_results.events()
    held = peak = 0
    for _, size in sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"):
        held += size
        peak = max(peak, held)
    return peak
