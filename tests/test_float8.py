"""Products in float8: what is rounded, what stays, and that everything is put back."""

import builtins
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from minibeit3 import cli
from minibeit3.bench import contestants, made_batch
from minibeit3.distributed import Team
from minibeit3.float8 import exchange, float8_products
from minibeit3.objective import MaskedDataModel, masked_data_loss
from minibeit3.train import TrainConfig, train
from tests.test_backbones import small
from tests.test_train import source_of

pytest.importorskip("torchao")
CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def task(variant: str = "paper", **changes: Any) -> Any:  # backbone, heads and a batch
    torch.manual_seed(0)
    config = replace(small(variant).config, drop_path=0.0, **changes)
    model = MaskedDataModel(type(small(variant))(config, torch.Generator().manual_seed(0)))
    return model.train(), made_batch(config, 2, 8, "cpu")


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_the_products_of_blocks_are_rounded_and_nothing_else(variant: str) -> None:
    model, _ = task(variant)
    names, layers = list(model.state_dict()), dict(model.named_modules())
    kept = exchange(model, CPU)
    assert list(model.state_dict()) == names
    changed = {name for name, m in model.named_modules() if m is not layers[name]}
    linear = {n for n, m in layers.items() if isinstance(m, nn.Linear) and ".blocks." in n}
    assert changed == set(kept) == linear
    for name in kept:
        assert model.get_submodule(name).weight is layers[name].weight


def test_the_loss_moves_by_the_rounding_and_gradients_reach_all_parameters() -> None:
    model, b = task()
    exact = masked_data_loss(*model(b))[0]
    with float8_products(model, CPU):
        rounded = masked_data_loss(*model(b))[0]
        rounded.backward()
    assert 0 < abs(rounded - exact) / exact < 0.01
    assert all(p.grad is not None for p in model.parameters())
    assert masked_data_loss(*model(b))[0] == exact  # put back


def test_layers_are_put_back_after_an_error_too() -> None:
    model, _ = task()
    before = dict(model.named_modules())
    with pytest.raises(RuntimeError, match="on the way"), float8_products(model, CPU):
        raise RuntimeError("on the way")
    assert dict(model.named_modules()) == before


def test_a_width_that_does_not_fit_is_refused_with_the_fix() -> None:
    model, _ = task(width=24, heads=2, ffn_width=40)
    with pytest.raises(ValueError, match=r"multiples of 16.*another width"):
        exchange(model, CPU)


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> None:
    """No torchao."""
    ordinary = builtins.__import__

    def missing(name: str, *args: Any, **values: Any) -> Any:
        if name.startswith("torchao"):
            raise ImportError(name)
        return ordinary(name, *args, **values)

    monkeypatch.setattr(builtins, "__import__", missing)


@pytest.mark.usefixtures("without")
def test_without_torchao_the_error_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(ImportError, match=r"pip install .*\[float8\]"):
        exchange(task()[0], CPU)
    asked = ["pretrain", str(tmp_path / "run"), "--dtype", "float8", "--steps", "300"]
    told = CliRunner().invoke(cli.app, [*asked, "--device", "cpu", "--data", "glosses,scenes-1"])
    assert told.exit_code == 2 and "pip install" in told.stderr and "Traceback" not in told.stderr


def trained(folder: Path, dtype: str, **values: Any) -> tuple[nn.Module, list[float]]:
    model, b = task()
    plan: Any = {"steps": 3, "batch_size": 2, "save_every": 2, "log_every": 1, "dtype": dtype}
    config = TrainConfig(lr=1e-3, compile=False, **plan)
    source = source_of(config)

    def step(m: nn.Module, _: Any, __: torch.Generator) -> Any:
        loss, metrics = masked_data_loss(*m(b))
        return loss, metrics

    records = train(model, step, source, config, folder, device="cpu", **values)
    return model, [record["loss"] for record in records]


def test_a_run_in_float8_learns_keeps_ordinary_layers_and_resumes(tmp_path: Path) -> None:
    model, losses = trained(tmp_path / "whole", "float8")
    assert not any(type(m).__name__ == "Float8Linear" for m in model.modules())
    _, exact = trained(tmp_path / "exact", "float32")
    assert losses != exact and losses == pytest.approx(exact, rel=0.02)
    trained(tmp_path / "cut", "float8", until=2)
    again, later = trained(tmp_path / "cut", "float8")
    assert later == losses
    for mine, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_fsdp_and_unknown_types_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="use ddp"):
        trained(tmp_path, "float8", team=Team(kind="fsdp"))
    with pytest.raises(ValueError, match=r"'float16'.*choose auto, float32"):
        trained(tmp_path, "float16")


def test_the_benchmark_has_a_float8_step_when_asked(tmp_path: Path) -> None:
    runs = contestants("step", replace(small("paper").config, drop_path=0.0), 1, 8, eight=True)
    assert "minibeit3 fp32, float8" in runs
    runs["minibeit3 fp32, float8"]()
