"""minibeit3 info, convert, doctor: what a model is, released files to folders, this machine."""

import json
import os
import platform
import sys
import time
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer

from minibeit3.cli import Heads, Json, LabelsPath, TokenizerPath, command, read_labels, show


@command
def info(
    model: Annotated[str, typer.Argument(help="A preset, a model's folder or a released .pth.")],
    variant: Annotated[str, typer.Option(help="paper or released, of a preset.")] = "paper",
    text_length: Annotated[int, typer.Option(help="Text tokens of a sample.")] = 64,
    batch: Annotated[int, typer.Option(help="Samples of a training step.")] = 1,
    gpus: Annotated[
        str | None, typer.Option(help="Plan the paper's pretraining on so many GPUs, as 1,8,64.")
    ] = None,
    heads: Heads = None,
    as_json: Json = False,
) -> None:
    """Sizes, parameters, FLOPs by mode and memory of training."""
    from minibeit3.backbones import count_parameters, preset
    from minibeit3.checkpoint import backbone_of, parse_config, task_of
    from minibeit3.config import PRESETS
    from minibeit3.convert import load_released
    from minibeit3.info import forward_flops, task_parameters, training_flops, training_memory
    from minibeit3.plan import plan
    from minibeit3.storage import CONFIG, read_json

    path = Path(model)
    if path.is_dir():
        task, config, settings = parse_config(read_json(path / CONFIG), path)
    elif path.is_file():
        loaded = load_released(path, heads=heads)
        task, config = task_of(loaded), backbone_of(loaded).config
        settings = getattr(loaded, "settings", {})
    elif model in PRESETS:
        known = preset(model, variant)  # pyright: ignore[reportArgumentType]: checked there
        task, config, settings = "pretraining", known, {}
    else:
        raise ValueError(f"{model} is no preset ({', '.join(PRESETS)}), folder or file")
    counts = count_parameters(config)
    counts["heads"] = task_parameters(task, config, settings) - counts["backbone"]
    counts["total"] = counts["backbone"] + counts["heads"]
    length = min(text_length, config.max_text_length)
    modes = ("image", "text", "pair")
    memory = training_memory(config, counts["total"], "pair", length, batch)
    plans = [plan(config, int(n), text_length=length) for n in gpus.split(",")] if gpus else []
    if as_json:
        flops = {
            mode: {
                "forward": forward_flops(config, mode, length),
                "training": training_flops(config, mode, length),
            }
            for mode in modes
        }
        report = {"task": task, "config": asdict(config), "parameters": counts}
        report |= {"text_length": length, "flops": flops, "training_memory_estimate": memory}
        report |= {"plans": plans} if gpus else {}
        typer.echo(json.dumps(report, indent=2))
        return
    show([{"size": name, "value": value} for name, value in asdict(config).items()], False)
    show([{"parameters": name, "count": f"{n:,}"} for name, n in counts.items()], False)
    show(
        [
            {
                f"FLOPs, {length} words": mode,
                "forward": f"{forward_flops(config, mode, length):.3g}",
                "training (estimate)": f"{training_flops(config, mode, length):.3g}",
            }
            for mode in modes
        ],
        False,
    )
    rows = [{"training memory (estimate)": n, "MB": f"{b / 1e6:,.0f}"} for n, b in memory.items()]
    show(rows, False)
    if gpus:
        plain = {"kind", "recompute", "accumulate", "triples_at_once"}
        cells = [
            {"one update of 6,144 samples (arithmetic)": n}
            | {f"{p['gpus']} GPUs": str(p[n]) if n in plain else f"{p[n]:.3g}" for p in plans}
            for n in plans[0]
            if n != "gpus"
        ]
        show(cells, False)


@command
def convert(
    source: Annotated[Path, typer.Argument(help="A released .pth; with --back a folder.")],
    target: Annotated[Path, typer.Argument(help="A folder; with --back a .pth.")],
    task: Annotated[str | None, typer.Option(help="Told by the head's names if left out.")] = None,
    tokenizer: TokenizerPath = None,
    labels: LabelsPath = None,
    heads: Heads = None,
    image_size: Annotated[int | None, typer.Option(help="Interpolate the positions to it.")] = None,
    dtype: Annotated[str, typer.Option(help="On disk: float32 or bfloat16.")] = "float32",
    back: Annotated[bool, typer.Option("--back", help="From our folder to a released file.")] = (
        False
    ),
    as_json: Json = False,
) -> None:
    """Turn a released checkpoint into a model's folder, or back."""
    import torch

    from minibeit3.checkpoint import from_pretrained, save_pretrained, task_of
    from minibeit3.convert import load_released, to_released
    from minibeit3.storage import replace_files, write_file
    from minibeit3.text_tokenizer import TextTokenizer

    start = time.monotonic()
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"--dtype {dtype}: float32 or bfloat16")
    if back:
        model = from_pretrained(source, image_size=image_size)
        state = {name: t.to(getattr(torch, dtype)) for name, t in to_released(model).items()}
        size = sum(t.numel() * t.itemsize for t in state.values())
        replace_files({target: lambda file: torch.save({"model": state}, file)}, size)
    else:
        words = None if tokenizer is None else TextTokenizer.load(tokenizer)
        mask_id = None if words is None else words.mask_id
        model = load_released(source, task, heads, image_size, mask_id)
        names = None if labels is None else read_labels(labels, target)
        save_pretrained(model, target, words, getattr(torch, dtype))
        if names is not None:
            write_file(target / "labels.json", json.dumps(names, indent=2).encode())
    parameters = sum(p.numel() for p in model.parameters())
    row = {"task": task_of(model), "parameters": parameters, "written": str(target)}
    show([{**row, "seconds": round(time.monotonic() - start, 1)}], as_json)


@command
def doctor(as_json: Json = False) -> None:
    """What this machine has for minibeit3, and what is missing."""
    import torch
    from packaging.requirements import Requirement

    from minibeit3.data.paths import data_root

    def installed(name: str) -> str:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return "missing"

    def row(what: str, value: object, fine: bool = True, fix: str = "") -> dict[str, Any]:
        return {"what": what, "value": str(value), "fine": fine, "fix": "" if fine else fix}

    rows = [
        row("python", platform.python_version(), sys.version_info >= (3, 11), "use 3.11 or later"),
        row("machine", f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs"),
        row("torch", f"{torch.__version__}, {torch.get_num_threads()} threads"),
        row("device", torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"),
    ]
    try:
        needed = [Requirement(text) for text in metadata.requires("minibeit3") or []]
    except metadata.PackageNotFoundError:
        needed = []
        rows.append(row("minibeit3", "not installed", False, "pip install -e . -c constraints.txt"))
    for requirement in needed:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = installed(requirement.name)
        fine = version != "missing" and requirement.specifier.contains(version, prereleases=True)
        rows.append(row(requirement.name, version, fine, f"pip install '{requirement}'"))
    try:
        rows.append(row("data_samples", data_root()))
    except (OSError, ValueError) as error:
        rows.append(row("data_samples", "missing", False, str(error)))
    show(rows, as_json)
    if not all(entry["fine"] for entry in rows):
        raise typer.Exit(1)
