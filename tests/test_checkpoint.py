"""Saved models come back as they were, and no damage goes unnoticed."""

import hashlib
import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minibeit3 import BEiT3Config, build_backbone, from_pretrained, save_pretrained
from minibeit3.checkpoint import TASKS, Model, backbone_of, task_of
from minibeit3.config import Variant
from minibeit3.storage import (
    CONFIG,
    MANIFEST,
    MAX_HEADER_BYTES,
    WEIGHTS,
    CheckpointError,
    read_folder,
    read_json,
    read_safetensors,
    write_file,
    write_folder,
)
from minibeit3.text_tokenizer import TextTokenizer

ARGUMENTS = {
    "image_classification": {"classes": 5},
    "segmentation": {"classes": 4},
    "detection": {"classes": 4},
    "text_classification": {"classes": 3},
    "token_tagging": {"labels": 6},
    "vqa": {"answers": 7},
    "vqa_cloze": {"answers": 7, "mask_id": 9},
    "nlvr2_cloze": {"mask_id": 9},
    "caption_scoring": {"mask_id": 9},
    "captioning": {"mask_id": 9},
}
VARIANTS: tuple[Variant, ...] = ("paper", "released")


def config_of(variant: Variant) -> BEiT3Config:
    return BEiT3Config(
        variant=variant,
        depth=2,
        width=16,
        ffn_width=24,
        heads=2,
        fusion_layers=1 if variant == "paper" else 0,
        image_size=16,
        patch_size=8,
        max_text_length=10,
        vocab_size=50,
        visual_vocab_size=11,
    )


