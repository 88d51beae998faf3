"""The command line: models in the terminal, for people and, by --json, for programs.

torch and everything built on it are imported inside the functions, so that --help is quick.
"""

import functools
import glob
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeVar

import typer

if TYPE_CHECKING:
    from torch import Tensor

    from minibeit3.checkpoint import Model
    from minibeit3.text_tokenizer import TextTokenizer

app = typer.Typer(
    help="BEiT-3 in the terminal: inspect, convert and use models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
BATCH = 8
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp"}
MAX_ERROR = 2000  # a wholly foreign checkpoint lists a thousand tensors
Result = TypeVar("Result")

ModelPath = Annotated[
    Path, typer.Option("--model", "-m", help="Folder of a model, or a released .pth.")
]
TokenizerPath = Annotated[
    Path | None, typer.Option("--tokenizer", help="beit3.spm; a folder has its own.")
]
LabelsPath = Annotated[
    Path | None, typer.Option("--labels", help="One label per line, or .json; else the folder's.")
]
Heads = Annotated[
    int | None, typer.Option(help="Attention heads of a .pth whose heads are not 64 wide.")
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Images = Annotated[list[str], typer.Argument(help="Image files, folders or patterns.")]
Top = Annotated[int, typer.Option(help="How many of the best to show.")]


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Add a command to `app`; bad input ends it with one sentence on stderr and exit code 2."""

    @functools.wraps(function)
    def run(*args: Any, **values: Any) -> None:  # as typer calls it
        try:
            function(*args, **values)
        except (ValueError, OSError, MemoryError) as error:
            complain(str(error) or type(error).__name__)
            raise typer.Exit(2) from error

    return app.command()(run)


def complain(message: str) -> None:
    """One error on stderr, without a traceback."""
    if len(message) > MAX_ERROR:
        message = f"{message[:MAX_ERROR]} ... ({len(message) - MAX_ERROR} characters more)"
    typer.echo(f"Error: {printable(message)}", err=True)


def printable(text: object) -> str:
    """Text from a file or a model without the control characters that could steer a terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(text))


def show(rows: Sequence[dict[str, Any]], as_json: bool) -> None:
    """Rows as one JSON list or as a table; those with an "error" go to stderr and exit with 2."""
    errors = [row for row in rows if "error" in row]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
    else:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        good = [row for row in rows if "error" not in row]
        table = Table(*(good[0] if good else ()))
        for row in good:
            table.add_row(*(Text(printable(value), overflow="fold") for value in row.values()))
        if good:
            Console().print(table)
        for row in errors:
            complain(row["error"])
    if errors:
        raise typer.Exit(2)


class Opened(NamedTuple):
    """A model on its device and what was found with it."""

    model: "Model"
    task: str
    device: str
    tokenizer: "TextTokenizer | None"
    labels: list[str] | None

    def words(self, texts: Sequence[str]) -> tuple["Tensor", "Tensor"]:
        """ids and real of texts; ValueError without a tokenizer."""
        from minibeit3.checkpoint import backbone_of

        if self.tokenizer is None:
            raise ValueError("this needs a text tokenizer: give --tokenizer beit3.spm")
        length = min(64, backbone_of(self.model).config.max_text_length)
        ids, real = self.tokenizer.batch(texts, length)
        return ids.to(self.device), real.to(self.device)

    def label(self, index: int) -> str:
        """Name of a class or answer, its number where there are no labels."""
        return self.labels[index] if self.labels else str(index)


def choose_device(device: str) -> str:
    """ "auto" means cuda where there is one; ValueError for what this machine lacks."""
    import torch

    has_cuda = torch.cuda.is_available()
    if device == "auto":
        return "cuda" if has_cuda else "cpu"
    if device == "cpu" or (device == "cuda" and has_cuda):
        return device
    raise ValueError(f"--device {device}: this machine has cpu{' and cuda' if has_cuda else ''}")


def open_model(
    path: Path,
    device: str,
    tasks: Sequence[str] = (),
    tokenizer: Path | None = None,
    labels: Path | None = None,
    heads: int | None = None,
) -> Opened:
    """The model in a folder or a released file; ValueError when its task is not one of `tasks`."""
    from minibeit3.checkpoint import backbone_of, check_tokenizer, from_pretrained, task_of
    from minibeit3.convert import load_released
    from minibeit3.text_tokenizer import MODEL_FILE, TextTokenizer

    device = choose_device(device)
    words = None
    if tokenizer is not None:
        words = TextTokenizer.load(tokenizer)
    elif (path / MODEL_FILE).exists():
        words = TextTokenizer.from_pretrained(path)
    if path.is_file():
        model = load_released(path, heads=heads, mask_id=words.mask_id if words else None)
    else:
        model = from_pretrained(path)
    task = task_of(model)
    if tasks and task not in tasks:
        raise ValueError(f"{path} holds a {task} model, this command needs {' or '.join(tasks)}")
    if words is not None:
        check_tokenizer(words, backbone_of(model).config)
    return Opened(model.to(device), task, device, words, read_labels(labels, path))


def read_labels(file: Path | None, folder: Path) -> list[str] | None:
    """Labels from `file`, else from labels.txt, labels.json or answer2label.txt in `folder`.

    One label per line, the released {"answer": ..., "label": number} lines, or a JSON list.
    """
    names = ("labels.txt", "labels.json", "answer2label.txt")
    found = [file] if file else [folder / name for name in names if (folder / name).is_file()]
    if not found:
        return None
    try:
        text = found[0].read_text("utf-8")
        if found[0].suffix == ".json":
            labels = json.loads(text)
        elif text.lstrip().startswith("{"):
            entries = [json.loads(line) for line in text.splitlines() if line.strip()]
            numbered = {entry["label"]: entry["answer"] for entry in entries}
            labels = [numbered[number] for number in range(len(numbered))]
        else:
            labels = text.splitlines()
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"cannot read labels from {found[0]}: {error!r}") from error
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise ValueError(f"{found[0]} holds no list of labels: one per line, or a JSON list")
    return labels


def image_files(sources: Sequence[str]) -> list[Path]:
    """Files in order: a folder gives the images in it, a pattern what it matches."""
    files: list[Path] = []
    for source in sources:
        path = Path(source)
        if path.is_dir():
            found = sorted(f for f in path.iterdir() if f.suffix.lower() in SUFFIXES)
        elif path.exists() or not glob.has_magic(source):
            found = [path]
        else:
            found = [Path(match) for match in sorted(glob.glob(source, recursive=True))]
        if not found:
            raise ValueError(f"no images in {source}: expected {', '.join(sorted(SUFFIXES))}")
        files += found
    return files


def per_image(
    files: Sequence[Path], opened: Opened, work: Callable[["Tensor"], Sequence[Result]]
) -> Iterator[tuple[Path, Result | Exception]]:
    """`work` on batches of preprocessed images; a file that is no image gives its error."""
    import torch
    from rich.console import Console
    from rich.progress import track

    from minibeit3.checkpoint import backbone_of
    from minibeit3.data import images

    size = backbone_of(opened.model).config.image_size
    if opened.task == "image_classification":
        form = (images.IMAGENET_MEAN, images.IMAGENET_STD, "center")
    else:
        form = (images.INCEPTION_MEAN, images.INCEPTION_STD, "squash")
    starts = range(0, len(files), BATCH)
    quiet = len(starts) < 2 or not sys.stderr.isatty()
    for start in track(starts, "Images", console=Console(stderr=True), disable=quiet):
        pixels: dict[Path, Tensor] = {}
        for file in files[start : start + BATCH]:
            try:
                pixels[file] = images.to_model(images.open_image(file), size, *form)
            except images.ImageError as error:
                yield file, error
        if pixels:
            with torch.inference_mode():
                results = work(torch.stack(list(pixels.values())).to(opened.device))
            yield from zip(pixels, results, strict=True)


