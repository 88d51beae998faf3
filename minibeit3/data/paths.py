"""Where the lab's own data lies, and how a path from an untrusted file is kept inside its root."""

import os
from pathlib import Path


def data_root() -> Path:
    """Folder `data_samples` of the checkout, or $MINIBEIT3_DATA when set.

    Raises FileNotFoundError that names the folder and the fix when it is missing.
    """
    chosen = os.environ.get("MINIBEIT3_DATA")
    root = Path(chosen) if chosen else Path(__file__).resolve().parents[2] / "data_samples"
    if not root.is_dir():
        raise FileNotFoundError(
            f"no data folder at {root}: install from a checkout (pip install -e .) "
            "or set MINIBEIT3_DATA to the checkout's data_samples folder"
        )
    return root


def inside(root: Path, relative: str) -> Path:
    """`root / relative`, resolved; ValueError when an untrusted name leaves `root`.

    Refuses absolute names, `..`, symlinks that lead out, backslashes, drive letters, URLs and NUL.
    """
    if "\0" in relative or "\\" in relative or ":" in relative or not relative.strip():
        raise ValueError(f"not a plain relative path: {relative!r}")
    base = root.resolve()
    path = (base / relative).resolve()
    if not path.is_relative_to(base):
        raise ValueError(f"{relative!r} leaves its folder {root}")
    return path
