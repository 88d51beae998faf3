"""The benchmarks' recipes on the format fixtures: dry runs, server files, the released numbers."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from second_device import Far, second_device

from minibeit3.backbones import build_backbone
from minibeit3.batches import generator_of
from minibeit3.checkpoint import save_pretrained
from minibeit3.config import BEiT3Config
from minibeit3.data.paths import data_root
from minibeit3.finetune import Job, evaluate_saved, finetune, prepare
from minibeit3.optimiser import released_no_weight_decay
from minibeit3.recipes.released import mixed, plan_of
from minibeit3.text_tokenizer import TextTokenizer

CONFIG = BEiT3Config(
    variant="released", depth=2, width=32, ffn_width=32, heads=2, image_size=32, patch_size=8,
    max_text_length=64, vocab_size=4000, visual_vocab_size=64,
)  # fmt: skip
RECIPES = {
    "coco-captions": ("coco", "test"),
    "vqav2": ("vqav2", "test"),
    "nlvr2": ("nlvr2", "test"),
    "flickr30k-retrieval": ("flickr30k", "test"),
    "imagenet": ("imagenet", "test"),
    "ade20k": ("ade20k", "test"),
}


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A released backbone of nano size in a folder."""
    folder = tmp_path_factory.mktemp("released")
    save_pretrained(build_backbone(CONFIG, generator_of(7)), folder, TextTokenizer.lab())
    return folder


def job_of(name: str, start: Path) -> Job:
    return prepare(name, start, data=data_root() / "fixtures" / RECIPES[name][0], image_size=64)


@pytest.mark.parametrize("name", RECIPES)
def test_each_benchmark_trains_saves_and_evaluates_on_its_own_layout(
    name: str, start: Path, tmp_path: Path
) -> None:
    job = job_of(name, start)
    plan = replace(job.plan(steps=2, batch_size=3), warmup=0, dtype="float32", lr=1e-3)
    _, records = finetune(job, tmp_path, plan)
    assert records[-1]["step"] == 2 and records[-1]["loss"] > 0
    assert job.model.backbone.config.image_size == 64
    data = data_root() / "fixtures" / RECIPES[name][0]
    _, figures = evaluate_saved(tmp_path, limit=4, data=data)
    assert figures and all(0 <= value <= 10 for value in figures.values())


@pytest.mark.parametrize("name", RECIPES)
def test_each_benchmark_stays_on_the_device_it_is_given(
    name: str, start: Path, tmp_path: Path
) -> None:
    job = job_of(name, start)
    plan = replace(job.plan(steps=1, batch_size=3), save_every=0, dtype="float32", compile=False)
    with second_device():
        model, _ = finetune(job, tmp_path, plan, device="cuda")
        assert all(isinstance(p.data, Far) for p in model.parameters())
        assert job.recipe.evaluate(model, 4)


def export(name: str, start: Path, path: Path) -> str:
    job = job_of(name, start)
    assert job.recipe.export is not None
    with torch.inference_mode():
        return job.recipe.export(job.model.eval(), path).read_text()


def test_server_files_have_an_entry_for_every_item_in_the_servers_words(
    start: Path, tmp_path: Path
) -> None:
    fixtures = data_root() / "fixtures"
    captions = json.loads(export("coco-captions", start, tmp_path / "captions.json"))
    table = json.loads((fixtures / "coco/dataset_coco.json").read_text())["images"]
    assert {c["image_id"] for c in captions} == {i["cocoid"] for i in table if i["split"] == "test"}
    assert all(
        isinstance(c["caption"], str) and c.keys() == {"image_id", "caption"} for c in captions
    )
    answers = json.loads(export("vqav2", start, tmp_path / "vqa.json"))
    name = "vqav2/vqa/v2_OpenEnded_mscoco_test2015_questions.json"
    questions = json.loads((fixtures / name).read_text())["questions"]
    assert {a["question_id"] for a in answers} == {q["question_id"] for q in questions}
    assert {a["answer"] for a in answers} <= {"yes", "no", "1"}
    lines = dict(
        line.split(",") for line in export("nlvr2", start, tmp_path / "nlvr2.csv").splitlines()
    )
    told = (fixtures / "nlvr2/nlvr/nlvr2/data/test1.json").read_text().splitlines()
    assert lines.keys() == {json.loads(line)["identifier"] for line in told}
    assert set(lines.values()) <= {"True", "False"}


def test_plans_are_the_released_ones(start: Path) -> None:
    vqa, nlvr = job_of("vqav2", start), job_of("nlvr2", start)
    assert (vqa.recipe.plan.lr, vqa.recipe.head_lr, vqa.recipe.plan.layer_decay) == (3e-5, 20, 1)
    assert vqa.recipe.plan.weight_decay == 0.01 and vqa.recipe.plan.betas == (0.9, 0.98)
    assert (nlvr.recipe.plan.lr, nlvr.recipe.plan.weight_decay) == (7e-4, 0.2)
    assert nlvr.recipe.undecayed is released_no_weight_decay
    assert not vqa.model.backbone.config.final_norm and nlvr.model.backbone.config.final_norm
    base, large = nlvr.setup, replace(nlvr.setup, config=replace(CONFIG, depth=24))
    for setup, lr in ((base, 4e-5), (large, 8e-6)):
        plan = plan_of(setup, 566_747, 256, 10, 1, (4e-5, 8e-6), (1.0, 1.0))
        assert (plan.steps, plan.warmup, plan.lr) == (22_130, 2213, lr)


def test_the_captioning_loss_knows_its_iteration(start: Path) -> None:
    recipe = job_of("coco-captions", start).recipe
    source: Any = recipe.source(recipe.samples, 2, 0, recipe.collate)
    assert source.batch(12_001).iteration == 12_001 and len(source.names(0)) == 2


def test_mixed_labels_are_as_soft_as_the_picture_is_mixed() -> None:
    image = torch.stack([torch.zeros(3, 16, 16), torch.ones(3, 16, 16)])
    seen = set()
    for seed in range(20):
        blended, target = mixed(image, torch.tensor([0, 1]), 2, torch.Generator().manual_seed(seed))
        ones = blended.mean(dim=(1, 2, 3))  # share of the second picture
        assert torch.allclose(target[:, 1], 0.9 * ones + 0.05, atol=1e-5)
        assert torch.allclose(target.sum(dim=1), torch.ones(2))
        seen.add(bool(((blended > 0) & (blended < 1)).any()))
    assert seen == {True, False}  # mixup and cutmix


def test_data_of_other_layouts_are_refused(start: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="this recipe reads your data"):
        prepare("coco-captions", start)
    with pytest.raises(ValueError, match="cannot read"):
        prepare("coco-captions", start, data=tmp_path)
    silent = {"images": [{"split": "train", "filepath": "x", "filename": "a.jpg", "cocoid": 1,
                          "sentences": []}]}  # fmt: skip
    (tmp_path / "x").mkdir()
    (tmp_path / "x/a.jpg").write_bytes(b"")
    (tmp_path / "dataset_coco.json").write_text(json.dumps(silent))
    with pytest.raises(ValueError, match="1 of 1 samples have no texts"):
        prepare("coco-captions", start, data=tmp_path)
