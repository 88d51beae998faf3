"""Pretrain a small model many times, one thing changed at a time: results/study_pretraining.json.

    python tools/study_pretraining.py --runs runs/study --arms base,adamw,faint --seeds 3

Every arm departs from `base` in what its line in `ARMS` says. One run at a time, seed by seed, so
that a study that is cut has every arm. What is in the file already is skipped: give the same
command again to go on. The model is `NANO`, the data are scenes of shapes and glosses, the figures
are those of `minibeit3.probes` on new scenes, of up to six things and of one.
"""

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from minibeit3.backbones import Backbone, build_backbone, preset
from minibeit3.batches import generator_of
from minibeit3.config import BEiT3Config
from minibeit3.data.images import to_model
from minibeit3.data.sample import Sample
from minibeit3.data.scene_captions import SceneCaptions
from minibeit3.masking import random_mask
from minibeit3.pixel_codes import PixelCodes
from minibeit3.pretrain import Hiding, open_data, pretrain
from minibeit3.probes_codes import masked_codes
from minibeit3.probes_words import exact, masked_words, word_ceiling
from minibeit3.storage import write_file
from minibeit3.text_tokenizer import TextTokenizer
from minibeit3.train import TrainConfig

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "results" / "study_pretraining.json"
NANO = replace(preset("tiny"), depth=4, image_size=32)  # 16 patches: a step costs a fifth of tiny's
CODES, CODE_PICTURES = 256, 1000
TESTED = 400


