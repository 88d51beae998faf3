"""Train the lab's visual tokenizer: python -m minibeit3.train_vqkd --out runs/vqkd --teacher lite0

Every picture passes the frozen teacher once; its features stay in memory as float16, standardised
per channel, and the tokenizer learns to predict them through its codes. Recipe of BEiT v2
(run_vqkd_training.py: AdamW (.9, .99), weight decay 1e-4 on matrices, warm-up and cosine), with a
larger learning rate for a small model. Departure: no augmentation, since each picture's target is
computed once.
"""

import argparse
import io
import json
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from minibeit3.codebook import code_usage
from minibeit3.data.emoji import Emoji
from minibeit3.data.sample import Sample
from minibeit3.data.scene_captions import SceneCaptions
from minibeit3.storage import write_file
from minibeit3.teacher import Teacher, build_teacher
from minibeit3.visual_tokenizer import VQKD, VQKDConfig

TRAIN_STYLES = ("noto", "twemoji", "fluent3d")  # OpenMoji is held out
LAB = VQKDConfig(
    image_size=64,
    patch=8,
    width=128,
    ffn_width=512,
    heads=4,
    depth=4,
    decoder_depth=1,
    codes=512,
    code_dim=16,
    teacher_dim=112,
    restart_dead=True,
)
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long and how fast; lr is the peak, reached after `warmup` steps."""

    steps: int = 1200
    batch: int = 32
    lr: float = 1e-3
    last_lr: float = 1e-5
    warmup: int = 100
    weight_decay: float = 1e-4
    save_every: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def lr_at(self, step: int) -> float:
        """Linear warm-up, then half a cosine down to `last_lr`."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.last_lr + (self.lr - self.last_lr) * (1 + math.cos(math.pi * progress)) / 2

    def batch_at(self, step: int, size: int) -> Tensor:
        """int64 (batch,) rows of a data set of `size`, a pure function of seed and step."""
        per_epoch = size // self.batch
        if not per_epoch:
            raise ValueError(f"{size} pictures do not fill one batch of {self.batch}")
        generator = torch.Generator().manual_seed(self.seed + 1_000_003 * (step // per_epoch))
        start = step % per_epoch * self.batch
        return torch.randperm(size, generator=generator)[start : start + self.batch]


class Targets(NamedTuple):
    """features: float16 (n, N, dim), not yet standardised; mean, std: float32 (dim,)."""

    features: Tensor
    mean: Tensor
    std: Tensor

    def rows(self, index: Tensor | slice) -> Tensor:
        """float32 (B, N, dim) standardised targets."""
        return (self.features[index].float() - self.mean) / self.std


def stack_images(datasets: Sequence[Dataset[Sample]]) -> Tensor:
    """uint8 (n, 3, s, s), every picture of the datasets in order."""
    pictures = []
    for dataset in datasets:
        for index in range(len(dataset)):  # pyright: ignore[reportArgumentType]
            image = dataset[index].image
            if image is not None:
                pictures.append(image)
    return torch.stack(pictures)


def to_float(pictures: Tensor) -> Tensor:
    """uint8 pictures as float32 in [0, 1]."""
    return pictures.float() / 255


def teacher_targets(teacher: Teacher, pictures: Tensor, grid: int, batch: int = 64) -> Targets:
    """Features of uint8 pictures (n, 3, s, s), and their mean and deviation per channel.

    Raises ValueError when the teacher's grid is not the student's `grid` x `grid`.
    """
    theirs = teacher.grid(pictures.shape[-1])
    if theirs != (grid, grid):
        raise ValueError(f"teacher {teacher.name} has a {theirs} grid, the student {(grid, grid)}")
    features = torch.cat([teacher(to_float(part)).half() for part in pictures.split(batch)])
    if not features.isfinite().all():
        raise ValueError(f"teacher {teacher.name} left the range of float16: scale its features")
    std, mean = torch.std_mean(features.flatten(0, 1).float(), dim=0)
    return Targets(features, mean, std.clamp(min=1e-6))


def train(model: VQKD, pictures: Tensor, targets: Targets, plan: Plan, out: Path) -> VQKD:
    """Train on uint8 pictures (n, 3, s, s); resumes from out/state.pt, bit-identically on CPU.

    Writes out/log.jsonl (one line every 20 steps) and the state every `plan.save_every` steps.
    Raises ValueError when the stored run has another plan or config, and FloatingPointError that
    names step and rows when the loss is not finite; the last state then stays as it was.
    """
    out.mkdir(parents=True, exist_ok=True)
    optimizer = build_optimizer(model, plan)
    first = _resume(out / "state.pt", model, optimizer, plan)
    model.train()
    begin = time.perf_counter()
    for step in range(first, plan.steps):
        rows = plan.batch_at(step, len(pictures))
        for group in optimizer.param_groups:
            group["lr"] = plan.lr_at(step)
        result = model(to_float(pictures[rows]), targets.rows(rows))
        if not result.loss.isfinite():
            raise FloatingPointError(
                f"loss is {result.loss.item()} at step {step}, rows {rows.tolist()}; the state "
                f"after step {step - step % plan.save_every} is in {out}: lower lr={plan.lr}"
            )
        optimizer.zero_grad(set_to_none=True)
        result.loss.backward()
        optimizer.step()
        if step % 20 == 19 or step + 1 == plan.steps:
            seconds = (time.perf_counter() - begin) / (step + 1 - first)
            usage = code_usage(result.tokens, model.config.codes)
            _append(
                out / "log.jsonl",
                step=step + 1,
                loss=result.loss.item(),
                cosine_loss=result.cosine_loss.item(),
                commitment_loss=result.commitment_loss.item(),
                used_in_batch=usage.used,
                perplexity=usage.perplexity,
                idle_codes=len(model.codebook.dead()),
                lr=plan.lr_at(step),
                seconds_per_step=seconds,
            )
            minutes = seconds * (plan.steps - step - 1) / 60
            log.info(
                "step %d of %d: loss %.4f, perplexity %.0f, %.1f minutes to go",
                *(step + 1, plan.steps, result.loss.item(), usage.perplexity, minutes),
            )
        if (step + 1) % plan.save_every == 0 or step + 1 == plan.steps:
            _save(out / "state.pt", step + 1, model, optimizer, plan)
    return model.eval()


def build_optimizer(model: VQKD, plan: Plan) -> torch.optim.AdamW:
    """AdamW that decays matrices, not biases, norms, positions or class tokens."""
    decayed, free = [], []
    for name, value in model.named_parameters():
        is_matrix = value.dim() > 1 and not name.endswith(("pos_embed", "cls_token"))
        (decayed if is_matrix else free).append(value)
    groups = [
        {"params": decayed, "weight_decay": plan.weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=plan.lr, betas=(0.9, 0.99), fused=True)


def _save(path: Path, step: int, model: VQKD, optimizer: torch.optim.AdamW, plan: Plan) -> None:
    content = io.BytesIO()
    run = {"config": asdict(model.config), "plan": asdict(plan)}
    state = {"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(run | state, content)
    write_file(path, content.getvalue())


def _resume(path: Path, model: VQKD, optimizer: torch.optim.AdamW, plan: Plan) -> int:
    """The step to go on with, 0 when there is no stored state."""
    if not path.exists():
        return 0
    state = torch.load(path, map_location="cpu", weights_only=True)
    for name, ours in (("config", asdict(model.config)), ("plan", asdict(plan))):
        if state[name] != ours:
            raise ValueError(f"{path} has {name} {state[name]}, not {ours}: choose another --out")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    log.info("going on after step %d", state["step"])
    return state["step"]


def _append(path: Path, **record: float) -> None:
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")


def lab_pictures(scenes: int) -> Tensor:
    """uint8 (n, 3, 64, 64): the training emoji in three styles, and as many scenes as asked."""
    emoji = Emoji(styles=TRAIN_STYLES, split="train", size=LAB.image_size)
    return stack_images([emoji, SceneCaptions("train", scenes, size=LAB.image_size)])


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; the last tokenizer goes to OUT/tokenizer in float16, its recipe beside it."""
    parser = argparse.ArgumentParser(description="Train the visual tokenizer of the lab.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run, resumable")
    parser.add_argument("--teacher", default="lite0", help="lite0, pixels, random, timm:NAME, ...")
    parser.add_argument("--scenes", type=int, default=2000, help="number of shape scenes")
    parser.add_argument("--codes", type=int, default=LAB.codes)
    for field in fields(Plan):
        option = f"--{field.name.replace('_', '-')}"
        parser.add_argument(option, type=type(field.default), default=field.default)
    given = vars(parser.parse_args(arguments))
    plan = Plan(**{field.name: given[field.name] for field in fields(Plan)})
    begin = time.perf_counter()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")

    pictures = lab_pictures(given["scenes"])
    teacher = build_teacher(given["teacher"], patch=LAB.patch)
    sizes = {"teacher_dim": teacher.dim, "codes": given["codes"], "seed": plan.seed}
    model = VQKD(VQKDConfig(**(asdict(LAB) | sizes)))
    log.info("%s looks at %d pictures", teacher.name, len(pictures))
    targets = teacher_targets(teacher, pictures, model.config.grid)
    train(model, pictures, targets, plan, given["out"])
    folder = given["out"] / "tokenizer"
    model.save_pretrained(folder, dtype=torch.float16)
    recipe = {"teacher": teacher.name, "pictures": len(pictures), "plan": asdict(plan)}
    recipe |= {"wall_s": time.perf_counter() - begin, "cpu_s": time.process_time()}
    recipe |= {"target_mean": targets.mean.tolist(), "target_std": targets.std.tolist()}
    write_file(folder / "training.json", (json.dumps(recipe, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
