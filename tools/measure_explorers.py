"""Measure the attention explorer: python tools/measure_explorers.py results/explorers.json

The case is a sequence of BEiT-3 base at 224 pixels: 14 x 14 patches, [CLS] and 64 words, in 12
layers of 12 heads. Bytes: what the browser gets for one layer. Hover: a pointer that moves to
another patch of the exported page, in headless chromium without a graphics card. The processor
time of the page's main thread hardly depends on what else the machine does; the wall time, from the
event to the finished picture, does, so the load is written beside it.
"""

import argparse
import json
import os
import shutil
from pathlib import Path
from statistics import mean, median, stdev
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from playwright.sync_api import Page, sync_playwright

from minibeit3 import BEiT3Config, build_backbone
from minibeit3.explore import AttentionExplorer
from minibeit3.provenance import provenance
from minibeit3.storage import write_file

GRID, WORDS, DEPTH, HEADS = 14, 64, 12, 12
MEGABYTE, FRAME_MS = 1_000_000, 16.0  # the goals
ROUNDS, HOVERS, WARM = 10, 40, 20
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
MOVE = """patches => {
  const canvas = document.querySelector(".mb3 canvas"), box = canvas.getBoundingClientRect();
  return patches.map((patch) => {
    const x = box.x + (patch % GRID + 0.5) * box.width / GRID;
    const y = box.y + (Math.floor(patch / GRID) + 0.5) * box.height / GRID;
    const began = performance.now();
    const event = { clientX: x, clientY: y, bubbles: true };
    canvas.dispatchEvent(new PointerEvent("pointermove", event));
    document.body.offsetHeight; // the layout belongs to it
    return performance.now() - began;
  });
}""".replace("GRID", str(GRID))
Times = dict[str, list[float]]


def main() -> None:
    """Write the results file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path)
    given = parser.parse_args()
    looks = explorer()
    layers = [len(looks.answer(f"attention|{layer}")[1]) for layer in range(1, DEPTH + 1)]
    load = os.getloadavg()[0]
    with TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        looks.export_html(page)
        size, times = page.stat().st_size, hovers(page)
    cpu, wall = times["cpu_ms"], times["wall_ms"]
    result = {
        "what": "attention explorer, 261 tokens in 12 x 12 heads: bytes a layer, hover in chromium",
        "tokens": 1 + GRID**2 + WORDS,
        "bytes_a_layer": {"most": max(layers), "goal": MEGABYTE, "met": max(layers) <= MEGABYTE},
        "exported_page_bytes": size,
        "hover_cpu_ms": {
            "what": "main thread of the page: handler, layout, painting commands, per hover",
            "mean": round(mean(cpu), 2),
            "sd": round(stdev(cpu), 2),
            "n": len(cpu),
            "hovers_each": HOVERS,
            "goal": FRAME_MS,
            "met": mean(cpu) <= FRAME_MS,
        },
        "hover_wall_ms": {
            "what": "from the event to the finished picture, on the machine as busy as it was",
            "median": round(median(wall), 2),
            "p95": round(float(np.quantile(wall, 0.95)), 2),
            "min": round(min(wall), 2),
            "n": len(wall),
            "goal": FRAME_MS,
            "met": median(wall) <= FRAME_MS,
        },
        "load_average": round(load, 1),
        "browser": times["browser"],
        **provenance("tools/measure_explorers.py"),
    }
    write_file(given.results, (json.dumps(result, indent=1) + "\n").encode())


def explorer() -> AttentionExplorer:
    """The case with fresh weights: neither bytes nor time depend on them or on the width."""
    config = BEiT3Config(
        depth=DEPTH,
        width=8 * HEADS,
        ffn_width=8 * HEADS,
        heads=HEADS,
        fusion_layers=2,
        image_size=16 * GRID,
        patch_size=16,
        max_text_length=WORDS,
        vocab_size=4000,
        visual_vocab_size=8,
    )
    g = torch.Generator().manual_seed(0)
    side = config.image_size
    picture = torch.randint(0, 256, (side, side, 3), dtype=torch.uint8, generator=g).numpy()
    text = torch.randint(4, 4000, (1, WORDS), generator=g)
    words = [f"word{i}" for i in range(WORDS)]
    image = torch.randn(1, 3, side, side, generator=g)
    return AttentionExplorer(build_backbone(config, g), picture, image, text, words)


def hovers(file: Path) -> dict[str, Any]:
    """Processor and wall milliseconds of hovers over random patches, and the browser's version."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    rng, cpu, wall = np.random.default_rng(0), [], []
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(viewport={"width": 1200, "height": 1100})
        page.goto(file.as_uri())
        page.wait_for_selector(".mb3[data-ready=true]")
        spent = clock(page)
        for count in (WARM, *[HOVERS] * ROUNDS):
            patches = (rng.permutation(GRID**2)[:count]).tolist()
            began = spent()
            found = page.evaluate(MOVE, patches)
            cpu.append((spent() - began) / count)
            wall.append(found)
        told = browser.version
        browser.close()
    return {
        "cpu_ms": cpu[1:],
        "wall_ms": [ms for part in wall[1:] for ms in part],
        "browser": f"chromium {told}",
    }


def clock(page: Page) -> Any:
    """A function that gives the milliseconds that the page's main thread has computed."""
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})

    def spent() -> float:
        metrics = session.send("Performance.getMetrics")["metrics"]
        return 1000 * {m["name"]: m["value"] for m in metrics}["TaskDuration"]

    return spent


if __name__ == "__main__":
    main()
