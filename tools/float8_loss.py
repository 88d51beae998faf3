"""Does rounding to float8 change what is learned? results/float8_loss.json and its figure.

    python tools/float8_loss.py --runs runs/float8

The preset nano pretrains from the same seeds in float32 and with the products of its blocks in
float8; on a CPU these are emulated, which tells nothing of speed (tools/gpu_goals.py measures that)
but has the same rounding. A run that was cut goes on when the command is given again.
"""

import argparse
import sys
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import matplotlib.pyplot as plt

from minibeit3.backbones import preset
from minibeit3.pixel_codes import PixelCodes
from minibeit3.precision import DType
from minibeit3.pretrain import pretrain
from minibeit3.provenance import provenance, write_results
from minibeit3.train import TrainConfig

ROOT = Path(__file__).resolve().parents[1]
CODES = ROOT / "data_samples" / "checkpoints" / "pixels"
DATA = ("scenes-1", "glosses")
LOOKS: dict[DType, tuple[str, str]] = {"float32": ("#0072B2", "-"), "float8": ("#E69F00", "--")}
STREAMS = ("image", "pair_image", "text", "pair_text")


def main() -> None:
    """Train what is missing, write both files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, required=True, help="a folder for the run folders")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=96, help="in equal thirds")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "float8_loss.json")
    given = parser.parse_args()
    runs = [one_run(t, seed, given) for seed in range(given.seeds) for t in LOOKS]
    last = {t: [run["loss"][-1] for run in runs if run["dtype"] == t] for t in LOOKS}
    changes = [b - a for a, b in zip(*last.values(), strict=True)]
    results = {
        "what": "loss of pretraining nano in float32 and with float8 products (emulated), by seed",
        **provenance("tools/float8_loss.py"),
        "batch_size": given.batch_size,
        "last_loss": {t: [mean(losses), stdev(losses)] for t, losses in last.items()},
        "float8_less_float32": [mean(changes), stdev(changes)],
        "runs": runs,
    }
    write_results(given.out, results)
    draw(runs, given.out.parent / "figures" / f"{given.out.stem}.png")


def one_run(dtype: DType, seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """Losses of single steps, each of one batch."""
    config, began = preset("nano"), time.process_time()
    plan = TrainConfig(
        steps=given.steps,
        batch_size=given.batch_size,
        lr=2e-3,
        min_lr=1e-3,
        warmup=given.steps // 10,
        dtype=dtype,
        seed=seed,
        save_every=50,
        log_every=5,
    )
    codes = PixelCodes.from_pretrained(CODES).tokens
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {dtype}, seed {seed}\n")
    folder = given.runs / f"{dtype}_{given.steps}_{seed}"
    _, records = pretrain(config, DATA, codes, plan, folder, text_length=12, device="cpu")
    return {
        "dtype": dtype,
        "seed": seed,
        "cpu_seconds": round(time.process_time() - began, 1),
        "step": [record["step"] for record in records],
        "loss": [round(record["loss"], 4) for record in records],
        **{s: [round(record[f"{s}_loss"], 4) for record in records] for s in STREAMS},
    }


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """A line for each run: the types in two colours, seeds alike."""
    figure, axes = plt.subplots(figsize=(6.4, 3.2), layout="constrained")
    for run in runs:
        colour, line = LOOKS[run["dtype"]]
        label = run["dtype"] if run["seed"] == 0 else None
        axes.plot(run["step"], run["loss"], line, color=colour, lw=1.2, alpha=0.8, label=label)
    axes.set(xlabel="step", ylabel="loss")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
