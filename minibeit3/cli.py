"""The command line: models in the terminal, for people and, by --json, for programs.

torch and everything built on it are imported inside the functions, so that --help is quick.
"""

import functools
import glob
import json
import pkgutil
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
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
    """Add a command to `app`; bad input, or a package that it lacks, ends it with exit code 2."""

    @functools.wraps(function)
    def run(*args: Any, **values: Any) -> None:  # as typer calls it
        try:
            function(*args, **values)
        except (ValueError, OSError, MemoryError, ImportError) as error:
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


# The commands are in the files cli_*.py: each adds its own by `command`, and imports torch only
# inside its functions.
for found in pkgutil.iter_modules([str(Path(__file__).parent)]):
    if found.name.startswith("cli_"):
        import_module(f"minibeit3.{found.name}")
