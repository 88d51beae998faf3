"""The study of pretraining: arms depart from base in what they say, and a cut study is of use."""

import argparse
import importlib.util
from collections import Counter
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from minibeit3.batches import generator_of
from minibeit3.routing import Expert, Route

PATH = Path(__file__).parents[1] / "tools/study_pretraining.py"


@pytest.fixture(scope="module")
def study() -> Any:
    spec = importlib.util.spec_from_file_location("study_pretraining", PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_arm_departs_from_base_and_names_that_say_one_thing_change_one_field(study) -> None:
    base = study.ARMS["base"]
    changed = {
        name: [f.name for f in fields(arm) if getattr(arm, f.name) != getattr(base, f.name)]
        for name, arm in study.ARMS.items()
    }
    assert changed.pop("base") == []
    two = {"raw pixels", "one FFN twice as wide", "pairs alone"}  # the head's size; as named
    assert {name for name, fields in changed.items() if len(fields) != 1} == two


def test_one_ffn_serves_every_token_whatever_the_route_says_and_learns_as_a_whole(study) -> None:
    g = torch.Generator().manual_seed(0)
    model = study.one_ffn(study.NANO, generator_of(0)).eval()
    image, text = torch.randn(2, 3, 32, 32, generator=g), torch.randint(4, 90, (2, 7), generator=g)
    usual = model(image, text)
    routes = [Route(Expert.L, Expert.V)] * study.NANO.depth
    swapped = model(image, text, routes=routes)
    assert torch.equal(usual.image, swapped.image) and torch.equal(usual.text, swapped.text)
    (usual.image.sum() + usual.text.square().sum()).backward()
    still = [n for n, p in model.named_parameters() if p.grad is None]
    assert still == ["image_embed.mask"]  # nothing was hidden
    assert sum("fc1.weight" in name for name, _ in model.named_parameters()) == study.NANO.depth


def test_a_cut_study_has_all_telling_arms_of_a_seed_before_the_next_seed(
    study, monkeypatch, tmp_path
) -> None:
    ran: list[tuple[str, int]] = []
    given = argparse.Namespace(
        arms="all", seeds=3, steps=300, out=tmp_path / "out.json", runs=tmp_path
    )
    monkeypatch.setattr(study, "arguments", lambda: given)
    monkeypatch.setattr(study, "references", lambda runs: {})
    monkeypatch.setattr(study, "keep", lambda found, given: None)

    def run(name: str, steps: int, seed: int, given: argparse.Namespace) -> dict[str, Any]:
        ran.append((name, seed))
        return {"arm": name, "steps": steps, "seed": seed}

    monkeypatch.setattr(study, "one_run", run)
    study.main()
    first = len(study.TELLING)
    assert [seed for _, seed in ran[: 3 * first]] == [0] * first + [1] * first + [2] * first
    assert {name for name, _ in ran[:first]} == set(study.TELLING)
    assert Counter(name for name, _ in ran) == dict.fromkeys(study.ARMS, 3)
