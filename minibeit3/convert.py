"""Microsoft's checkpoint files to our models and back (FACTS 5: the released names).

Two things differ besides names: queries, keys and values are one matrix here, and [CLS] and the
mask vector have no batch axes. An untrusted file is opened without running anything in it.
"""

import argparse
import os
import re
import zipfile
from collections import Counter
from collections.abc import Mapping
from math import isqrt, prod
from pathlib import Path

import torch
from torch import Tensor

from minibeit3.checkpoint import (
    MAX_DEPTH,
    Model,
    backbone_of,
    empty_model,
    fill,
    resize,
    task_of,
)
from minibeit3.config import BEiT3Config
from minibeit3.modes import (
    ImageCaptioner,
    ImageClassifier,
    ImageTextRetriever,
    VisualQuestionAnswerer,
    VisualReasoner,
)
from minibeit3.released import UNREAD_ROWS, ReleasedBEiT3
from minibeit3.storage import CheckpointError, check_tensors, read_safetensors

PREFIX = "beit3."
MAX_TENSORS = 20_000
MAX_PICKLE_BYTES = 2**24
RELEASED_VOCAB, RELEASED_MASK_ID = 64010, 64001  # eight rows of the embedding are spare

HEAD_KEYS: dict[str, dict[str, str]] = {
    "pretraining": {
        f"{m}_head.{w}": f"{m}_head.{w}" for m in ("mlm", "mim") for w in ("weight", "bias")
    },
    "image_classification": ImageClassifier.RELEASED_HEAD_KEYS,
    "vqa": VisualQuestionAnswerer.RELEASED_HEAD_KEYS,
    "nlvr2": VisualReasoner.RELEASED_HEAD_KEYS,
    "retrieval": ImageTextRetriever.RELEASED_HEAD_KEYS,
    "captioning": ImageCaptioner.RELEASED_HEAD_KEYS,
}
"""Released name of each head's tensors -> ours, by task."""

_RENAMES = [
    (re.compile(pattern), theirs)
    for pattern, theirs in (
        (r"\.experts\.V\.", ".A."),
        (r"\.experts\.L\.", ".B."),
        (r"attn\.project_in\.(.)\.norm", r"self_attn_layer_norm.\1"),
        (r"attn\.project_in\.(.)\.qkv", r"self_attn.*_proj.\1"),
        (r"attn\.project_out\.(.)\.inner_norm", r"self_attn.inner_attn_ln.\1"),
        (r"attn\.project_out\.(.)\.out", r"self_attn.out_proj.\1"),
        (r"ffn\.(.)\.norm", r"final_layer_norm.\1"),
        (r"ffn\.(.)\.inner_norm", r"ffn.\1.ffn_layernorm"),
        (r"^blocks\.", "encoder.layers."),
        (r"^norm\.", "encoder.layer_norm."),
        (r"^image_embed\.patch\.", "vision_embed.proj."),
        (r"^image_embed\.(cls|mask)$", r"vision_embed.\1_token"),
        (r"^image_embed\.positions$", "encoder.embed_positions.A.weight"),
        (r"^text_embed\.positions$", "encoder.embed_positions.B.weight"),
        (r"^text_embed\.words\.", "text_embed."),
    )
]


def released_names(name: str, task: str = "backbone") -> tuple[str, ...]:
    """What the released code calls the tensor `name` of our model of `task`: three for a qkv.

    The tensors of a bare backbone have no prefix (torchscale), those inside a task "beit3.".
    """
    if task != "backbone":
        if not name.startswith("backbone."):
            return ({ours: theirs for theirs, ours in HEAD_KEYS[task].items()}[name],)
        inner = released_names(name.removeprefix("backbone."))
        return tuple(PREFIX + theirs for theirs in inner)
    for pattern, theirs in _RENAMES:
        name = pattern.sub(theirs, name)
    return tuple(name.replace("*", part) for part in "qkv") if "*" in name else (name,)


