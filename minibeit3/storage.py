"""Folders of a saved model: written whole or not at all, read only when every byte is right.

`config.json`, `model.safetensors` and any extra files; `manifest.json` has the size and SHA-256 of
each. Safetensors alone would load a flipped bit, or another model's config, without a word.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

CONFIG, WEIGHTS, MANIFEST = "config.json", "model.safetensors", "manifest.json"
MAX_JSON_BYTES = 2**20
MAX_HEADER_BYTES = 2**20
"""Of a safetensors file: 15 times that of the largest model here, too little for 20,000 tensors."""
AGAIN = "copy the folder again, or save the model again"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used or written; the message names the file and the fix."""


def write_file(path: Path, content: bytes) -> None:
    """Replace `path` by `content`: a crash leaves the old file or the new one, never a part.

    CheckpointError when it cannot be written; the old file is then untouched.
    """
    replace_files({path: lambda temporary: temporary.write_bytes(content)}, len(content))


def write_folder(
    folder: str | os.PathLike[str],
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    files: Mapping[str, bytes] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Save a model: config (JSON values), tensors (names to values), further files by name.

    dtype: of floating tensors on disk, such as torch.bfloat16; None = as they are.
    All files are written beside their places and only then renamed, the manifest last: a full
    disk leaves the old model intact, and a crash between two renames is found when reading.
    Raises CheckpointError for whatever cannot be written.
    """
    folder = Path(folder)
    stored = {name: _to_store(value, dtype) for name, value in tensors.items()}
    contents = {CONFIG: _to_json(config), **(files or {})}
    size = sum(t.numel() * t.itemsize for t in stored.values()) + sum(map(len, contents.values()))
    sums: dict[str, dict[str, int | str]] = {}

    def save_bytes(name: str) -> Callable[[Path], None]:
        def write(temporary: Path) -> None:
            temporary.write_bytes(contents[name])
            sums[name] = _fingerprint(temporary)

        return write

    def save_weights(temporary: Path) -> None:
        save_file(stored, temporary, metadata={"format": "pt"})
        sums[WEIGHTS] = _fingerprint(temporary)

    def save_manifest(temporary: Path) -> None:
        temporary.write_bytes(_to_json({"files": sums}))

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"cannot make the folder {folder}: {error}") from error
    writers = {folder / name: save_bytes(name) for name in contents}
    replace_files(
        {**writers, folder / WEIGHTS: save_weights, folder / MANIFEST: save_manifest}, size
    )


def read_folder(
    folder: str | os.PathLike[str], device: str | torch.device = "cpu"
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config and tensors that `write_folder` saved, each file compared with the manifest.

    Raises CheckpointError for a missing, truncated, changed or malformed file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is no folder: give one that save_pretrained wrote")
    listed = read_json(folder / MANIFEST).get("files")
    if not isinstance(listed, dict) or not {CONFIG, WEIGHTS} <= listed.keys():
        raise CheckpointError(f"{folder / MANIFEST} does not list {CONFIG} and {WEIGHTS}: {AGAIN}")
    for name, expected in listed.items():
        if Path(name).name != name or "\0" in name:
            raise CheckpointError(f"{folder / MANIFEST} lists {name!r}, which is no file name")
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing: {AGAIN}")
        if _fingerprint(path) != expected:
            raise CheckpointError(
                f"{path} ({path.stat().st_size:,} bytes) is not the file that was saved: {AGAIN}"
            )
    return read_json(folder / CONFIG), read_safetensors(folder / WEIGHTS, device)


def fingerprint_of(folder: str | os.PathLike[str]) -> str:
    """SHA-256 of a folder's weights, as its manifest has it; CheckpointError without one."""
    listed = read_json(Path(folder) / MANIFEST).get("files")
    weights = listed.get(WEIGHTS) if isinstance(listed, dict) else None
    if not isinstance(weights, dict) or not isinstance(weights.get("sha256"), str):
        raise CheckpointError(f"{Path(folder) / MANIFEST} does not list {WEIGHTS}: {AGAIN}")
    return weights["sha256"]


def read_safetensors(path: Path, device: str | torch.device = "cpu") -> dict[str, Tensor]:
    """Tensors of one safetensors file; CheckpointError for a malformed or abusive one."""
    try:
        with path.open("rb") as file:
            header = int.from_bytes(file.read(8), "little")
        if header > MAX_HEADER_BYTES:
            raise CheckpointError(
                f"{path}: its header takes {header:,} bytes, the limit is {MAX_HEADER_BYTES:,}; "
                "this is no safetensors file of a model"
            )
        return load_file(path, device=str(device))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read {path}: {error}; {AGAIN}") from error


def read_json(path: Path) -> dict[str, Any]:
    """One JSON object; CheckpointError unless it is small, strict (no NaN, no repeats) and sane."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError(f"a name is there twice: {[name for name, _ in pairs]}")
        return dict(pairs)

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON number")

    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ValueError(f"{path.stat().st_size:,} bytes, the limit is {MAX_JSON_BYTES:,}")
        content = path.read_text("utf-8")
        loaded = json.loads(content, object_pairs_hook=once, parse_constant=refuse)
        if not isinstance(loaded, dict):
            raise ValueError(f"it holds a {type(loaded).__name__}, not an object")
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read {path}: {error}; {AGAIN}") from error
    return loaded


def check_tensors(
    given: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], source: str
) -> None:
    """CheckpointError that lists every missing, unexpected and wrong-shaped tensor of `source`."""
    wrong = {n for n in given.keys() & expected.keys() if tuple(given[n].shape) != expected[n]}
    if given.keys() == expected.keys() and not wrong:
        return
    shapes = [f"{name} {tuple(given[name].shape)} not {expected[name]}" for name in sorted(wrong)]
    lists = {
        "missing": sorted(expected.keys() - given.keys()),
        "unexpected": sorted(given.keys() - expected.keys()),
        "wrong shape": shapes,
    }
    found = "; ".join(f"{what}: {', '.join(names)}" for what, names in lists.items() if names)
    raise CheckpointError(f"{source} does not fit the model: {found}")


def replace_files(writers: Mapping[Path, Callable[[Path], object]], size: int) -> None:
    """Run every writer on a temporary file beside its path, then rename all in the order given.

    size: bytes to be written, for the message. On failure CheckpointError, and no file is left.
    """
    written: dict[Path, Path] = {}
    folder = next(iter(writers)).parent
    try:
        for path, write in writers.items():
            handle, name = tempfile.mkstemp(dir=folder, prefix=f".{path.name}.", suffix=".tmp")
            os.close(handle)
            written[path] = Path(name)
            write(written[path])
            written[path].chmod(0o644)  # mkstemp's files can be read by their owner alone
            _sync(written[path])
        for path, temporary in written.items():
            os.replace(temporary, path)
        _sync(folder)
    except (OSError, SafetensorError) as error:
        free = shutil.disk_usage(folder).free if folder.is_dir() else 0
        raise CheckpointError(
            f"cannot write {folder}: {error}; {size:,} bytes needed, {free:,} free on that disk"
        ) from error
    finally:
        for temporary in written.values():
            temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _to_store(value: Tensor, dtype: torch.dtype | None) -> Tensor:
    value = value.detach()
    if dtype is not None and value.is_floating_point():
        value = value.to(dtype)
    return value.to("cpu").contiguous()


def _to_json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def _fingerprint(path: Path) -> dict[str, int | str]:
    with path.open("rb") as file:
        return {
            "bytes": os.fstat(file.fileno()).st_size,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }
