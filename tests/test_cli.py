"""The command line: works on folders and released files, and says clearly what is wrong."""

import argparse
import io
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch
from PIL import Image
from typer.testing import CliRunner

from minibeit3 import (
    build_backbone,
    from_pretrained,
    load_released,
    save_pretrained,
    to_released,
)
from minibeit3.checkpoint import TASKS, Model
from minibeit3.cli import app
from minibeit3.config import BEiT3Config
from minibeit3.data.images import IMAGENET_MEAN, IMAGENET_STD, open_image, to_model
from minibeit3.modes import ImageCaptioner, ImageClassifier, ImageTextRetriever
from minibeit3.text_tokenizer import TextTokenizer

CONFIG = BEiT3Config(
    variant="released",
    depth=2,
    width=64,
    ffn_width=64,
    heads=1,
    image_size=16,
    patch_size=8,
    max_text_length=40,
    vocab_size=400,
)
ARGUMENTS = {"image_classification": {"classes": 3}, "vqa": {"answers": 3}}


@pytest.fixture(scope="module")
def spm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece model in the layout of the released one, smaller than the embedding."""
    path, model = tmp_path_factory.mktemp("spm") / "beit3.spm", io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a red square above two blue circles", "what colour is it?"] * 9),
        model_writer=model,
        vocab_size=60,
        hard_vocab_limit=False,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())
    return path


def model_of(task: str) -> Model:
    generator = torch.Generator().manual_seed(0)
    model = TASKS[task](build_backbone(CONFIG, generator), **ARGUMENTS.get(task, {}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)
        if isinstance(model, ImageCaptioner):
            model.mlm_head.bias[:4] = -99  # it has something to say
    return model.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, spm: Path) -> Callable[[str], Path]:
    """task -> a folder with such a model."""

    def of(task: str) -> Path:
        path = root / task
        if not path.exists():
            save_pretrained(model_of(task), path, TextTokenizer.load(spm))
        return path

    root = tmp_path_factory.mktemp("models")
    return of


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures")
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path / f"{number}.png")
    (path / "notes.txt").write_text("no picture")
    return path


def call(*arguments: object, code: int = 0) -> Any:
    """JSON of a command that must end with `code`."""
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return json.loads(result.stdout) if result.stdout else None


def refusal(*arguments: object) -> str:
    """The one sentence of a command that must fail."""
    result = CliRunner().invoke(app, [*map(str, arguments)])
    assert result.exit_code == 2 and isinstance(result.exception, SystemExit), result.output
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1
    return result.stderr


def test_help_starts_without_torch_in_under_a_second() -> None:
    program = (
        "import sys; from minibeit3.cli import app; app(['--help'], standalone_mode=False); "
        "sys.exit('torch' in sys.modules)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1


@pytest.mark.parametrize("name", ["tiny", "giant"])
def test_info_of_a_preset(name: str) -> None:
    found = call("info", name)
    assert found["flops"]["pair"]["forward"] > found["flops"]["image"]["forward"]
    if name == "giant":
        assert found["parameters"]["vision_experts"] == 692_362_240
        assert found["parameters"]["total"] == 1_948_914_826
    assert call("info", "base", "--variant", "released")["parameters"]["total"] == 276_510_730


def test_info_counts_every_parameter_of_a_saved_model(folder: Callable[[str], Path]) -> None:
    for task in ("vqa", "captioning", "segmentation"):
        arguments = {"segmentation": {"classes": 2}}.get(task, ARGUMENTS.get(task, {}))
        model = TASKS[task](build_backbone(CONFIG), **arguments)
        path = folder(task) if task != "segmentation" else folder("vqa").parent / task
        if task == "segmentation":
            save_pretrained(model, path)
        found = call("info", path)
        assert found["task"] == task
        assert found["parameters"]["total"] == sum(p.numel() for p in model.parameters())


def test_a_released_file_converts_there_and_back(
    tmp_path: Path, spm: Path, folder: Callable[[str], Path]
) -> None:
    original = model_of("captioning")
    torch.save(
        {"model": to_released(original), "args": argparse.Namespace(a=1)}, tmp_path / "a.pth"
    )
    out = tmp_path / "folder"
    report = call("convert", tmp_path / "a.pth", out, "--tokenizer", spm)
    assert report[0]["task"] == "captioning"
    loaded = from_pretrained(out)
    assert isinstance(loaded, ImageCaptioner)
    tokenizer = TextTokenizer.from_pretrained(out)
    assert loaded.mask_id == tokenizer.mask_id < CONFIG.vocab_size - 1
    call("convert", out, tmp_path / "b.pth", "--back")
    again = torch.load(tmp_path / "b.pth", weights_only=True)["model"]
    first = to_released(original)
    assert again.keys() == first.keys()
    assert all(torch.equal(again[name], first[name]) for name in first)
    larger = call("convert", tmp_path / "a.pth", out, "--image-size", 32, "--dtype", "bfloat16")
    assert larger[0]["parameters"] > report[0]["parameters"]
    assert "float64" in refusal("convert", tmp_path / "a.pth", out, "--dtype", "float64")


def test_captions_of_a_folder_are_those_of_the_model(
    tmp_path: Path, spm: Path, folder: Callable[[str], Path], pictures: Path
) -> None:
    rows = call("caption", pictures, "--model", folder("captioning"), "--max-length", 8)
    assert [Path(row["image"]).name for row in rows] == ["0.png", "1.png", "2.png"]
    words = TextTokenizer.load(spm)
    batch = torch.stack([to_model(open_image(pictures / f"{i}.png"), 16) for i in range(3)])

    def said(captioner: Model) -> list[str]:
        assert isinstance(captioner, ImageCaptioner)
        with torch.no_grad():  # rows without a piece are never said
            captioner.mlm_head.bias[words.mask_id + 1 :] = float("-inf")
        return [words.decode(ids) for ids in captioner.generate(batch, max_length=8)]

    original = model_of("captioning")
    state = to_released(original)
    assert [row["caption"] for row in rows] == said(original) and all(said(original))
    torch.save(state, tmp_path / "a.pth")
    direct = ["caption", f"{pictures}/*.png", "--model", tmp_path / "a.pth", "--max-length", 8]
    found = [row["caption"] for row in call(*direct, "--tokenizer", spm)]
    assert found == said(load_released(state, mask_id=words.mask_id))
    assert "give --tokenizer" in refusal(*direct)


def test_a_picture_that_is_none_is_named_and_the_others_are_used(
    tmp_path: Path, folder: Callable[[str], Path], pictures: Path
) -> None:
    bad, bomb = tmp_path / "bad.png", tmp_path / "bomb.png"
    bad.write_bytes(b"no picture")
    Image.new("1", (5000, 5000)).save(bomb)
    good = pictures / "0.png"
    sources = [bad, good, bomb, tmp_path / "absent.png"]
    rows = call("classify", *sources, "-m", folder("image_classification"), "--top", 1, code=2)
    assert ["error" in row for row in rows] == [True, True, True, False] or [
        "error" in row for row in rows
    ] == [True, False, True, True]
    messages = {Path(row["image"]).name: row["error"] for row in rows if "error" in row}
    assert messages.keys() == {"bad.png", "bomb.png", "absent.png"}
    assert "the limit is 16,000,000" in messages["bomb.png"]
    assert "bad.png" in refusal("classify", bad, "-m", folder("image_classification"))


def test_classes_have_the_labels_and_the_pixels_of_imagenet(
    folder: Callable[[str], Path], pictures: Path
) -> None:
    path = folder("image_classification")
    (path / "labels.txt").write_text("cat\ndog\nbird\n")
    rows = call("classify", pictures / "1.png", "--model", path)
    model = model_of("image_classification")
    assert isinstance(model, ImageClassifier)
    pixels = to_model(open_image(pictures / "1.png"), 16, IMAGENET_MEAN, IMAGENET_STD, "center")
    wanted = model(pixels[None]).softmax(dim=1)[0]
    names = [["cat", "dog", "bird"][i] for i in wanted.argsort(descending=True)]
    assert [row["class"] for row in rows] == names
    assert [row["probability"] for row in rows] == pytest.approx(
        wanted.sort(descending=True).values.tolist(), abs=1e-4
    )
    (path / "labels.txt").write_text("cat\ndog\n")
    assert "2 labels for 3 classes" in refusal("classify", pictures, "-m", path)
    (path / "labels.txt").unlink()


def test_answers_have_the_labels_of_the_released_file(
    tmp_path: Path, folder: Callable[[str], Path], pictures: Path
) -> None:
    labels = tmp_path / "answer2label.txt"
    lines = [{"answer": name, "label": i} for i, name in enumerate(["yes", "no", "two"])]
    labels.write_text("".join(json.dumps(line) + "\n" for line in lines))
    arguments = ["vqa", pictures / "0.png", "what colour is it?", "-m", folder("vqa")]
    rows = call(*arguments, "--labels", labels)
    assert {row["answer"] for row in rows} == {"yes", "no", "two"}
    assert [row["score"] for row in rows] == sorted((r["score"] for r in rows), reverse=True)
    assert {row["answer"] for row in call(*arguments)} == {"0", "1", "2"}
    for bad in ('{"answer": "a"}', '{"answer": "a", "label": 5}', "\x00{"):
        labels.write_text(bad)
        assert "label" in refusal(*arguments, "--labels", labels)


@pytest.mark.parametrize(
    ("recipe", "one"), [("scenes-vqa", True), ("easy-vqa", True), ("vqav2", False), (None, False)]
)
def test_answers_share_one_probability_only_where_one_answer_was_right_in_training(
    spm: Path, folder: Callable[[str], Path], pictures: Path, recipe: str | None, one: bool
) -> None:
    path, question = folder("vqa"), "what colour is it?"
    model, words = model_of("vqa"), TextTokenizer.load(spm)
    notes = path / "finetuning.json"
    if recipe is not None:
        notes.write_text(json.dumps({"recipe": recipe}))
    rows = call("vqa", pictures / "0.png", question, "-m", path)
    notes.unlink(missing_ok=True)
    pixels = to_model(open_image(pictures / "0.png"), 16)[None]
    with torch.no_grad():
        logits = model(pixels, *words.batch([question], 40))
    scores = logits.softmax(dim=1) if one else logits.sigmoid()
    found = {row["answer"]: row["score"] for row in rows}
    assert [found[str(i)] for i in range(3)] == pytest.approx(scores[0].tolist(), abs=1e-3)


def test_retrieval_ranks_images_for_a_text_and_texts_for_an_image(
    spm: Path, folder: Callable[[str], Path], pictures: Path
) -> None:
    path, texts = folder("retrieval"), ["a red square", "two blue circles"]
    model, words = model_of("retrieval"), TextTokenizer.load(spm)
    assert isinstance(model, ImageTextRetriever)
    batch = torch.stack([to_model(open_image(pictures / f"{i}.png"), 16) for i in range(3)])
    with torch.no_grad():
        scores = model.embed_text(*words.batch(texts, 40)) @ model.embed_image(batch).T
    rows = call("retrieve", pictures, "-t", texts[0], "-m", path, "--top", 2)
    order = [f"{i}.png" for i in scores[0].argsort(descending=True)[:2].tolist()]
    assert [Path(row["image"]).name for row in rows] == order
    rows = call("retrieve", pictures / "1.png", "-t", texts[0], "-t", texts[1], "-m", path)
    assert [row["text"] for row in rows] == [
        texts[i] for i in scores[:, 1].argsort(descending=True)
    ]
    assert rows[0]["similarity"] == pytest.approx(float(scores[:, 1].max()), abs=1e-4)


def test_vectors_are_written_in_the_order_that_is_told(
    tmp_path: Path, folder: Callable[[str], Path], pictures: Path
) -> None:
    rows = call(
        "embed", pictures, "-t", "a red square", "-m", folder("retrieval"), "-o", tmp_path / "v.npy"
    )
    vectors = np.load(tmp_path / "v.npy", allow_pickle=False)
    assert vectors.shape == (4, 64) and len(rows) == 4 and rows[3]["source"] == "a red square"
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1)
    call("embed", pictures, "-m", folder("vqa"), "-o", tmp_path / "v.json")
    listed = json.loads((tmp_path / "v.json").read_text())
    assert [len(entry["vector"]) for entry in listed] == [64] * 3
    wrong = ["embed", pictures, "-m", folder("vqa"), "-o", tmp_path / "v.txt"]
    assert ".npy or .json" in refusal(*wrong)


def test_doctor_says_what_is_there() -> None:
    result = CliRunner().invoke(app, ["doctor", "--json"])
    rows = {row["what"]: row for row in json.loads(result.stdout)}
    assert rows["torch"]["value"].startswith(torch.__version__)
    assert result.exit_code == int(not all(row["fine"] for row in rows.values()))


class Payload:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.canary),)


def test_bad_models_end_with_one_sentence(
    tmp_path: Path, folder: Callable[[str], Path], pictures: Path
) -> None:
    picture, canary = pictures / "0.png", tmp_path / "canary"
    torch.save({"model": Payload(canary)}, tmp_path / "evil.pth")
    assert "nothing ran" in refusal("caption", picture, "-m", tmp_path / "evil.pth")
    assert "nothing ran" in refusal("convert", tmp_path / "evil.pth", tmp_path / "out")
    assert not canary.exists() and not (tmp_path / "out").exists()
    torch.save({"model": to_released(model_of("vqa"))}, tmp_path / "cut.pth")
    content = (tmp_path / "cut.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(content[: len(content) // 2])
    assert "cut.pth" in refusal("convert", tmp_path / "cut.pth", tmp_path / "out")
    assert "absent" in refusal("caption", picture, "-m", tmp_path / "absent")
    assert "holds a vqa model" in refusal("caption", picture, "-m", folder("vqa"))
    assert "no preset" in refusal("info", "enormous")
    assert "variant 'other'" in refusal("info", "tiny", "--variant", "other")
    assert "--device tpu" in refusal("caption", picture, "-m", folder("vqa"), "--device", "tpu")
    assert "no images" in refusal("caption", tmp_path / "*.jpg", "-m", folder("captioning"))
    few = ["caption", picture, "-m", folder("captioning")]
    assert "max_length 3" in refusal(*few, "--max-length", 3)
    paper = tmp_path / "paper"
    save_pretrained(build_backbone(replace(CONFIG, variant="paper", fusion_layers=1)), paper)
    assert "variant must be 'released'" in refusal("convert", paper, tmp_path / "b.pth", "--back")
    torch.save({f"weight{i}": torch.zeros(1) for i in range(999)}, tmp_path / "other.pth")
    assert len(refusal("convert", tmp_path / "other.pth", tmp_path / "out")) < 2500


def test_text_of_others_cannot_steer_the_terminal(
    folder: Callable[[str], Path], pictures: Path
) -> None:
    path = folder("image_classification")
    hostile = "\x1b]0;owned\x07 [bold red]x[/] \x9b2J"
    (path / "labels.json").write_text(json.dumps([hostile, "b", "c"]))
    result = CliRunner().invoke(app, ["classify", str(pictures / "0.png"), "-m", str(path)])
    (path / "labels.json").unlink()
    assert result.exit_code == 0 and "[bold red]x[/]" in result.output.replace("\n", "")
    assert not {"\x1b]", "\x07", "\x9b"} & set(result.output)
    assert "\x1b]0" not in result.output