def model_of(task: str = "vqa", variant: Variant = "released", seed: int = 0) -> Model:
    """A model whose every value is random, also those that start as zero or one."""
    generator = torch.Generator().manual_seed(seed)
    backbone = build_backbone(config_of(variant), generator)
    model = backbone if task == "backbone" else TASKS[task](backbone, **ARGUMENTS.get(task, {}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def differing(one: Model, other: Model) -> list[str]:
    """Names of tensors that are not the same bits."""
    first, second = one.state_dict(), other.state_dict()
    assert first.keys() == second.keys()
    return [name for name in first if not torch.equal(first[name], second[name])]


def rewrite(folder: Path, **changes: Any) -> None:
    """Change config.json and hide it by a fitting manifest, as an attacker would."""
    config = json.loads((folder / CONFIG).read_text()) | changes
    content = json.dumps(config).encode()
    (folder / CONFIG).write_bytes(content)
    manifest = json.loads((folder / MANIFEST).read_text())
    digest = hashlib.sha256(content).hexdigest()
    manifest["files"][CONFIG] = {"bytes": len(content), "sha256": digest}
    (folder / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("task", ["backbone", *TASKS])
def test_every_model_comes_back_bit_identical(tmp_path: Path, task: str, variant: Variant) -> None:
    model = model_of(task, variant)
    save_pretrained(model, tmp_path / "new" / "folder")
    loaded = from_pretrained(tmp_path / "new" / "folder")
    assert type(loaded) is type(model) and task_of(loaded) == task
    assert differing(loaded, model) == [] and not loaded.training
    assert backbone_of(loaded).config == backbone_of(model).config
    assert getattr(loaded, "settings", None) == getattr(model, "settings", None)
    assert all(p.requires_grad for p in loaded.parameters())
    assert {file.name for file in (tmp_path / "new" / "folder").iterdir()} == {
        CONFIG,
        WEIGHTS,
        MANIFEST,
    }


def test_bfloat16_halves_the_file_and_loads_as_float32(tmp_path: Path) -> None:
    model = model_of()
    save_pretrained(model, tmp_path / "full")
    save_pretrained(model, tmp_path / "half", dtype=torch.bfloat16)
    full, half = (len((tmp_path / n / WEIGHTS).read_bytes()) for n in ("full", "half"))
    parameters = sum(p.numel() for p in model.parameters())
    assert 4 * parameters < full < 5 * parameters and 2 * parameters < half < 3 * parameters
    loaded = from_pretrained(tmp_path / "half").state_dict()
    for name, value in model.state_dict().items():
        assert loaded[name].dtype == torch.float32
        assert torch.equal(loaded[name], value.bfloat16().float())


def test_the_tokenizer_lies_beside_the_model_and_must_fit_it(tmp_path: Path) -> None:
    tokenizer = TextTokenizer.lab()
    with pytest.raises(ValueError, match="another model's tokenizer"):
        save_pretrained(model_of(), tmp_path, tokenizer)
    assert list(tmp_path.iterdir()) == []
    backbone = build_backbone(replace(config_of("paper"), vocab_size=tokenizer.vocab_size))
    save_pretrained(backbone, tmp_path, tokenizer)
    again = TextTokenizer.from_pretrained(tmp_path)
    assert again.encode("a red square", 12) == tokenizer.encode("a red square", 12)
    (tmp_path / "text_tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"text_tokenizer\.json .* is not the file"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize("variant", VARIANTS)
def test_positions_interpolate_only_when_asked(tmp_path: Path, variant: Variant) -> None:
    model = model_of("image_classification", variant)
    save_pretrained(model, tmp_path)
    assert differing(from_pretrained(tmp_path, image_size=16), model) == []
    larger = from_pretrained(tmp_path, image_size=32)
    assert differing_shapes(larger, model) == ["backbone.image_embed.positions"]
    assert larger(torch.zeros(1, 3, 32, 32)).shape == (1, 5)
    old, new = (backbone_of(m).image_embed.positions for m in (model, larger))
    kept = 3 if variant == "released" else 1
    assert torch.equal(old[:kept], new[:kept])
    torch.testing.assert_close(  # a bicubic resize of constants is constant
        from_constant(tmp_path, model).image_embed.positions, torch.full((kept + 16, 16), 2.0)
    )


def differing_shapes(one: Model, other: Model) -> list[str]:
    pairs = zip(one.state_dict().items(), other.state_dict().values(), strict=True)
    return [name for (name, first), second in pairs if first.shape != second.shape]


def from_constant(folder: Path, model: Model) -> Any:
    """The backbone after a resize of a table of twos."""
    with torch.no_grad():
        backbone_of(model).image_embed.positions.fill_(2.0)
    save_pretrained(model, folder)
    return backbone_of(from_pretrained(folder, image_size=32))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    save_pretrained(model_of(), folder)
    return folder


@contextmanager
def changed(path: Path, content: bytes | None) -> Iterator[None]:
    """The file has another content, or is gone, for a while."""
    original = path.read_bytes()
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(original)


@settings(max_examples=80)
@given(
    name=st.sampled_from([CONFIG, WEIGHTS, MANIFEST]), where=st.floats(0, 1), bit=st.integers(0, 7)
)
def test_a_flipped_bit_never_loads(saved: Path, name: str, where: float, bit: int) -> None:
    content = bytearray((saved / name).read_bytes())
    content[int(where * (len(content) - 1))] ^= 1 << bit
    with changed(saved / name, bytes(content)):
        try:
            assert differing(from_pretrained(saved), model_of()) == []  # white space of a JSON file
            assert name == MANIFEST
        except CheckpointError as error:
            assert str(saved) in str(error)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, MANIFEST])
def test_a_cut_or_missing_file_is_named(saved: Path, name: str) -> None:
    content = (saved / name).read_bytes()
    for part in (content[:-2], content[: len(content) // 2], b"", content + b"\0", None):
        with changed(saved / name, part), pytest.raises(CheckpointError, match=name):
            from_pretrained(saved)


def test_there_must_be_a_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is no folder"):
        from_pretrained(tmp_path / "absent")


def test_a_manifest_names_files_of_its_folder_only(tmp_path: Path) -> None:
    save_pretrained(model_of(), tmp_path)
    for name in ("../other", "/etc/hostname", "a/b", "", "..", "\0"):
        manifest = json.loads((tmp_path / MANIFEST).read_text())
        manifest["files"][name] = {"bytes": 1, "sha256": ""}
        with (
            changed(tmp_path / MANIFEST, json.dumps(manifest).encode()),
            pytest.raises(CheckpointError, match=r"no file name|missing"),
        ):
            from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"more": 1}, r"unknown config fields \['more'\]"),
        ({"format": 2}, "format 2"),
        ({"task": "painting"}, "unknown task 'painting'"),
        ({"task": []}, "not usable"),
        ({"settings": {"answers": 7, "paint": 1}}, "paint"),
        ({"settings": {"answers": -7}}, "not usable"),
        ({"settings": 3}, "not usable"),
        ({"settings": {"answers": 8}}, r"wrong shape: head\.3\.bias \(7,\) not \(8,\)"),
        ({"task": "retrieval", "settings": {}}, "missing: image_head.* unexpected: head"),
        ({"task": "captioning"}, "not usable"),
        ({"backbone": {"depth": 2}}, "missing"),
        ({"backbone": []}, "not usable"),
    ],
)
def test_a_config_of_another_model_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    save_pretrained(model_of(), tmp_path)
    rewrite(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=message):
        from_pretrained(tmp_path)


