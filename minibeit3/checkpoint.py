"""Saved models of every task: `config.json` + `model.safetensors`, the tokenizer beside them."""

import os
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields, replace
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from minibeit3.backbones import Backbone, build_backbone
from minibeit3.checks import check_fields
from minibeit3.config import BEiT3Config
from minibeit3.model import BEiT3
from minibeit3.modes import (
    CaptionScorer,
    ClozeAnswerer,
    ClozeReasoner,
    ImageCaptioner,
    ImageClassifier,
    ImageTextRetriever,
    ObjectDetector,
    SemanticSegmenter,
    TextClassifier,
    TokenTagger,
    VisualQuestionAnswerer,
    VisualReasoner,
)
from minibeit3.objective import MaskedDataModel
from minibeit3.released import UNREAD_ROWS, ReleasedBEiT3
from minibeit3.storage import (
    CONFIG,
    CheckpointError,
    check_tensors,
    fingerprint_of,
    read_folder,
    write_folder,
)
from minibeit3.text_tokenizer import TextTokenizer

TASKS = {
    "pretraining": MaskedDataModel,
    "image_classification": ImageClassifier,
    "segmentation": SemanticSegmenter,
    "detection": ObjectDetector,
    "text_classification": TextClassifier,
    "token_tagging": TokenTagger,
    "vqa": VisualQuestionAnswerer,
    "vqa_cloze": ClozeAnswerer,
    "caption_scoring": CaptionScorer,
    "nlvr2": VisualReasoner,
    "nlvr2_cloze": ClozeReasoner,
    "retrieval": ImageTextRetriever,
    "captioning": ImageCaptioner,
}
"""Class of each task; a bare backbone is the task "backbone"."""

TaskModel = (
    MaskedDataModel
    | ImageClassifier
    | SemanticSegmenter
    | ObjectDetector
    | TextClassifier
    | TokenTagger
    | VisualQuestionAnswerer
    | ClozeAnswerer
    | ClozeReasoner
    | CaptionScorer
    | VisualReasoner
    | ImageTextRetriever
    | ImageCaptioner
)
Model = Backbone | TaskModel

FORMAT = 1
MAX_DEPTH = 1000  # a file that asks for more wants to keep us busy
_FIELDS = {"format", "task", "backbone", "settings"}
_BASE = {"folder", "sha256"}


def save_pretrained(
    model: Model,
    folder: str | os.PathLike[str],
    tokenizer: TextTokenizer | None = None,
    dtype: torch.dtype | None = None,
    base: str | os.PathLike[str] | None = None,
) -> None:
    """Write config.json, model.safetensors, manifest.json and the tokenizer's files to `folder`.

    dtype: of the weights on disk (torch.bfloat16 halves them), None = as they are in memory.
    base: folder of a saved model; tensors that it has too, name and bits, are not written again,
    so that the two folders must stay where they are to each other.
    Raises CheckpointError when the disk refuses; a model that was there before is then unharmed.
    """
    backbone = backbone_of(model)
    if tokenizer is not None:
        check_tokenizer(tokenizer, backbone.config)
    config = {
        "format": FORMAT,
        "task": task_of(model),
        "backbone": asdict(backbone.config),
        "settings": {} if model is backbone else model.settings,
    }
    tensors = model.state_dict()
    if base is not None:
        stored, known = read_folder(base)
        if "base" in stored:
            raise CheckpointError(f"{base} has a base itself: name that one")
        where = os.path.relpath(Path(base).resolve(), Path(folder).resolve())
        config["base"] = {"folder": Path(where).as_posix(), "sha256": fingerprint_of(base)}
        same = [n for n, t in tensors.items() if n in known and torch.equal(t, known[n].to(t))]
        tensors = {name: t for name, t in tensors.items() if name not in same}
    write_folder(folder, config, tensors, _tokenizer_files(tokenizer), dtype)


def from_pretrained(
    folder: str | os.PathLike[str],
    device: str | torch.device = "cpu",
    image_size: int | None = None,
) -> Model:
    """The model that `save_pretrained` wrote: float32, eval mode, of the class it had.

    image_size: pixels, to interpolate the image positions to; None = as saved.
    Raises CheckpointError for a damaged folder, unknown config fields and any tensor that is
    missing, unexpected or of another shape; ValueError for an impossible image_size.
    """
    stored, tensors = read_folder(folder)
    task, config, settings = parse_config(stored, folder)
    if "base" in stored:
        names = empty_model(task, config, settings).state_dict().keys() - tensors.keys()
        known = _base_tensors(stored["base"], Path(folder))
        tensors |= {name: known[name] for name in names & known.keys()}
    if image_size is not None:
        config, tensors = resize(config, tensors, image_size)
    return fill(empty_model(task, config, settings), tensors, str(folder)).to(device)


