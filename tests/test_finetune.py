"""The fine-tuning frame: starts, controls, exact resume, saved runs that evaluate alike."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from minibeit3 import PRESETS, from_pretrained
from minibeit3.backbones import build_backbone
from minibeit3.batches import generator_of
from minibeit3.checkpoint import save_pretrained
from minibeit3.finetune import Job, evaluate_saved, finetune, groups_of, prepare
from minibeit3.objective import MaskedDataModel
from minibeit3.recipe import Setup, by_kind, first, need
from minibeit3.recipes import RECIPES, open_recipe
from minibeit3.storage import CheckpointError
from minibeit3.text_tokenizer import TextTokenizer
from minibeit3.train import TrainConfig

CONFIG = replace(PRESETS["tiny"], depth=2, width=32, ffn_width=32, heads=2, fusion_layers=1)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model of nano size, as pretraining leaves it."""
    folder = tmp_path_factory.mktemp("start")
    model = MaskedDataModel(build_backbone(CONFIG, generator_of(7)))
    save_pretrained(model, folder / "model", TextTokenizer.lab())
    return folder


def plan(steps: int = 4, seed: int = 0) -> TrainConfig:
    return TrainConfig(
        steps=steps, batch_size=8, lr=3e-3, dtype="float32", log_every=1, save_every=2, seed=seed
    )


def setup(**changes: Any) -> Setup:
    return Setup(config=CONFIG, tokenizer=TextTokenizer.lab(), **changes)


def test_a_job_starts_from_the_given_backbone_with_a_head_drawn_by_the_seed(start: Path) -> None:
    saved = from_pretrained(start / "model")
    assert isinstance(saved, MaskedDataModel)
    one, again, other = (prepare("scenes-classes", start, seed=s) for s in (0, 0, 1))
    for name, value in saved.backbone.state_dict().items():
        assert torch.equal(value, one.model.backbone.state_dict()[name]), name
    heads = [job.model.head.weight for job in (one, again, other)]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])
    assert one.model.backbone.config.drop_path == one.recipe.drop_path


def test_a_captioner_goes_on_with_the_pretrained_head_for_words(start: Path) -> None:
    saved = from_pretrained(start / "model")
    assert isinstance(saved, MaskedDataModel)
    heads = [prepare("scenes-captions", s).model.mlm_head for s in (start, None)]
    assert torch.equal(heads[0].weight, saved.mlm_head.weight)
    assert torch.equal(heads[0].bias, saved.mlm_head.bias)
    assert heads[1].weight.shape != heads[0].weight.shape  # from scratch: another size, fresh


def test_from_scratch_nothing_of_a_start_is_used(start: Path) -> None:
    job = prepare("scenes-vqa", None)
    assert job.model.backbone.config.depth == PRESETS["tiny"].depth
    assert job.notes["start"] is None


def test_a_stopped_run_ends_with_the_same_bits_and_the_saved_model_scores_alike(
    start: Path, tmp_path: Path
) -> None:
    whole = prepare("scenes-vqa", start)
    finetune(whole, tmp_path / "whole", plan())
    finetune(prepare("scenes-vqa", start), tmp_path / "cut", plan(), until=1)
    assert not (tmp_path / "cut/model").exists()
    again, records = finetune(prepare("scenes-vqa", start), tmp_path / "cut", plan())
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    with torch.inference_mode():
        figures = whole.recipe.evaluate(whole.model, 20)
    job, saved = evaluate_saved(tmp_path / "cut", limit=20)
    assert saved == figures and job.notes["plan"]["steps"] == 4  # pyright: ignore[reportIndexIssue]


def test_a_blind_job_sees_nothing_of_that_modality_in_training_and_evaluation(
    start: Path, tmp_path: Path
) -> None:
    for blind, same in (("image", "image"), ("text", "text")):
        job = prepare("scenes-vqa", start, blind=blind)  # pyright: ignore[reportArgumentType]
        batch = job.recipe.collate([job.recipe.samples[i] for i in (0, 2, 4)], generator_of(0))
        seen = getattr(batch, same)
        assert (seen == seen[:1]).all()
        other = getattr(batch, "image" if same == "text" else "text")
        assert not (other == other[:1]).all()
    finetune(job, tmp_path, plan(steps=1))
    found, figures = evaluate_saved(tmp_path, limit=20)
    assert found.setup.blind == "text" and figures["pairs"] == 0  # twins look apart to none