def test_the_other_variant_is_refused_with_every_tensor_listed(tmp_path: Path) -> None:
    save_pretrained(model_of("backbone", "released"), tmp_path)
    backbone = json.loads((tmp_path / CONFIG).read_text())["backbone"]
    rewrite(tmp_path, backbone=backbone | {"variant": "paper"})
    with pytest.raises(CheckpointError) as error:
        from_pretrained(tmp_path)
    for name in build_backbone(replace(config_of("paper"), fusion_layers=0)).state_dict():
        assert (name in str(error.value)) or ("ffn" in name or "norm" in name or "embed" in name)
    assert "blocks.1.attn.project_out.experts.L.inner_norm.bias" in str(error.value)


@pytest.mark.parametrize("size", ["width", "depth", "vocab_size", "image_size"])
def test_absurd_sizes_take_neither_time_nor_memory(tmp_path: Path, size: str) -> None:
    save_pretrained(model_of("backbone", "released"), tmp_path)
    backbone = json.loads((tmp_path / CONFIG).read_text())["backbone"]
    rewrite(tmp_path, backbone=backbone | {size: 2**30})
    with pytest.raises(CheckpointError):
        from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "3",
        '{"a": NaN}',
        '{"a": -Infinity}',
        '{"a": 1, "a": 2}',
        "[" * 10**5,
        f'{{"a": {"1" * 5000}}}',
        " " * 2**21,
        "\ud800",
    ],
)
def test_json_that_is_not_strict_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / CONFIG).write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(CheckpointError, match=CONFIG):
        read_json(tmp_path / CONFIG)


def test_a_huge_header_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / WEIGHTS
    path.write_bytes((MAX_HEADER_BYTES + 1).to_bytes(8, "little") + b" " * (MAX_HEADER_BYTES + 1))
    with pytest.raises(CheckpointError, match="the limit is 1,048,576"):
        read_safetensors(path)


@contextmanager
def files_at_most(size: int) -> Iterator[None]:
    """No file of this process grows beyond `size` bytes: a full disk without a disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("room", [0, 1, 300, 5_000, "half", "last byte"])
def test_a_full_disk_leaves_the_old_model_and_no_rubbish(tmp_path: Path, room: int | str) -> None:
    old, new = model_of(seed=1), model_of(seed=2)
    save_pretrained(old, tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    full = len(before[WEIGHTS])
    size = {"half": full // 2, "last byte": full - 1}.get(str(room), room)
    assert isinstance(size, int)
    with files_at_most(size), pytest.raises(CheckpointError, match=r"bytes needed, .* free"):
        save_pretrained(new, tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    assert differing(from_pretrained(tmp_path), old) == []
    save_pretrained(new, tmp_path)
    assert differing(from_pretrained(tmp_path), new) == []


def test_a_failed_write_of_one_file_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    write_file(path, b"old")
    with files_at_most(1), pytest.raises(CheckpointError):
        write_file(path, b"new and longer")
    assert [file.name for file in tmp_path.iterdir()] == ["labels.json"]
    assert path.read_bytes() == b"old"
    write_file(path, b"new")
    assert path.read_bytes() == b"new" and path.stat().st_mode & 0o777 == 0o644


def test_a_crash_between_two_renames_is_noticed(tmp_path: Path) -> None:
    save_pretrained(model_of(seed=1), tmp_path / "a")
    save_pretrained(model_of(seed=2), tmp_path / "b")
    (tmp_path / "b" / WEIGHTS).rename(tmp_path / "a" / WEIGHTS)
    with pytest.raises(CheckpointError, match="is not the file that was saved"):
        from_pretrained(tmp_path / "a")


def test_views_and_integers_are_stored_as_they_look(tmp_path: Path) -> None:
    table = torch.arange(12.0).reshape(3, 4)
    tensors = {"turned": table.T, "count": torch.tensor([3])}
    write_folder(tmp_path, {"a": 1}, tensors, {"note": b"hello"}, torch.bfloat16)
    config, loaded = read_folder(tmp_path)
    assert config == {"a": 1} and (tmp_path / "note").read_bytes() == b"hello"
    assert torch.equal(loaded["turned"].float(), table.T) and loaded["count"].dtype == torch.int64
