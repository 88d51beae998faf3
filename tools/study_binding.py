"""What to hide of a caption, so that a model learns who has what: results/binding_masks.json.

    python tools/study_binding.py --seeds 3

The recipe `binding` trains a model to guess hidden tokens of true captions. Here it is trained with
one token hidden, with three of ten, and with those that the caption of the twin scene has not, all
at once. Each model is asked in two ways: its tokens hidden in turn, and at once. The start is
`nano`, whose pretraining hid words at random.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from minibeit3.data.sample import Sample
from minibeit3.finetune import finetune, prepare
from minibeit3.modes import CaptionScorer
from minibeit3.provenance import ROOT, provenance, write_results
from minibeit3.recipe import Figures, Setup, in_batches
from minibeit3.recipes.binding import Hidden, binding_figures, crossed, fused_scores, own

START = "data_samples/checkpoints/nano"
SHARES = {"one token": 0.0, "three of ten": 0.3, "what differs": None}


def main() -> None:
    """Train and ask every arm over the seeds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "binding_masks.json")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit", type=int, default=300, help="test items")
    given = parser.parse_args()
    runs = [
        one_run(arm, seed, given.steps, given.limit)
        for seed in range(given.seeds)
        for arm in SHARES
    ]
    found: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        for name, value in run["figures"].items():
            found.setdefault(run["hidden"], {}).setdefault(name, []).append(value)
    summary = {
        arm: {name: [mean(v), stdev(v) if len(v) > 1 else None, len(v)] for name, v in by.items()}
        for arm, by in found.items()
    }
    told = {
        "what": "group score of binding pairs by what training hid and by how the model is asked",
        "start": START,
        **provenance("tools/study_binding.py"),
        "steps": given.steps,
        "test_items": given.limit,
        "mean_sd_n": summary,
        "runs": runs,
    }
    write_results(given.out, told)


def one_run(arm: str, seed: int, steps: int, limit: int) -> dict[str, Any]:
    """One model: what it cost, and its group scores."""
    job = prepare("binding", ROOT / START, seed=seed)
    share, setup = SHARES[arm], job.setup
    if share is not None:
        recipe = replace(job.recipe, collate=lambda samples, g: at_random(samples, setup, share, g))
        job = replace(job, recipe=recipe)
    plan = replace(job.plan(steps), save_every=0, log_every=steps)
    began = time.process_time()
    with TemporaryDirectory() as folder:
        model, _ = finetune(job, folder, plan, device="cpu")
    spent = time.process_time() - began
    figures: Figures = {}
    with torch.inference_mode():
        for way, score in (("in turn", turn_scores), ("at once", fused_scores)):
            told = binding_figures(model, setup, limit, score)
            figures |= {f"{way}/{k}": round(v, 4) for k, v in told.items() if k.startswith("group")}
    sys.stderr.write(f"{arm}, seed {seed}: {figures}\n")
    return {"hidden": arm, "seed": seed, "cpu_s": round(spent, 1), "figures": figures}


def at_random(
    samples: Sequence[Sample], setup: Setup, share: float, generator: torch.Generator
) -> Hidden:
    """True captions with a share of their tokens hidden, at least one of each."""
    batch = own(samples, setup)
    inner = F.pad(batch.real[:, 2:], (1, 1))  # neither <s> nor </s>
    drawn = torch.rand(inner.shape, generator=generator).masked_fill(~inner, 2)
    hidden = (drawn < share).scatter(1, drawn.argmin(dim=1, keepdim=True), True)
    return batch._replace(hidden=hidden)


def turn_scores(model: CaptionScorer, samples: Sequence[Sample], setup: Setup) -> Tensor:
    """As `fused_scores`, each token of the whole caption hidden alone (pseudo-log-likelihood)."""
    found = []
    for _, batch in in_batches(model, samples, lambda part: crossed(part, setup)):
        inner = F.pad(batch.real[:, 2:], (1, 1))
        total = torch.zeros(len(inner))
        for place in range(1, inner.shape[1] - 1):
            alone = torch.zeros_like(inner)
            alone[:, place] = inner[:, place]
            total += model(batch.image, batch.text, batch.real, alone)
        found.append(rearrange(total, "(B i t) -> B i t", i=2, t=2))
    return torch.cat(found)


if __name__ == "__main__":
    main()
