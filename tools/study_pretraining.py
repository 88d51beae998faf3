"""Pretrain a small model many times, one thing changed at a time: results/study_pretraining.json.

    python tools/study_pretraining.py --runs runs/study --dtype bfloat16 --seeds 3

Every arm departs from `base` in what its line in `ARMS` says, and in nothing else. The most telling
arms run first: all of `TELLING` from all seeds, seed by seed, then the others. So a study that is
cut has whole comparisons. What is in the file already is skipped: give the same command again to
go on. The model is the preset nano, the data are scenes with one thing and glosses, the figures
those of `minibeit3.probes` on new scenes. "gain/..." is what the other side of a pair adds: right
beside that of another pair. "features/..." needs no text: a linear layer on the features of
pictures alone, the same yardstick for every target. Each run names its dtype: the arm "float32" is
the base once more, to show what the dtype does.
"""

import argparse
import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from statistics import mean, stdev
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from minibeit3.backbones import Backbone, build_backbone, preset
from minibeit3.batches import generator_of
from minibeit3.codebook import code_usage
from minibeit3.config import BEiT3Config
from minibeit3.data.images import to_model
from minibeit3.data.sample import Sample
from minibeit3.data.scene_captions import SceneCaptions
from minibeit3.embed import Streams
from minibeit3.masking import random_mask
from minibeit3.muon import muon_groups
from minibeit3.objective import MaskedDataModel, masked_data_loss, masked_pixel_loss
from minibeit3.pixel_codes import PixelCodes
from minibeit3.precision import DType
from minibeit3.pretrain import Codes, Hiding, PretrainingBatches, masked_step, open_data
from minibeit3.probes_codes import code_baselines, masked_codes
from minibeit3.probes_words import exact, masked_words, pictures, word_ceiling
from minibeit3.provenance import cpu_name, machine, state
from minibeit3.references_linear import linear, pixels
from minibeit3.routing import Expert, LayerRoute
from minibeit3.runlog import Record
from minibeit3.storage import write_file
from minibeit3.teacher import build_teacher, pixel_features
from minibeit3.text_tokenizer import TextTokenizer
from minibeit3.train import TrainConfig, train
from minibeit3.train_vqkd import LAB, Plan, stack_images, teacher_targets
from minibeit3.train_vqkd import train as train_vqkd
from minibeit3.visual_tokenizer import VQKD

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "results" / "study_pretraining.json"
NANO = preset("nano")
SIDE, PATCH, CODES = NANO.image_size, NANO.patch_size, NANO.visual_vocab_size
CODE_PICTURES, VQKD_PICTURES, VQKD_STEPS = 1000, 3000, 800
TESTED, LINEAR, WATCHED, MARKS = 1000, 400, 150, 12
FEW = ("scenes-1", "glosses")
TEXT_LENGTH, TEXT_LENGTH_OF_MANY = 12, 24  # of captions of one thing, of more; with specials
SPLITS = ("val", "test")
NAMED = {"colour": "colour", "shape": "kind"}
CLASSES = ("all", "colour", "shape", "size")


class OneFFN(nn.Module):
    """In place of a layer's experts: one FFN for all tokens, whatever the route says.

    The other experts are gone, not merely unused: the model holds what it trains.
    """

    def __init__(self, ffn: nn.Module) -> None:
        super().__init__()
        self.ffn = ffn

    def forward(self, x: Streams, route: LayerRoute) -> Streams:
        return Streams(*(None if s is None else self.ffn(s) for s in x))


def one_ffn(config: BEiT3Config, generator: torch.Generator) -> Backbone:
    """The backbone with OneFFN in every layer."""
    backbone = build_backbone(config, generator)
    for block in cast(Iterable[Any], backbone.blocks):
        block.ffn = OneFFN(block.ffn.experts[Expert.V])
    return backbone


