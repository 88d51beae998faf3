"""Everything that trains keeps to the device it is given, shown without a GPU (`second_device`)."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from second_device import Far, second_device

from minibeit3.backbones import preset
from minibeit3.data.paths import data_root
from minibeit3.finetune import evaluate_saved, finetune, prepare
from minibeit3.pretrain import pretrain
from minibeit3.recipes import IMAGE_SIZES, RECIPES
from minibeit3.train import TrainConfig
from minibeit3.visual_codes import open_codes

PACKAGED = {"fashion-mnist", "easy-vqa"}  # data of the user; their code is that of other recipes
OURS = sorted(RECIPES.keys() - IMAGE_SIZES.keys() - PACKAGED)
FAST = {"scenes-segmentation", "scenes-vqa"}


def test_tensors_of_two_devices_do_not_meet() -> None:
    with second_device():
        far, near = torch.ones(3, device="cuda"), torch.ones(3)
        assert isinstance(far.to("cuda:0"), Far) and type(far.cpu()) is torch.Tensor
        assert (far * 2 + torch.tensor(1.0)).tolist() == [3.0, 3.0, 3.0]
        with pytest.raises(RuntimeError, match="tensors on cpu and on"):
            torch.add(far, near)
        with pytest.raises(RuntimeError, match="tensors on cpu and on"):
            torch.nn.Linear(3, 1)(far)
        with pytest.raises(RuntimeError, match="generator of the CPU"):
            far.normal_(generator=torch.Generator())
        with pytest.raises((RuntimeError, TypeError)):
            far.numpy()


def test_gradients_come_back_from_the_second_device() -> None:
    with second_device():
        weight = torch.ones(3, requires_grad=True)
        (weight.to("cuda") * torch.arange(3.0, device="cuda")).sum().backward()
    assert weight.grad is not None and weight.grad.tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in OURS]
)
def test_a_recipe_trains_and_is_evaluated_on_its_device(name: str, tmp_path: Path) -> None:
    job = prepare(name, None, size="nano")
    plan = replace(job.plan(steps=1, batch_size=4), save_every=0, compile=False)
    with second_device():
        model, records = finetune(job, tmp_path, plan, device="cuda")
        assert all(isinstance(p.data, Far) for p in model.parameters())
        assert all(value >= 0 for value in job.recipe.evaluate(model, 4).values())
    assert records[-1]["loss"] > 0


def test_pretraining_stays_on_its_device_with_codes_and_muon(tmp_path: Path) -> None:
    plan = TrainConfig(steps=1, batch_size=6, lr=1e-3, save_every=0, compile=False)
    with second_device():
        codes = open_codes(data_root() / "checkpoints" / "pixels").to("cuda").tokens
        data = ["scenes-1", "glosses"]
        model, records = pretrain(
            preset("nano"), data, codes, plan, tmp_path, muon=True, device="cuda"
        )
        assert all(isinstance(p.data, Far) for p in model.parameters())
    assert records[-1]["loss"] > 0


def test_a_model_trained_on_the_second_device_is_read_and_judged_as_on_the_first(
    tmp_path: Path,
) -> None:
    job = prepare("scenes-classes", None, size="nano")
    plan = replace(job.plan(steps=1, batch_size=4), save_every=0, compile=False)
    with second_device():
        finetune(job, tmp_path, plan, device="cuda")
        far = evaluate_saved(tmp_path, limit=20, device="cuda")[1]
    assert far == evaluate_saved(tmp_path, limit=20, device="cpu")[1]