def load_released(
    source: str | os.PathLike[str] | Mapping[str, Tensor],
    task: str | None = None,
    heads: int | None = None,
    image_size: int | None = None,
    mask_id: int | None = None,
) -> Model:
    """The model of a released checkpoint: float32, CPU, eval mode.

    source: a .pth or .safetensors file, or a state dict; names with or without "beit3.".
    task: None = told by the head's names; "backbone" leaves a known head out. heads: attention
    heads, which no tensor shows; None = width / 64. image_size: pixels, to interpolate the image
    positions to; None = as in the file. mask_id: of a captioner; None = 64001 with the released
    vocabulary, else the last id.
    Raises CheckpointError, a ValueError, for an unreadable or unsafe file and, with a list, for
    every tensor that is missing, unexpected or of another shape.
    """
    label = "the state dict" if isinstance(source, Mapping) else str(source)
    state = _checked(source if isinstance(source, Mapping) else _read(Path(source)), label)
    prefix = PREFIX if any(name.startswith(PREFIX) for name in state) else ""
    task = _infer_task(state, prefix) if task is None else task
    if task == "backbone":
        known = {theirs for keys in HEAD_KEYS.values() for theirs in keys}
        state = {name: value for name, value in state.items() if name not in known}
    elif task not in HEAD_KEYS:
        raise ValueError(
            f"no released model has the task {task!r}: there are backbone, {', '.join(HEAD_KEYS)}"
        )
    config = _infer_config(state, heads, label)
    settings = _infer_settings(state, task, config, mask_id)
    model = empty_model(task, config, settings)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    names = {name: _prefixed(released_names(name, task), task, prefix) for name in shapes}
    parts = {n: _released_shape(n, shape, len(names[n])) for n, shape in shapes.items()}
    check_tensors(state, {theirs: parts[n] for n in names for theirs in names[n]}, label)
    tensors = {  # copies; those of a file are freed one by one
        name: torch.cat([state.pop(n).float().cpu().flatten() for n in names[name]]).reshape(shape)
        for name, shape in shapes.items()
    }
    if image_size is not None and image_size != config.image_size:
        config, tensors = resize(config, tensors, image_size)
        model = empty_model(task, config, settings)
    return fill(model, tensors, label)


def to_released(model: Model) -> dict[str, Tensor]:
    """State dict of `model` under the released names, as copies: the inverse of `load_released`.

    ValueError for the paper's variant and for tasks that no released model has.
    """
    task = task_of(model)
    if not isinstance(backbone_of(model), ReleasedBEiT3) or task not in ("backbone", *HEAD_KEYS):
        raise ValueError(
            f"a {task} model of variant {backbone_of(model).config.variant!r} has no released "
            f"form: variant must be 'released', the task backbone, {', '.join(HEAD_KEYS)}"
        )
    state = {}
    for name, value in model.state_dict().items():
        names = released_names(name, task)
        shape = _released_shape(name, tuple(value.shape), len(names))
        parts = value.chunk(3) if len(names) == 3 else [value]
        for theirs, part in zip(names, parts, strict=True):
            state[theirs] = part.detach().reshape(shape).clone()
    return state


def _prefixed(names: tuple[str, ...], task: str, prefix: str) -> tuple[str, ...]:
    """The names in the style of the file: `prefix` before those of the backbone."""
    if task == "backbone":
        return tuple(prefix + name for name in names)
    return names if prefix else tuple(name.removeprefix(PREFIX) for name in names)