def parse_config(
    stored: Mapping[str, Any], folder: str | os.PathLike[str]
) -> tuple[str, BEiT3Config, dict[str, Any]]:
    """Task, sizes and settings in a config.json; CheckpointError when no model is like that."""
    try:
        check_fields(stored, _FIELDS | {"base"}, _FIELDS)
        check_fields(stored.get("base", {}), _BASE, _BASE if "base" in stored else set())
        if stored["format"] != FORMAT:
            raise ValueError(f"format {stored['format']!r}, this version reads {FORMAT}: update it")
        known = fields(BEiT3Config)
        needed = {field.name for field in known if field.default is MISSING}
        check_fields(stored["backbone"], {field.name for field in known}, needed)
        config, settings = BEiT3Config(**stored["backbone"]), dict(stored["settings"])
        if config.depth > MAX_DEPTH:
            raise ValueError(f"depth {config.depth} is above {MAX_DEPTH}")
        empty_model(stored["task"], config, settings)
    except (ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"{Path(folder) / CONFIG} is not usable: {error}") from error
    return stored["task"], config, settings


def task_of(model: Model) -> str:
    """Name of the model's task in `TASKS`, or "backbone"."""
    for task, kind in TASKS.items():
        if isinstance(model, kind):
            return task
    return "backbone"


def backbone_of(model: Model) -> Backbone:
    """The model itself or the backbone in it."""
    return model if isinstance(model, BEiT3 | ReleasedBEiT3) else model.backbone


def empty_model(task: str, config: BEiT3Config, settings: Mapping[str, Any]) -> Model:
    """A model on the meta device: every shape, no values, no memory. ValueError: unknown task."""
    with torch.device("meta"):
        if task == "backbone":
            return build_backbone(config)
        if task not in TASKS:
            raise ValueError(f"unknown task {task!r}: there are backbone, {', '.join(TASKS)}")
        return TASKS[task](build_backbone(config), **settings)


def fill(model: Model, tensors: Mapping[str, Tensor], source: str) -> Model:
    """Give an `empty_model` its values, as float32, and set eval mode.

    CheckpointError lists every tensor that does not fit; `source` names the file in it.
    """
    check_tensors(tensors, {n: tuple(t.shape) for n, t in model.state_dict().items()}, source)
    model.load_state_dict({n: t.float() for n, t in tensors.items()}, assign=True)
    return model.eval()


def resize(
    config: BEiT3Config, tensors: Mapping[str, Tensor], image_size: int
) -> tuple[BEiT3Config, dict[str, Tensor]]:
    """The config and tensors of the same model for images of another size."""
    resized = replace(config, image_size=image_size)
    kept = 1 + (UNREAD_ROWS if config.variant == "released" else 0)
    name = next((name for name in tensors if name.endswith("image_embed.positions")), "")
    if not name or len(tensors[name]) != kept + config.patches:
        return resized, dict(tensors)  # `fill` then says what is wrong
    table = interpolate_positions(tensors[name].float(), resized.grid, kept)
    return resized, {**tensors, name: table}


def interpolate_positions(table: Tensor, grid: int, kept: int = 1) -> Tensor:
    """Position rows (kept + N, D) of a square grid of patches to (kept + grid^2, D).

    kept: rows before the patches, left as they are. Bicubic, corners not aligned, as the released
    code does (unilm beit3/utils.py, FACTS 4).
    """
    old = round((len(table) - kept) ** 0.5)
    if old**2 != len(table) - kept:
        raise ValueError(f"{len(table) - kept} patch positions form no square grid")
    patches = rearrange(table[kept:], "(h w) D -> 1 D h w", h=old)
    patches = F.interpolate(patches, (grid, grid), mode="bicubic", align_corners=False)
    return torch.cat([table[:kept], rearrange(patches, "1 D h w -> (h w) D")])


def check_tokenizer(tokenizer: TextTokenizer, config: BEiT3Config) -> None:
    """ValueError when the tokenizer has ids that the embedding lacks."""
    if tokenizer.vocab_size > config.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} ids, the model embeds {config.vocab_size}: "
            "this is another model's tokenizer"
        )


def _base_tensors(base: Mapping[str, Any], folder: Path) -> dict[str, Tensor]:
    place = folder / str(base["folder"])
    if PurePosixPath(base["folder"]).is_absolute() or Path(base["folder"]).is_absolute():
        raise CheckpointError(f"{folder} names its base by {base['folder']}: a path from it is due")
    if not place.is_dir() or fingerprint_of(place) != base["sha256"]:
        raise CheckpointError(
            f"{folder} holds only what differs from the model in {place}, which is missing or "
            "another one now: copy both, or save the model again without a base"
        )
    return read_folder(place)[1]


def _tokenizer_files(tokenizer: TextTokenizer | None) -> dict[str, bytes]:
    if tokenizer is None:
        return {}
    with TemporaryDirectory() as folder:
        tokenizer.save(folder)
        return {file.name: file.read_bytes() for file in Path(folder).iterdir()}