def faint(config: BEiT3Config, generator: torch.Generator) -> Backbone:
    """Patches that start from the paper's normals (.02 cut at one deviation), as BEiT's do."""
    backbone = build_backbone(config, generator)
    with torch.no_grad():
        weight = backbone.image_embed.patch.weight
        torch.nn.init.trunc_normal_(weight, std=0.02, a=-0.02, b=0.02, generator=generator)
    return backbone


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to pretrain; `steps` is a factor on the budget."""

    config: BEiT3Config = NANO
    data: tuple[str, ...] = ("scenes-1", "scenes-2", "scenes", "glosses")
    hiding: Hiding = field(default_factory=Hiding)
    image_weight: float = 1.0
    clip: float | None = 3.0
    muon: bool = True
    build: Callable[[BEiT3Config, torch.Generator], Backbone] = build_backbone
    steps: float = 1.0


ARMS: dict[str, Arm] = {
    "base": Arm(),
    "adamw": Arm(muon=False),
    "faint": Arm(build=faint),
    "scenes of all sizes": Arm(data=("scenes", "glosses")),
    "one thing": Arm(data=("scenes-1", "glosses")),
    "faint one thing": Arm(data=("scenes-1", "glosses"), build=faint),
    "adamw one thing": Arm(data=("scenes-1", "glosses"), muon=False),
    "pairs alone": Arm(image_weight=0.0, hiding=Hiding(pair_images=False)),
    "image weight 0.3": Arm(image_weight=0.3),
    "image weight 0": Arm(image_weight=0.0),
    "no clip": Arm(clip=None),
    "clip 1": Arm(clip=1.0),
    "whole images in pairs": Arm(hiding=Hiding(pair_images=False)),
    "random patches": Arm(hiding=Hiding(draw=random_mask)),
    "pair text 15%": Arm(hiding=Hiding(pair_text=0.15)),
    "pair text 30%": Arm(hiding=Hiding(pair_text=0.30)),
    "pair text 70%": Arm(hiding=Hiding(pair_text=0.70)),
    "fusion layers 0": Arm(config=replace(NANO, fusion_layers=0)),
    "fusion layers 1": Arm(config=replace(NANO, fusion_layers=1)),
    "fusion layers 4": Arm(config=replace(NANO, fusion_layers=4)),
    "decoupled": Arm(config=replace(NANO, variant="released", fusion_layers=0, max_text_length=62)),
    "budget 1/30": Arm(steps=1 / 30),
    "budget 1/10": Arm(steps=1 / 10),
    "budget 1/3": Arm(steps=1 / 3),
    "budget 3": Arm(steps=3),
}


def main() -> None:
    """Run what is missing and renew the summary after each run."""
    given = arguments()
    arms = list(ARMS) if given.arms == "all" else given.arms.split(",")
    if unknown := set(arms) - ARMS.keys():
        raise SystemExit(f"unknown arms {sorted(unknown)}: choose from {', '.join(ARMS)}")
    study = json.loads(OUT.read_text()) if OUT.exists() else {"runs": []}
    done = {(r["arm"], r["steps"], r["seed"]) for r in study["runs"]}
    for seed in range(given.seeds):
        for name in arms:
            steps = max(20, round(given.steps * ARMS[name].steps))
            if (name, steps, seed) not in done:
                sys.stderr.write(f"{time.strftime('%H:%M:%S')} {name}, seed {seed}\n")
                study["runs"].append(one_run(name, steps, seed, given))
                keep(study)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, required=True, help="a folder for the run folders")
    parser.add_argument("--arms", default="all", help=f"comma between: {', '.join(ARMS)}")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1000, help="updates of the arm `base`")
    parser.add_argument("--batch-size", type=int, default=48, help="in equal thirds")
    parser.add_argument("--lr", type=float, default=2e-3)
    return parser.parse_args()


def one_run(name: str, steps: int, seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """Pretrain one arm from one seed and probe it."""
    arm = ARMS[name]
    side = arm.config.image_size
    plan = TrainConfig(
        steps=steps,
        batch_size=given.batch_size,
        lr=given.lr,
        warmup=max(1, steps // 20),
        clip=arm.clip,
        seed=seed,
        save_every=200,
    )
    codes = PixelCodes(side, arm.config.patch_size, CODES).fit(drawn(side), generator_of(0)).tokens
    folder = given.runs / f"{name.replace(' ', '-').replace('/', '-')}_{steps}_{seed}"
    model, records = pretrain(
        arm.config,
        open_data(arm.data, side),
        codes,
        plan,
        folder,
        hiding=arm.hiding,
        image_weight=arm.image_weight,
        text_length=24,
        muon=arm.muon,
        build=arm.build,
    )
    for checkpoint in folder.glob("step-*.pt"):
        checkpoint.unlink()
    tokenizer, figures = TextTokenizer.lab(), {}
    samples = tested(side, tokenizer)
    for most, scenes in (("", samples), ("one thing/", tested(side, tokenizer, most=1))):
        for picture in ("right", "shuffled", "none"):
            told = masked_words(model, scenes, tokenizer, picture=picture)
            for kind, found in told.items():
                figures[f"words/{most}{picture}/{kind}"] = found.accuracy
        for rule, told in word_ceiling(scenes, tokenizer).items():
            figures[f"words/{most}{rule}/all"] = told["all"].accuracy
    for text in ("right", "shuffled", "none"):
        figures[f"codes/{text}"] = masked_codes(
            model, samples, tokenizer, codes, text=text
        ).accuracy
    return {
        "arm": name,
        "steps": steps,
        "seed": seed,
        "cpu_seconds": round(records[-1]["cpu_seconds"], 1),
        "commit": git("rev-parse", "--short", "HEAD"),
        "changed_files": len(git("status", "--porcelain", "--untracked-files=no").splitlines()),
        "figures": {key: round(value, 5) for key, value in figures.items()},
    }


def drawn(side: int) -> torch.Tensor:
    """Pictures in [0, 1] that the pixel codes are fitted to."""
    data = SceneCaptions("train", CODE_PICTURES, side)
    images = [data[i].image for i in range(CODE_PICTURES)]
    return torch.cat([to_model(x[None], side) for x in images if x is not None]) / 2 + 0.5


def tested(side: int, tokenizer: TextTokenizer, most: int | None = None) -> list[Sample]:
    """New scenes whose captions have an exact ceiling."""
    data = SceneCaptions("test", 2 * TESTED, side, most=most)
    return [sample for i in range(2 * TESTED) if exact(sample := data[i], tokenizer)][:TESTED]


def keep(study: dict[str, Any]) -> None:
    """Write the study with its summary, whole or not at all."""
    summary = {}
    for arm, steps in dict.fromkeys((r["arm"], r["steps"]) for r in study["runs"]):
        runs = [r for r in study["runs"] if (r["arm"], r["steps"]) == (arm, steps)]
        figures = {}
        for key in runs[0]["figures"]:
            values = [r["figures"][key] for r in runs if key in r["figures"]]
            spread = stdev(values) if len(values) > 1 else None
            figures[key] = {"mean": mean(values), "sd": spread, "n": len(values)}
        summary[f"{arm}, {steps} steps"] = figures
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), "")
    whole = {
        "what": "masked words and codes on new scenes of shapes after short pretrainings of NANO",
        "command": f"python tools/study_pretraining.py {shlex.join(sys.argv[1:])}",
        "machine": f"{cpu or platform.processor()}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads used, torch {torch.__version__}",
        "runs": study["runs"],
        "summary": summary,
    }
    write_file(OUT, (json.dumps(whole, indent=1) + "\n").encode())


def git(*words: str) -> str:
    """What git says."""
    run = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
    return run.stdout.strip()


if __name__ == "__main__":
    main()