def faint(config: BEiT3Config, generator: torch.Generator) -> Backbone:
    """Patches that start from the paper's normals (.02 cut at one deviation), as BEiT's do."""
    backbone = build_backbone(config, generator)
    with torch.no_grad():
        weight = backbone.image_embed.patch.weight
        torch.nn.init.trunc_normal_(weight, std=0.02, a=-0.02, b=0.02, generator=generator)
    return backbone


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to pretrain; `steps` is a factor on the budget, 0 = random weights.

    pairs: how many of 96 samples; None = a third. dtype: None = that of the command.
    """

    config: BEiT3Config = NANO
    data: tuple[str, ...] = FEW
    hiding: Hiding = field(default_factory=Hiding)
    target: str = "pixel codes"
    image_weight: float = 1.0
    pairs: int | None = None
    clip: float | None = 3.0
    muon: bool = True
    dtype: DType | None = None
    build: Callable[[BEiT3Config, torch.Generator], Backbone] = build_backbone
    steps: float = 1.0


TELLING: dict[str, Arm] = {
    "base": Arm(),
    "random weights": Arm(steps=0),
    "one FFN for all": Arm(build=one_ffn),
    "decoupled": Arm(config=preset("nano", "released")),
    "random patches": Arm(hiding=Hiding(draw=random_mask)),
    "raw pixels": Arm(config=replace(NANO, visual_vocab_size=3 * PATCH**2), target="raw pixels"),
    "VQ-KD codes": Arm(target="VQ-KD codes"),
    "pair text 15%": Arm(hiding=Hiding(pair_text=0.15)),
    "pair text 70%": Arm(hiding=Hiding(pair_text=0.70)),
    "fusion layers 0": Arm(config=replace(NANO, fusion_layers=0)),
    "fusion layers 4": Arm(config=replace(NANO, fusion_layers=4)),
    "image weight 0": Arm(image_weight=0.0),
    "whole images in pairs": Arm(hiding=Hiding(pair_images=False)),
    "budget 1/10": Arm(steps=1 / 10),
    "budget 1/3": Arm(steps=1 / 3),
}
OTHERS: dict[str, Arm] = {
    "budget 3": Arm(steps=3),
    "one FFN twice as wide": Arm(config=replace(NANO, ffn_width=1024), build=one_ffn),
    "pair text 30%": Arm(hiding=Hiding(pair_text=0.30)),
    "fusion layers 1": Arm(config=replace(NANO, fusion_layers=1)),
    "image weight 0.3": Arm(image_weight=0.3),
    "one side of a pair": Arm(hiding=Hiding(one_side=0.5)),
    "twice as many pairs": Arm(pairs=64),
    "no clip": Arm(clip=None),
    "clip 1": Arm(clip=1.0),
    "float32": Arm(dtype="float32"),
    "adamw": Arm(muon=False),
    "faint": Arm(build=faint),
    "pairs alone": Arm(image_weight=0.0, hiding=Hiding(pair_images=False)),
    "up to six things": Arm(data=("scenes-1", "scenes-2", "scenes", "glosses")),
}
ARMS = TELLING | OTHERS


def main() -> None:
    """Run what is missing and renew the summary after each run."""
    given = arguments()
    names = list(ARMS) if given.arms == "all" else given.arms.split(",")
    if unknown := set(names) - ARMS.keys():
        raise SystemExit(f"unknown arms {sorted(unknown)}: choose from {', '.join(ARMS)}")
    study: dict[str, Any] = {"runs": []}
    if given.out.exists():
        study = json.loads(given.out.read_text())
    else:
        study["references"] = references(given.runs)
    done = {(r["arm"], r["steps"], r["seed"]) for r in study["runs"]}
    for group in (TELLING, OTHERS):
        for seed in range(given.seeds):
            for name in (n for n in names if n in group):
                factor = ARMS[name].steps
                steps = factor and max(5, round(given.steps * factor))
                if (name, steps, seed) not in done:
                    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {name}, seed {seed}\n")
                    study["runs"].append(one_run(name, int(steps), seed, given))
                    keep(study, given)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, required=True, help="a folder for the run folders")
    parser.add_argument("--out", type=Path, default=OUT, help="the results file")
    parser.add_argument("--arms", default="all", help=f"comma between: {', '.join(ARMS)}")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=600, help="updates of the arm `base`")
    parser.add_argument("--batch-size", type=int, default=96, help="in equal thirds")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument(
        "--dtype", default="float32", help="float32 or bfloat16, told with each run"
    )
    return parser.parse_args()


def one_run(name: str, steps: int, seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """Pretrain one arm from one seed and probe it."""
    arm, curve = ARMS[name], []
    codes = targets(arm.target, given.runs)
    torch.manual_seed(seed)  # the heads; the backbone has its own generator
    model = MaskedDataModel(arm.build(arm.config, generator_of(seed))).eval()
    began = time.process_time()
    if steps:
        folder = given.runs / f"{name.replace(' ', '-').replace('/', '-')}_{steps}_{seed}"
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was cut: it starts anew
        pretrain(model, arm, steps, seed, given, codes, folder, curve)
    spent = time.process_time() - began
    found = probed(model, codes, arm.target)
    return {
        "arm": name,
        "steps": steps,
        "seed": seed,
        "dtype": arm.dtype or given.dtype,
        "instructions": machine()["instructions"],
        "cpu_seconds": round(spent, 1),
        "parameters": sum(p.numel() for p in model.backbone.parameters()),
        **state(),
        "figures": {key: round(value, 5) for key, value in found.items()},
        "curve": curve,
    }


def pretrain(
    model: MaskedDataModel,
    arm: Arm,
    steps: int,
    seed: int,
    given: argparse.Namespace,
    codes: Codes,
    folder: Path,
    curve: list[list[float]],
) -> None:
    """Train the model in place; curve gets [step, right, shuffled] of the colour words."""
    tokenizer, watched = TextTokenizer.lab(), scenes("val")[:WATCHED]
    plan = TrainConfig(
        steps=steps,
        batch_size=given.batch_size,
        lr=given.lr,
        min_lr=given.lr / 2,  # a short run should not spend its end at rate 0
        warmup=max(1, steps // 10),
        clip=arm.clip,
        dtype=arm.dtype or given.dtype,
        seed=seed,
        save_every=0,
        log_every=max(1, steps // MARKS),
    )

    def watch(record: Record) -> None:
        model.eval()
        told = [masked_words(model, watched, tokenizer, picture=p) for p in ("right", "shuffled")]
        found = [round(words["colour"].accuracy, 4) for words in told]
        curve.append([float(record["step"]), *found])

    loss = masked_pixel_loss if arm.target == "raw pixels" else masked_data_loss
    length = TEXT_LENGTH if arm.data == FEW else TEXT_LENGTH_OF_MANY
    source = PretrainingBatches(
        open_data(arm.data, SIDE),
        plan.part_size,
        tokenizer,
        arm.config,
        arm.hiding,
        length,
        seed,
        arm.pairs,
    )
    train(
        model,
        masked_step(codes, arm.image_weight, loss),
        source,
        plan,
        folder,
        groups=muon_groups(model, plan.weight_decay) if arm.muon else None,
        on_log=watch,
    )


def probed(model: MaskedDataModel, codes: Codes, target: str) -> dict[str, float]:
    """The figures of a model on new scenes with one thing."""
    tokenizer, samples, found = TextTokenizer.lab(), scenes("test"), {}
    for picture in ("right", "shuffled", "none"):
        told = masked_words(model, samples, tokenizer, picture=picture)
        found |= {f"words/{picture}/{kind}": told[kind].accuracy for kind in CLASSES}
    gains = {k: found[f"words/right/{k}"] - found[f"words/shuffled/{k}"] for k in CLASSES}
    found |= {f"gain/words/{kind}": gain for kind, gain in gains.items()}
    if target != "raw pixels":
        for text in ("right", "shuffled", "none"):
            told = masked_codes(model, samples, tokenizer, codes, text=text)
            found[f"codes/{text}"] = told.accuracy
        found["gain/codes"] = found["codes/right"] - found["codes/shuffled"]
    known, asked = (features(model, scenes(split)[:LINEAR]) for split in ("val", "test"))
    for kind in ("colour", "shape"):
        found[f"features/{kind}"] = linear_accuracy(known, asked, kind)
    return found


@torch.no_grad()
def features(model: MaskedDataModel, samples: Sequence[Sample]) -> np.ndarray:
    """The mean last feature of the patches of lone pictures, (n, D)."""
    image = model.backbone(pictures(samples, SIDE)).image
    return image[:, 1:].mean(dim=1).numpy()


def linear_accuracy(known: np.ndarray, asked: np.ndarray, kind: str) -> float:
    """How often a linear layer on features tells the "colour" or "shape" of the one thing."""
    labels = {s: [thing(sample)[NAMED[kind]] for sample in scenes(s)[:LINEAR]] for s in SPLITS}
    names = sorted(set(labels["val"]))
    guessed = linear(known, [names.index(label) for label in labels["val"]], asked)
    pairs = zip(guessed, labels["test"], strict=True)
    return mean(float(names[guess] == label) for guess, label in pairs)


def thing(sample: Sample) -> dict[str, str]:
    """The one thing of a scene."""
    scene: Any = sample.info["scene"]
    return scene["things"][0]


@cache
def scenes(split: str) -> list[Sample]:
    """New scenes with one thing, whose captions have an exact ceiling."""
    data, tokenizer = SceneCaptions(split, 2 * TESTED, SIDE, most=1), TextTokenizer.lab()
    return [sample for i in range(2 * TESTED) if exact(sample := data[i], tokenizer)][:TESTED]


@cache
def targets(kind: str, runs: Path) -> Codes:
    """What the hidden patches are asked for: a function of pictures in [0, 1]."""
    if kind == "raw pixels":
        return lambda image01: pixel_features(image01, PATCH)
    if kind == "pixel codes":
        return PixelCodes(SIDE, PATCH, CODES).fit(drawn(), generator_of(0)).tokens
    if not (runs / "vqkd" / "config.json").exists():
        fit_vqkd(runs)
    return VQKD.from_pretrained(runs / "vqkd").tokens


def drawn() -> Tensor:
    """Pictures in [0, 1] that the pixel codes are fitted to."""
    data = SceneCaptions("train", CODE_PICTURES, SIDE)
    images = [data[i].image for i in range(CODE_PICTURES)]
    return torch.cat([to_model(x[None], SIDE) for x in images if x is not None]) / 2 + 0.5


def fit_vqkd(runs: Path) -> None:
    """Train VQ-KD on scenes; its teacher sees them enlarged twice, 4 x 4 features a picture."""
    shown = stack_images([SceneCaptions("train", VQKD_PICTURES, SIDE)])
    found = teacher_targets(build_teacher("lite0", patch=PATCH), shown, NANO.grid)
    model = VQKD(replace(LAB, image_size=SIDE, codes=CODES))
    train_vqkd(model, shown, found, Plan(steps=VQKD_STEPS, warmup=50), runs / "vqkd-training")
    model.save_pretrained(runs / "vqkd")


def references(runs: Path) -> dict[str, Any]:
    """Lines beside the arms: exact ceilings, rules without a model, codes in use."""
    tokenizer, samples = TextTokenizer.lab(), scenes("test")
    lines: dict[str, Any] = {}
    for rule, told in word_ceiling(samples, tokenizer).items():
        lines |= {f"words/{rule}/{kind}": told[kind].accuracy for kind in CLASSES}
    for target in ("pixel codes", "VQ-KD codes"):
        codes = targets(target, runs)
        rules = code_baselines(samples, scenes("val"), codes, SIDE)
        lines |= {f"{target}/{rule}": told.accuracy for rule, told in rules.items()}
        ids = codes(pictures(samples, SIDE) / 2 + 0.5)
        lines[f"{target}/share used"] = code_usage(ids, CODES).used
    known, asked = (
        pixels([s.image for s in scenes(split)[:LINEAR] if s.image is not None]) for split in SPLITS
    )
    for kind in ("colour", "shape"):
        lines[f"features/{kind} of pixels"] = linear_accuracy(known, asked, kind)
    return {key: round(value, 5) for key, value in lines.items()}


def keep(study: dict[str, Any], given: argparse.Namespace) -> None:
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
    whole = {
        "what": "masked words and codes on new scenes with one thing after short pretrainings of "
        "nano, one thing changed at a time",
        "command": f"python tools/study_pretraining.py {shlex.join(sys.argv[1:])}",
        "machine": f"{cpu_name()}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads used, torch {torch.__version__}",
        "budget": {"steps": given.steps, "batch_size": given.batch_size, "lr": given.lr},
        "references": study["references"],
        "runs": study["runs"],
        "summary": summary,
    }
    write_file(given.out, (json.dumps(whole, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
