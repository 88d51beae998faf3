"""minibeit3 bench: how fast this machine does the work, beside its peers and the bare products."""

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from minibeit3.cli import Device, Json, choose_device, command, show


@command
def bench(
    preset: Annotated[str, typer.Argument(help="tiny, small, base, large or giant.")] = "tiny",
    works: Annotated[
        str,
        typer.Option("--work", help="image, text, pair, step, gradient, caption; commas between."),
    ] = "image,text,pair,step,caption",
    variant: Annotated[str, typer.Option(help="paper or released.")] = "paper",
    batch: Annotated[int, typer.Option(help="Samples; a step has as many of each kind.")] = 8,
    text_length: Annotated[int, typer.Option(help="Words of a text.")] = 32,
    dtypes: Annotated[str, typer.Option(help="float32, bfloat16 or both.")] = "float32",
    compiled: Annotated[bool, typer.Option(help="Compare torch.compile too.")] = False,
    rounds: Annotated[int, typer.Option(help="Turns of each contestant.")] = 5,
    memory: Annotated[bool, typer.Option(help="The most that a run's tensors hold, too.")] = False,
    grow: Annotated[
        bool, typer.Option(help="How the cost grows with batch, sequence, depth and width, too.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="A .json to write all figures to.")] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Time the work in turns; torchscale, timm and transformers take part where installed."""

    from minibeit3 import bench_peers
    from minibeit3.backbones import preset as sizes
    from minibeit3.bench import NAMES, contestants, in_turns, table, work_flops
    from minibeit3.bench_growth import growth
    from minibeit3.bench_machine import ceilings, machine, peak_bytes
    from minibeit3.storage import write_file

    known = {str(dtype).removeprefix("torch."): dtype for dtype in NAMES}
    if unknown := [name for name in dtypes.split(",") if name not in known]:
        raise ValueError(f"unknown dtypes {unknown}: choose from {', '.join(known)}")
    config, where = sizes(preset, variant), choose_device(device)  # pyright: ignore[reportArgumentType]
    chosen = tuple(known[name] for name in dtypes.split(","))
    length, limits = min(text_length, config.max_text_length), ceilings(where)
    figures, growths = {}, {}
    for work in works.split(","):
        runs = contestants(
            work, config, batch, length, where, chosen, compiled, bench_peers.installed()
        )
        times = in_turns(runs, rounds, where == "cuda")
        figures[work] = table(times, work_flops(config, work, batch, length), limits)
        for row in figures[work] if memory else ():
            row["peak_bytes"] = peak_bytes(runs[row["name"]], where)
        if grow and work != "caption":
            sizes_of = (config, work, batch, length, where, chosen[0], rounds)
            growths[work] = growth(*sizes_of)
    report = {"what": "median seconds and ratios within one run, in turns", "preset": preset}
    report |= {"variant": variant, "batch": batch, "text_length": length, "rounds": rounds}
    report |= {"machine": machine(where), "matmul_gflops_per_second": limits}
    report |= {"command": shlex.join(["minibeit3", *sys.argv[1:]]), "works": figures}
    report |= {"growth": growths} if grow else {}
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_file(out, (json.dumps(report, indent=2) + "\n").encode())
    rows = []
    for work, found in figures.items():
        first = found[0]["name"]
        for row in found:
            ratio = 1.0 if row["name"] == first else row["times_as_fast_as"][first]
            speed = {"speed of the first": f"{ratio:.2f}", "seconds": f"{row['seconds']:.4f}"}
            if memory:
                speed["peak MB"] = f"{row['peak_bytes'] / 1e6:.0f}"
            rows.append({"work": work, "who": row["name"], **speed})
    if as_json:
        typer.echo(json.dumps(report, indent=2))
        return
    show(rows, False)
    for work, found in growths.items():
        show([{"work": work, **row, "exponent": f"{row['exponent']:.2f}"} for row in found], False)
