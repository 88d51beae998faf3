"""Where to read an answer: [CLS] by fresh layers, or a <mask> behind the question.

    python tools/study_readout.py results/vqa_readout.json --steps 411 --seeds 3

The recipe scenes-vqa from the shipped tiny, once with the released model's head
(`VisualQuestionAnswerer`) and once with the lab's (`ClozeAnswerer`), everything else equal.
"""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from tempfile import TemporaryDirectory

import torch

from minibeit3.batches import generator_of
from minibeit3.checkpoint import backbone_of
from minibeit3.data.paths import data_root
from minibeit3.finetune import Job, finetune, prepare
from minibeit3.modes import VisualQuestionAnswerer
from minibeit3.provenance import provenance, write_results

CLOZE, CLS = "<mask> behind the question", "[CLS]"


def main() -> None:
    """Train both heads from every seed and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=411)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit", type=int, default=500, help="test questions")
    given = parser.parse_args()
    torch.set_num_threads(1)
    runs = []
    for seed in range(given.seeds):
        for kind in (CLOZE, CLS):
            job = opened(kind, seed)
            plan = replace(job.plan(given.steps), save_every=0, log_every=given.steps)
            began = time.process_time()
            with TemporaryDirectory() as folder:
                model, _ = finetune(job, folder, plan, device="cpu")
            spent = time.process_time() - began
            with torch.inference_mode():
                figures = job.recipe.evaluate(model, given.limit)
            figures = {name: round(value, 4) for name, value in figures.items()}
            runs.append({"read": kind, "seed": seed, "cpu_s": round(spent, 1), "figures": figures})
            sys.stderr.write(f"{kind}, seed {seed}: {figures['accuracy']}\n")
    found = {
        kind: [r["figures"]["accuracy"] for r in runs if r["read"] == kind] for kind in (CLOZE, CLS)
    }
    told = {
        "what": "accuracy of scenes-vqa by where the answer is read, from the shipped tiny",
        **provenance("tools/study_readout.py"),
        "steps": given.steps,
        "test_questions": given.limit,
        "summary": {
            kind: {"mean": round(mean(v), 4), "sd": round(stdev(v), 4), "n": len(v)}
            for kind, v in found.items()
            if len(v) > 1
        },
        "runs": runs,
    }
    write_results(given.out, told)


def opened(kind: str, seed: int) -> Job:
    """The recipe's job, with the released model's head where `kind` asks for it."""
    job = prepare("scenes-vqa", data_root() / "checkpoints" / "tiny", seed=seed)
    if kind == CLOZE:
        return job
    model = VisualQuestionAnswerer(
        backbone_of(job.model), len(job.recipe.labels), generator_of(seed, 1)
    )
    return replace(job, model=model)


if __name__ == "__main__":
    main()
