"""A pretraining run on many GPUs, by arithmetic: memory, communication and time of one update.

Nothing here is measured. `Machine` holds what is assumed; PERF figures of one's own replace it.
"""

import math
from dataclasses import dataclass
from typing import Any

from minibeit3.config import BEiT3Config
from minibeit3.info import Mode, task_parameters, training_flops, training_memory

PAPER_BATCH = 2048  # triples of an image, a text and a pair (paper, section 2.3: 6,144 samples)
MODES: tuple[Mode, ...] = ("image", "text", "pair")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """One GPU and its links; the defaults are an H200 in nodes of eight.

    memory: bytes one may use. flops: bfloat16 operations per second that matrix products reach
    (788e12 measured, of 989e12 on paper) times what a whole step keeps of that (0.6, a goal).
    near, far: bytes per second and GPU within a node and between nodes. node: GPUs of a node.
    """

    memory: float = 130 * 2**30
    flops: float = 0.6 * 788e12
    near: float = 300e9
    far: float = 40e9
    node: int = 8


def plan(
    config: BEiT3Config,
    gpus: int,
    triples: int = PAPER_BATCH,
    text_length: int = 64,
    machine: Machine | None = None,
) -> dict[str, Any]:
    """One update of `triples` images, texts and pairs on `gpus` GPUs.

    kind: "ddp" where parameters, gradients and AdamW's moments (16 bytes per parameter) leave half
    of the memory free, else "fsdp". recompute: True where not even one triple fits without.
    accumulate: parts per update, for `minibeit3 pretrain`. Bytes are per GPU, seconds per update,
    compute and communication one after the other at worst, side by side at best. ValueError for
    impossible numbers, or when the state does not fit.
    """
    m = machine or Machine()
    if gpus < 1 or triples % gpus:
        raise ValueError(f"{triples} triples cannot be shared by {gpus} GPUs: give a divisor")
    parameters = task_parameters("pretraining", config, {})
    state = 16 * parameters
    kind = "ddp" if state <= m.memory / 2 else "fsdp"
    held = state // (gpus if kind == "fsdp" else 1)
    own, free = triples // gpus, m.memory - held
    kept = sum(
        training_memory(config, 0, mode, text_length)["activations"] // 2 for mode in MODES
    )  # bfloat16: half of float32
    inputs_only = 2 * config.width * config.depth * 2 * (config.image_tokens + text_length)
    recompute = free < kept and own > 0
    each = inputs_only + kept // config.depth if recompute else kept
    if free < each:
        raise ValueError(
            f"{held / 2**30:.1f} GiB of state and {each / 2**30:.1f} of one triple exceed "
            f"{m.memory / 2**30:.0f} GiB: take more GPUs"
        )
    at_once = min(own, int(free // each))
    parts = math.ceil(own / at_once)
    while own % parts:
        parts += 1
    # FSDP gathers bfloat16 weights for each pass of each part, and reduces float32 gradients once.
    passes = (3 if recompute else 2) * parts
    sent = parameters * (2 * passes + 4 if kind == "fsdp" else 2 * 4) * (gpus - 1) / gpus
    link = m.near if gpus <= m.node else m.far
    flops = triples * sum(training_flops(config, mode, text_length) for mode in MODES)
    compute = flops * (4 / 3 if recompute else 1) / gpus / m.flops
    talk = sent / link
    return {
        "gpus": gpus,
        "kind": kind if gpus > 1 else "one",
        "recompute": recompute,
        "triples_at_once": own // parts,
        "accumulate": parts * gpus,
        "state_bytes": held,
        "activation_bytes": each * (own // parts),
        "sent_bytes": int(sent),
        "compute_seconds": compute,
        "communication_seconds": talk,
        "seconds_at_best": max(compute, talk),
        "seconds_at_worst": compute + talk,
        "days_per_million_updates": max(compute, talk) * 1e6 / 86400,
    }
