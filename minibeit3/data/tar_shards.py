"""Tar shards as img2dataset and WebDataset write them: 00000.tar with 000000000.{jpg,txt,json}.

Members are read by name and in place: nothing is extracted, and members that are neither picture,
.txt nor .json (pickles among them) are never looked into.
"""

import tarfile
from collections.abc import Iterable, Iterator
from os import PathLike
from pathlib import Path

from minibeit3.data.records import (
    DataError,
    OnBad,
    Record,
    Records,
    TarMember,
    caption,
    get,
    parse_json,
    shown,
)
from minibeit3.data.sample import Sample

PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "bmp")
MAX_TEXT_BYTES = 2**20

Parts = dict[str, TarMember]


def load_tar_shards(
    shards: str | PathLike[str] | Iterable[str | PathLike[str]],
    on_bad: OnBad = "raise",
    max_bad: float = 0.01,
) -> Records:
    """Image-text pairs of a folder of `*.tar`, one archive, or a list of archives, in this order.

    texts: the .txt, or the json's caption; info: the json (url, status, width, ...).
    key "<shard>/<name>". Bad are: a failed download (status other than success), a missing picture
    or caption, hostile names, links, and a damaged archive (named once, at the damage).
    All headers are read up front; pictures stay in the archives.
    """
    if isinstance(shards, (str, PathLike)):
        place = Path(shards)
        archives = sorted(place.glob("*.tar")) if place.is_dir() else [place]
    else:
        archives = [Path(shard) for shard in shards]
    if not archives:
        raise DataError(f"no *.tar in {shards}")
    groups = (group for archive in archives for group in _groups(archive))
    return Records("tar", groups, _parse, on_bad, max_bad)


def _parse(group: tuple[str, Parts] | DataError) -> Record:
    if isinstance(group, DataError):
        raise group
    key, parts = group
    try:
        info = parse_json(_text(parts["json"])) if "json" in parts else {}
        if not isinstance(info, dict):
            raise DataError(f"json is {shown(info)}, expected an object")
        if info.get("status", "success") != "success":
            raise DataError(f"status {shown(info['status'])}")
        picture = next((parts[kind] for kind in PICTURES if kind in parts), None)
        if picture is None:
            raise DataError(f"no picture among its members {sorted(parts)}")
        text = _text(parts["txt"]) if "txt" in parts else get(info, "caption", str)
        return Record(Sample(key=key, texts=(caption(text),), info=info), picture)
    except DataError as error:
        raise DataError(f"{key}: {error}") from error


def _groups(archive: Path) -> Iterator[tuple[str, Parts] | DataError]:
    """Neighbouring members of one name; damage as a value, so that the other shards go on."""
    key, parts = "", {}
    for found in _members(archive):
        if isinstance(found, DataError):
            yield found
            continue
        name, member = found
        folder, slash, file = name.rpartition("/")
        stem, _, kind = file.partition(".")
        this = f"{archive.stem}/{folder}{slash}{stem}"
        if this != key and parts:
            yield key, parts
            parts = {}
        key, parts[kind.lower()] = this, member
    if parts:
        yield key, parts


def _members(archive: Path) -> Iterator[tuple[str, TarMember] | DataError]:
    try:
        with tarfile.open(archive, "r:") as tar:
            size, before = archive.stat().st_size, -1
            while (entry := tar.next()) is not None:
                end = entry.offset_data + entry.size
                if tar.offset <= before or entry.size < 0 or end > size:
                    raise tarfile.ReadError(f"{shown(entry.name)} does not fit into the file")
                before = tar.offset
                if reason := _refusal(entry):
                    yield DataError(f"{archive.name}: {shown(entry.name)}: {reason}")
                elif entry.isfile():
                    yield entry.name, TarMember(archive, entry.offset_data, entry.size)
            # tarfile takes a damaged header for the end; the real end is a block of zeros.
            if TarMember(archive, tar.offset, tarfile.BLOCKSIZE).read() != tarfile.NUL * 512:
                raise tarfile.ReadError(f"no end mark at byte {tar.offset}")
    except Exception as error:
        # Damaged headers make tarfile raise more than TarError; the archive's rest is unreadable.
        cause = f"{error or type(error).__name__}"
        yield DataError(f"{archive.name}: truncated or damaged archive: {cause}")


def _refusal(entry: tarfile.TarInfo) -> str | None:
    name = entry.name
    if name.startswith("/") or ".." in name.split("/") or set(name) & set("\\:\0"):
        return "not a plain relative name"
    return None if (entry.isfile() and not entry.issparse()) or entry.isdir() else "not a file"


def _text(member: TarMember) -> str:
    if member.size > MAX_TEXT_BYTES:
        raise DataError(f"a text of {member.size:,} bytes, the limit is {MAX_TEXT_BYTES:,}")
    try:
        return member.read().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"text is not UTF-8: {error}") from error