def _released_shape(name: str, shape: tuple[int, ...], parts: int) -> tuple[int, ...]:
    if name.endswith(("image_embed.cls", "image_embed.mask")):
        return (1, 1, *shape)
    return (shape[0] // parts, *shape[1:]) if parts > 1 else shape


def _infer_task(state: Mapping[str, Tensor], prefix: str) -> str:
    """The task whose head names are most like the file's; `check_tensors` then finds the rest."""
    own = ("encoder.", "text_embed.", "vision_embed.")
    head = {name for name in state if not name.removeprefix(prefix).startswith(own)}
    likeness = {
        task: len(head & keys.keys()) / len(head | keys.keys()) for task, keys in HEAD_KEYS.items()
    }
    best = max(likeness, key=lambda task: likeness[task])
    return best if likeness[best] > 0 else "backbone"


def _infer_config(state: Mapping[str, Tensor], heads: int | None, label: str) -> BEiT3Config:
    """Sizes by majority, so that one wrong tensor is named, not all the others."""

    def size(pattern: str, axis: int, default: int) -> int:
        matches = (value for name, value in state.items() if re.search(pattern, name))
        sizes = Counter(value.shape[axis] for value in matches if value.ndim > axis)
        return max(1, sizes.most_common(1)[0][0] if sizes else default)

    width = size(r"_layer_norm\.[AB]\.weight$|out_proj\.[AB]\.weight$", 0, 0)
    layers = {match[1] for name in state if (match := re.search(r"encoder\.layers\.(\d+)\.", name))}
    if not 1 <= len(layers) <= MAX_DEPTH:
        hint = " (these are our own names: use from_pretrained)" if _is_ours(state) else ""
        raise CheckpointError(f"{label} is no BEiT-3 checkpoint: {len(layers)} layers{hint}")
    if heads is None and width % 64:
        raise ValueError(f"{label}: width {width} is no multiple of 64, so give heads=")
    patch = size(r"vision_embed\.proj\.weight$", 2, 16)
    grid = isqrt(max(1, size(r"embed_positions\.A\.weight$", 0, 199) - UNREAD_ROWS - 1))
    return BEiT3Config(
        variant="released",
        depth=len(layers),
        width=width,
        ffn_width=size(r"fc1\.[AB]?\.?(weight|bias)$|ffn_layernorm\.weight$", 0, 4 * width),
        heads=width // 64 if heads is None else heads,
        image_size=patch * grid,
        patch_size=patch,
        channels=size(r"vision_embed\.proj\.weight$", 1, 3),
        max_text_length=size(r"embed_positions\.B\.weight$", 0, 1024) - UNREAD_ROWS,
        vocab_size=size(r"text_embed\.weight$", 0, RELEASED_VOCAB),
        visual_vocab_size=size(r"^mim_head\.", 0, 8192),
        final_norm=any("encoder.layer_norm." in name for name in state),
    )


def _infer_settings(
    state: Mapping[str, Tensor], task: str, config: BEiT3Config, mask_id: int | None
) -> dict[str, int]:
    def rows(head: str) -> int:
        names = (f"{head}.weight", f"{head}.bias")
        return next((len(state[n]) for n in names if n in state and state[n].ndim), 1)

    if task == "image_classification":
        return {"classes": rows("head")}
    if task == "vqa":
        return {"answers": rows("head.3")}
    if task == "captioning" and mask_id is None and config.vocab_size == RELEASED_VOCAB:
        mask_id = RELEASED_MASK_ID
    return {"mask_id": mask_id} if task == "captioning" and mask_id is not None else {}


def _is_ours(state: Mapping[str, Tensor]) -> bool:
    return any(name.endswith("image_embed.positions") for name in state)


def _checked(state: object, label: str) -> dict[str, Tensor]:
    """Only names and honest dense tensors: no other types, no views larger than their storage."""
    if not isinstance(state, Mapping) or len(state) > MAX_TENSORS:
        raise CheckpointError(f"{label}: expected a state dict of at most {MAX_TENSORS:,} tensors")
    storages: dict[int, int] = {}
    size = 0
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(f"{label}: {str(name)[:80]!r} is a {type(value).__name__}")
        if value.layout != torch.strided or value.is_quantized or not value.is_floating_point():
            raise CheckpointError(f"{label}: {name} is {value.dtype} {value.layout}, not floats")
        storage = value.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        size += prod(value.shape) * value.itemsize
    if size > sum(storages.values()):
        raise CheckpointError(
            f"{label}: tensors of {size:,} bytes in {sum(storages.values()):,} bytes of data "
            "(repeated views): save contiguous copies of them"
        )
    return {name: value.detach() for name, value in state.items()}


def _read(path: Path) -> object:
    """The state dict in a file, whatever lies around it thrown away unread."""
    if not path.is_file():
        raise CheckpointError(f"{path} is no file: give a .pth or .safetensors checkpoint")
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    if zipfile.is_zipfile(path):
        _check_archive(path)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # the released `args`
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle raises at least ten different types
        names = r"(?:[Uu]nsupported (?:class|global)\W+(?:GLOBAL )?|GLOBAL )([\w.]+)"
        wanted = re.search(names, str(error))
        if wanted or "unsafe" in str(error).lower():
            what = wanted[1] if wanted else "code"
            raise CheckpointError(
                f"{path} wants to run {what} when opened; a checkpoint needs only tensors, so it "
                "was refused and nothing ran: get the file from its authors"
            ) from error
        raise CheckpointError(
            f"{path} cannot be read as a PyTorch checkpoint ({type(error).__name__}): it is "
            "damaged or something else; download it again"
        ) from error
    for key in ("model", "module"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            return loaded[key]
    return loaded


def _check_archive(path: Path) -> None:
    """Refuse compressed, overlapping or damaged archives before torch sees them."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            large = [m for m in members if m.filename.endswith(".pkl")]
            if (
                len(members) > MAX_TENSORS
                or any(m.compress_type != zipfile.ZIP_STORED for m in members)
                or sum(m.file_size for m in members) > path.stat().st_size
                or any(m.file_size > MAX_PICKLE_BYTES for m in large)
            ):
                raise CheckpointError(f"{path} is no archive that torch.save writes: refused")
            damaged = archive.testzip()
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise CheckpointError(f"{path} is damaged ({error}): download it again") from error
    if damaged is not None:
        raise CheckpointError(f"{path}: {damaged} fails its checksum, download it again")
