"""minibeit3 finetune, evaluate: one backbone, any task, its figures beside the lines."""

import json
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minibeit3.cli import Device, Json, command, show

if TYPE_CHECKING:
    from minibeit3.bands import Band
    from minibeit3.finetune import Job

Limit = Annotated[int, typer.Option(help="Samples of each split that are evaluated.")]
Data = Annotated[Path | None, typer.Option(help="Folder of your data, where a recipe reads some.")]
Split = Annotated[str, typer.Option(help="val, to choose settings, or test.")]
FIGURES = "evaluation.json"


@command
def finetune(
    recipe: Annotated[str, typer.Argument(help="Name of a recipe; a wrong one lists them.")],
    folder: Annotated[Path, typer.Argument(help="Run folder; a run that is there goes on.")],
    start: Annotated[
        Path | None,
        typer.Option("--start", "--weights", help="Folder of a model, or a released .pth."),
    ] = None,
    scratch: Annotated[bool, typer.Option("--scratch", help="Fresh weights: a control.")] = False,
    size: Annotated[str, typer.Option(help="Preset of --scratch.")] = "tiny",
    data: Data = None,
    tokenizer: Annotated[Path | None, typer.Option(help="beit3.spm, for a .pth.")] = None,
    steps: Annotated[int | None, typer.Option(help="None: the recipe's.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="None: the recipe's.")] = None,
    accumulate: Annotated[int, typer.Option(help="Parts that a batch is computed in.")] = 1,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate; None: the recipe's.")] = (
        None
    ),
    muon: Annotated[
        bool | None, typer.Option(help="Step by Muon, or by AdamW alone; None: the recipe's.")
    ] = None,
    labels: Annotated[int | None, typer.Option(help="Training samples; None: all.")] = None,
    blind: Annotated[str | None, typer.Option(help="image or text: never shown (control).")] = None,
    holdout: Annotated[str | None, typer.Option(help="Composition kept out of training.")] = None,
    seed: Annotated[int, typer.Option(help="Of head, data order and few labels.")] = 0,
    split: Split = "test",
    limit: Limit = 1000,
    workers: Annotated[int, typer.Option(help="Processes that prepare batches.")] = 0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Fine-tune a model by a recipe and evaluate it.

    Ctrl-C or a crash loses nothing before the last checkpoint: the same command goes on.
    """
    from dataclasses import replace

    import torch

    from minibeit3.finetune import finetune as run
    from minibeit3.finetune import prepare
    from minibeit3.runlog import progress
    from minibeit3.storage import write_file
    from minibeit3.text_tokenizer import TextTokenizer

    if (start is None) != scratch:
        raise ValueError("give either --start, the model to begin with, or --scratch")
    job = prepare(
        recipe,
        start,
        size=size,
        tokenizer=None if tokenizer is None else TextTokenizer.load(tokenizer),
        labels=labels,
        blind=blind,  # pyright: ignore[reportArgumentType]: checked there
        holdout=holdout,
        split=split,  # pyright: ignore[reportArgumentType]: checked there
        data=data,
        seed=seed,
    )
    plan = replace(job.plan(steps, batch_size, lr), accumulate=accumulate, workers=workers)
    began = time.process_time()
    model, records = run(job, folder, plan, muon=muon, device=device, on_log=progress(plan.steps))
    trained = time.process_time()
    with torch.inference_mode():
        figures = job.recipe.evaluate(model, limit)
    report: dict[str, Any] = {
        **job.notes,
        "steps": plan.steps,
        "batch_size": plan.batch_size,
        "lr": plan.lr,
        "split": split,
        "limit": limit,
        "last_loss": records[-1]["loss"],
        "training_cpu_s": round(trained - began, 1),
        "evaluation_cpu_s": round(time.process_time() - trained, 1),
        "peak_mb": peak_memory(),
        "figures": figures,
    }
    write_file(folder / FIGURES, (json.dumps(report, indent=1) + "\n").encode())
    if as_json:
        typer.echo(json.dumps(judged(job, report), indent=1))
    else:
        tell(job, report)


@command
def evaluate(
    folder: Annotated[Path | None, typer.Argument(help="What finetune wrote.")] = None,
    every: Annotated[
        bool, typer.Option("--all", help="All fine-tuned models of the lab, held to their runs.")
    ] = False,
    limit: Annotated[
        int | None,
        typer.Option(help="Samples of each split; None: 1000, with --all as the run had."),
    ] = None,
    split: Split = "test",
    data: Data = None,
    references: Annotated[
        bool, typer.Option("--references", help="Add chance, majority, simple rules.")
    ] = False,
    export: Annotated[
        Path | None, typer.Option(help="Write predictions as the benchmark's server takes them.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the figures here too, with machine and command.")
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Figures of fine-tuned models, beside their goals and the bands that a study measured.

    With --all every model in data_samples/checkpoints is measured again and compared with the run
    that made it; exit code 1 when a figure lies outside what chance allows.
    """
    from minibeit3.finetune import evaluate_saved
    from minibeit3.provenance import machine, write_results

    if (folder is None) != every:
        raise ValueError("name one folder, or give --all")
    if folder is None:
        if references or export or out or split != "test":
            told = "--references, --export, --out and --split"
            raise ValueError(f"{told} take one model: name its folder")
        again(limit, data, device, as_json)
        return
    limit = 1000 if limit is None else limit
    job, figures = evaluate_saved(
        folder,
        limit=limit,
        split=split,  # pyright: ignore[reportArgumentType]: checked there
        data=data,
        device=device,
    )
    plan = job.notes.get("plan")
    steps = plan["steps"] if isinstance(plan, dict) else None
    report: dict[str, Any] = {"folder": str(folder), **job.notes, "steps": steps}
    report |= {"limit": limit, "split": split}
    if references:
        report["references"] = job.recipe.references(limit)
    if export is not None:
        if job.recipe.export is None:
            raise ValueError(f"recipe {job.recipe.name} has no server to write predictions for")
        report["written"] = str(job.recipe.export(job.model, export))
    report["figures"] = figures
    if out is not None:
        command = f"python -m minibeit3 {shlex.join(sys.argv[1:])}"
        write_results(out, {**judged(job, report), "machine": machine(), "command": command})
    if as_json:
        typer.echo(json.dumps(judged(job, report), indent=1))
    else:
        tell(job, report)


def again(limit: int | None, data: Path | None, device: str, as_json: bool) -> None:
    """Measure every shipped model again; exit code 1 unless all figures hold."""
    from minibeit3.data.paths import data_root
    from minibeit3.finetune import NOTES, evaluate_saved
    from minibeit3.shipped import held_to, recorded_run, shipped
    from minibeit3.storage import read_json

    if not (folders := shipped()):
        raise ValueError(f"no fine-tuned models in {data_root()}: finetune one and name its folder")
    reports, began = [], time.process_time()
    for folder in folders:
        notes = read_json(folder / NOTES)
        run = recorded_run(notes, limit)
        report: dict[str, Any] = {"folder": str(folder), "recipe": notes["recipe"], "figures": {}}
        if run is not None:
            figures = evaluate_saved(folder, limit=run["limit"], data=data, device=device)[1]
            held = held_to(notes["recipe"], run, figures)
            report |= {"limit": run["limit"], "command": run["command"]}
            report["figures"] = {k: h._asdict() | {"holds": h.holds} for k, h in held.items()}
        reports.append(report)
        if not as_json:
            typer.echo(f"{folder.name}: recipe {notes['recipe']}")
            show([row_of(name, found) for name, found in report["figures"].items()], False)
            if run is None:
                typer.echo("results/modes has no run that made this model: nothing to compare")
    found = [figure["holds"] for report in reports for figure in report["figures"].values()]
    good = all(found) and all(report["figures"] for report in reports)
    if as_json:
        typer.echo(json.dumps(reports, indent=1))
    else:
        typer.echo(
            f"{sum(found)} of {len(found)} figures of {len(reports)} models as recorded, "
            f"{time.process_time() - began:.0f} CPU-seconds"
        )
    if not good:
        raise typer.Exit(1)


def row_of(name: str, found: dict[str, Any]) -> dict[str, str]:
    """One figure that was measured again, for the table."""
    seeds = found["seeds"]
    return {
        "figure": name,
        "value": f"{found['value']:.3f}",
        "recorded": f"{found['recorded']:.3f} ± {found['within']:.3f}",
        "seeds": f"{seeds.mean:.3f} ± {seeds.sd:.3f} (n={seeds.n})" if seeds else "",
        "holds": "yes" if found["holds"] else "NO",
    }


def expected_of(job: "Job", report: dict[str, Any]) -> dict[str, "Band"]:
    """Figure -> what the seeds of a study gave for this kind of run; empty without a study."""
    from minibeit3.bands import bands, study_of, variant_of

    study = study_of(job.recipe.name)
    kind = report | {"start": "pretrained" if report["start"] else "scratch"}
    return bands(study.get("runs", []), variant_of(kind)) if study else {}


def judged(job: "Job", report: dict[str, Any]) -> dict[str, Any]:
    """The report with its goals, and the figures that leave their band (None: there is none)."""
    expected, figures = expected_of(job, report), report["figures"]
    missed = [k for k, band in expected.items() if k in figures and not band.holds(figures[k])]
    return report | {"goals": dict(job.recipe.goals), "out_of_band": missed if expected else None}


def tell(job: "Job", report: dict[str, Any]) -> None:
    """The report as a table: figures, goals, bands, reference lines."""
    goals, expected, lines = job.recipe.goals, expected_of(job, report), report.get("references")
    rows = []
    for name, value in report["figures"].items():
        row = {"figure": name, "value": f"{value:.3f}"}
        row["goal"] = f"{goals[name]:.2f}" if name in goals else ""
        if name in expected:
            band = expected[name]
            row["seeds"] = f"{band.mean:.3f} ± {band.sd:.3f} (n={band.n})"
            row["in band"] = "yes" if band.holds(value) else "NO"
        elif expected:
            row |= {"seeds": "", "in band": ""}
        if lines is not None:
            end = f"/{name}"
            found = {k.removesuffix(end): v for k, v in lines.items() if k.endswith(end)}
            row["lines"] = ", ".join(f"{k} {v:.3f}" for k, v in found.items())
        rows.append(row)
    typer.echo(f"{job.recipe.name} ({job.recipe.mode}): {job.recipe.about}")
    show(rows, False)


def peak_memory() -> float | None:
    """Most memory that this process held, in MB; None where the system does not count it."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)