def ranking(opened: Opened, scores: "Tensor", top: int) -> list[list[tuple[str, float]]]:
    """The `top` best labels of each row of scores (B, classes), with their scores."""
    if top < 1:
        raise ValueError(f"--top {top}: at least 1")
    if opened.labels is not None and len(opened.labels) != scores.shape[1]:
        raise ValueError(f"{len(opened.labels)} labels for {scores.shape[1]} classes: give others")
    best = scores.topk(min(top, scores.shape[1]), dim=1)
    return [
        [(opened.label(i), round(s, 4)) for i, s in zip(ids, values, strict=True)]
        for ids, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def failed(file: Path, error: Exception) -> dict[str, Any]:
    """The row of an image that could not be used."""
    return {"image": str(file), "error": str(error)}


@command
def info(
    model: Annotated[str, typer.Argument(help="A preset, a model's folder or a released .pth.")],
    variant: Annotated[str, typer.Option(help="paper or released, of a preset.")] = "paper",
    text_length: Annotated[int, typer.Option(help="Text tokens of a sample.")] = 64,
    batch: Annotated[int, typer.Option(help="Samples of a training step.")] = 1,
    heads: Heads = None,
    as_json: Json = False,
) -> None:
    """Sizes, parameters, FLOPs by mode and memory of training."""
    from minibeit3.backbones import count_parameters, preset
    from minibeit3.checkpoint import backbone_of, parse_config, task_of
    from minibeit3.config import PRESETS
    from minibeit3.convert import load_released
    from minibeit3.info import forward_flops, task_parameters, training_flops, training_memory
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
def caption(
    images: Images,
    model: ModelPath,
    tokenizer: TokenizerPath = None,
    beams: Annotated[int, typer.Option(help="1 is greedy.")] = 3,
    max_length: Annotated[int, typer.Option(help="Tokens, specials included.")] = 32,
    length_penalty: Annotated[float, typer.Option(help="Above 0 favours long captions.")] = 0.6,
    heads: Heads = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Describe images (captioning models)."""
    from minibeit3.modes import ImageCaptioner

    files = image_files(images)
    opened = open_model(model, device, ("captioning",), tokenizer, heads=heads)
    captioner, words = opened.model, opened.tokenizer
    assert isinstance(captioner, ImageCaptioner)
    if words is None:
        raise ValueError(f"{model} has no text tokenizer: give --tokenizer beit3.spm")
    bias = captioner.mlm_head.bias
    spare = [i for i in range(len(bias)) if i >= len(words) or words.piece(i) == "<unused>"]
    bias.data[spare] = float("-inf")  # rows of the head that stand for no text

    def describe(batch: "Tensor") -> list[str]:
        return [
            words.decode(ids)
            for ids in captioner.generate(batch, max_length, beams, length_penalty)
        ]

    rows = [
        failed(file, found)
        if isinstance(found, Exception)
        else {"image": str(file), "caption": found}
        for file, found in per_image(files, opened, describe)
    ]
    show(rows, as_json)


@command
def vqa(
    image: Annotated[str, typer.Argument(help="Image file.")],
    question: Annotated[str, typer.Argument(help="A question about it.")],
    model: ModelPath,
    tokenizer: TokenizerPath = None,
    labels: LabelsPath = None,
    top: Top = 5,
    heads: Heads = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Answer a question about an image (VQA models)."""
    from minibeit3.modes import VisualQuestionAnswerer

    opened = open_model(model, device, ("vqa",), tokenizer, labels, heads)
    answerer, text = opened.model, opened.words([question])
    assert isinstance(answerer, VisualQuestionAnswerer)

    def answer(batch: "Tensor") -> list[list[tuple[str, float]]]:
        return ranking(opened, answerer(batch, *text).sigmoid(), top)

    for file, found in per_image([Path(image)], opened, answer):
        if isinstance(found, Exception):
            raise found
        show([{"image": str(file), "answer": label, "score": s} for label, s in found], as_json)


@command
def classify(
    images: Images,
    model: ModelPath,
    labels: LabelsPath = None,
    top: Top = 5,
    heads: Heads = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Classify images (image classification models)."""
    from minibeit3.modes import ImageClassifier

    files = image_files(images)
    opened = open_model(model, device, ("image_classification",), None, labels, heads)
    classifier = opened.model
    assert isinstance(classifier, ImageClassifier)

    def best(batch: "Tensor") -> list[list[tuple[str, float]]]:
        return ranking(opened, classifier(batch).softmax(dim=1), top)

    rows: list[dict[str, Any]] = []
    for file, found in per_image(files, opened, best):
        if isinstance(found, Exception):
            rows.append(failed(file, found))
        else:
            rows += [{"image": str(file), "class": name, "probability": p} for name, p in found]
    show(rows, as_json)


@command
def retrieve(
    images: Images,
    model: ModelPath,
    text: Annotated[list[str], typer.Option("--text", "-t", help="Text; may be repeated.")],
    tokenizer: TokenizerPath = None,
    top: Top = 5,
    heads: Heads = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Rank images for each text, or the texts for a single image (retrieval models)."""
    import torch

    from minibeit3.modes import ImageTextRetriever

    files = image_files(images)
    opened = open_model(model, device, ("retrieval",), tokenizer, heads=heads)
    retriever = opened.model
    assert isinstance(retriever, ImageTextRetriever)
    if top < 1:
        raise ValueError(f"--top {top}: at least 1")
    with torch.inference_mode():
        texts = retriever.embed_text(*opened.words(text))
    found = list(per_image(files, opened, lambda batch: list(retriever.embed_image(batch))))
    vectors = {file: vector for file, vector in found if not isinstance(vector, Exception)}
    rows = [failed(file, error) for file, error in found if isinstance(error, Exception)]
    if vectors:
        scores = texts @ torch.stack(list(vectors.values())).T  # (texts, images)
        pairs = [
            {"text": words, "image": str(file), "similarity": round(float(scores[t, i]), 4)}
            for t, words in enumerate(text)
            for i, file in enumerate(vectors)
        ]
        groups = [pairs[i : i + len(vectors)] for i in range(0, len(pairs), len(vectors))]
        for group in [pairs] if len(vectors) == 1 else groups:
            rows += sorted(group, key=lambda row: -row["similarity"])[:top]
    show(rows, as_json)


@command
def embed(
    images: Images,
    model: ModelPath,
    out: Annotated[Path, typer.Option("--out", "-o", help="A .npy or .json file to write.")],
    text: Annotated[list[str] | None, typer.Option("--text", "-t", help="Also this text.")] = None,
    tokenizer: TokenizerPath = None,
    heads: Heads = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Write one vector per image and text: unit vectors of retrieval models, else the [CLS]."""
    from io import BytesIO

    import numpy as np
    import torch

    from minibeit3.checkpoint import backbone_of
    from minibeit3.modes import ImageTextRetriever
    from minibeit3.storage import write_file

    if out.suffix not in (".npy", ".json"):
        raise ValueError(f"--out {out}: a .npy or .json file")
    files = image_files(images)
    opened = open_model(model, device, (), tokenizer, heads=heads)
    network, backbone = opened.model, backbone_of(opened.model)

    def look(batch: "Tensor") -> list["Tensor"]:
        if isinstance(network, ImageTextRetriever):
            return list(network.embed_image(batch))
        return list(backbone(batch).image[:, 0])

    found = list(per_image(files, opened, look))
    rows = [failed(file, error) for file, error in found if isinstance(error, Exception)]
    named = [(str(file), v) for file, v in found if not isinstance(v, Exception)]
    if text:
        ids, real = opened.words(text)
        with torch.inference_mode():
            if isinstance(network, ImageTextRetriever):
                vectors = network.embed_text(ids, real)
            else:
                vectors = backbone(text=ids, text_real=real).text[:, 0]
        named += zip(text, vectors, strict=True)
    if named:
        matrix = torch.stack([vector for _, vector in named]).float().cpu()
        if out.suffix == ".npy":
            buffer = BytesIO()
            np.save(buffer, matrix.numpy(), allow_pickle=False)
            write_file(out, buffer.getvalue())
        else:
            pairs = zip(named, matrix.tolist(), strict=True)
            listed = [{"source": name, "vector": vector} for (name, _), vector in pairs]
            write_file(out, json.dumps(listed).encode())
        rows = [{"row": i, "source": name} for i, (name, _) in enumerate(named)] + rows
    show(rows, as_json)


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


# Commands of other files (pretrain, finetune, evaluate, bench) use `command` from here and are
# added by importing their file below. Such a file imports torch only inside its functions.