def test_few_labels_are_drawn_by_the_seed_and_never_more_than_there_are(start: Path) -> None:
    jobs = [prepare("scenes-vqa", start, labels=5, seed=seed) for seed in (0, 0, 1)]
    keys = [[sample.key for sample in list(job.recipe.samples)] for job in jobs]
    assert len(set(keys[0])) == 5 and keys[0] == keys[1] != keys[2]
    for labels in (0, 10**9):
        with pytest.raises(ValueError, match=f"^{labels} training samples asked for"):
            prepare("scenes-vqa", start, labels=labels)


@pytest.mark.parametrize("muon", [True, False])
def test_with_muon_a_blocks_matrix_moves_about_as_far_in_each_of_its_first_directions(
    start: Path, tmp_path: Path, muon: bool
) -> None:
    job = prepare("scenes-vqa", start)
    weight = job.model.backbone.blocks[1].attn.out.weight
    before = weight.detach().clone()
    finetune(job, tmp_path, plan(), muon=muon, until=1)
    lengths = torch.linalg.svdvals(weight.detach() - before)
    assert (lengths[0] < 2 * lengths[2]) == muon  # AdamW's step leans to one


def test_the_head_learns_faster_than_the_rest_by_its_factor(start: Path) -> None:
    model = prepare("scenes-classes", start).model
    scales = {
        id(p): group["scale"]
        for group in groups_of(model, replace(plan(), layer_decay=0.5), head_lr=20)
        for p in group["params"]
    }
    assert len(scales) == len(list(model.parameters()))
    assert scales[id(model.head.weight)] == 20
    assert scales[id(model.norm.weight)] == 1
    assert scales[id(model.backbone.blocks[1].attn.qkv.weight)] == 0.5


@pytest.mark.parametrize("name", ["scenes-segmentation", "scenes-detection"])
def test_everything_that_maps_are_drawn_by_learns_faster(start: Path, name: str) -> None:
    job = prepare(name, start)
    fast = {
        id(p)
        for group in groups_of(job.model, job.plan(), job.recipe.head_lr)
        for p in group["params"]
        if group["scale"] == 10
    }
    fresh = {n for n, p in job.model.named_parameters() if not n.startswith("backbone.")}
    assert fresh == {n for n, p in job.model.named_parameters() if id(p) in fast}


def test_a_shorter_plan_keeps_the_share_of_the_warm_up(start: Path) -> None:
    job: Job = prepare("scenes-vqa", start, seed=3)
    default, short = job.recipe.plan, job.plan(steps=100, lr=1e-4)
    assert short.warmup / 100 == default.warmup / default.steps
    assert (short.lr, short.seed, short.batch_size) == (1e-4, 3, default.batch_size)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"holdout": "none such"}, "no holdout 'none such'|unknown holdout"),
        ({"holdout": "style"}, "holdout 'style'"),
        ({"split": "train"}, "no split 'train'"),
    ],
)
def test_controls_that_a_recipe_lacks_are_refused(changes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_recipe("scenes-vqa", setup(**changes))


def test_unknown_names_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown recipe 'vqa': choose from"):
        open_recipe("vqa", setup())
    with pytest.raises(CheckpointError, match="holds no saved model"):
        prepare("scenes-vqa", tmp_path)
    with pytest.raises(CheckpointError, match="holds no finetuning"):
        evaluate_saved(tmp_path)
    assert all(":" in place for place in RECIPES.values())


def test_other_classes_than_the_head_has_are_refused(start: Path, tmp_path: Path) -> None:
    finetune(prepare("scenes-vqa", start), tmp_path, plan(steps=1))
    (tmp_path / "model/labels.txt").write_text("yes\nno\n")
    with pytest.raises(ValueError, match="trained for 2 classes"):
        evaluate_saved(tmp_path, limit=4)


def test_pictures_of_several_sizes_make_one_batch_and_a_missing_one_is_named() -> None:
    small, large = torch.zeros(3, 8, 8).byte(), torch.zeros(3, 90, 70).byte()
    assert setup().pixels([small, large]).shape == (2, 3, 64, 64)
    with pytest.raises(ValueError, match="1 of 2 samples have no picture"):
        setup().pixels([small, None])


def test_figures_by_kind_and_even_choices() -> None:
    assert by_kind("a", [1, 0, 1], ["x", "y", "x"]) == {"a": 2 / 3, "a/x": 1.0, "a/y": 0.0}
    assert first(range(10), 4) == [0, 2, 5, 7] and first(range(3), 9) == [0, 1, 2]
    for empty in (lambda: first([], 3), lambda: need([], "texts", "coco")):
        with pytest.raises(ValueError, match="nothing"):
            empty()
