"""What a configuration is said to cost is what it costs."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from minibeit3 import PRESETS, build_backbone, preset
from minibeit3.attention import attention_pattern
from minibeit3.backbones import Backbone
from minibeit3.config import Variant
from minibeit3.info import (
    Mode,
    forward_flops,
    task_parameters,
    training_flops,
    training_memory,
)

BATCH, WORDS = 2, 20
CASES = [(v, m) for v in ("paper", "released") for m in ("image", "text", "pair")]


def slow_attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """The two matrix products that the fused call hides from the counter."""
    return attention_pattern(q, k, attn_mask) @ v


def tiny(variant: Variant, mode: Mode) -> tuple[Backbone, dict[str, Tensor]]:
    """A model without stochastic depth, and a batch of the mode."""
    config = replace(preset("tiny", variant), drop_path=0.0, depth=3)
    image = torch.rand(BATCH, 3, config.image_size, config.image_size)
    text = torch.randint(4, 100, (BATCH, WORDS))
    given = {"image": {"image": image}, "text": {"text": text}}
    batch = given["image"] | given["text"] if mode == "pair" else given[mode]
    return build_backbone(config), batch


@pytest.mark.parametrize(("variant", "mode"), CASES)
def test_flops_are_those_that_torch_counts(
    variant: Variant, mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = tiny(variant, mode)
    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", slow_attention)
    with FlopCounterMode(display=False) as counter:
        out = model(**batch)
        forward = counter.get_total_flops()
        sum_of(out).backward()
    assert forward == BATCH * forward_flops(model.config, mode, WORDS)
    # The images need no gradient, which is all that the estimate overlooks.
    training = BATCH * training_flops(model.config, mode, WORDS)
    assert 0.98 * training < counter.get_total_flops() <= training


def sum_of(streams: Any) -> Tensor:
    return torch.stack([s.square().sum() for s in streams if s is not None]).sum()


@pytest.mark.parametrize(("variant", "mode"), CASES)
def test_activations_are_within_a_tenth_of_what_autograd_keeps(
    variant: Variant, mode: Mode
) -> None:
    model, batch = tiny(variant, mode)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = model(**batch)
    memory = training_memory(model.config, 0, mode, WORDS, BATCH)
    assert memory["activations"] == pytest.approx(sum(kept.values()), rel=0.1)
    assert any(stream is not None for stream in out)


def test_memory_of_adamw_is_four_numbers_per_parameter() -> None:
    model, batch = tiny("paper", "pair")
    parameters = sum(p.numel() for p in model.parameters())
    memory = training_memory(model.config, parameters)
    optimiser = torch.optim.AdamW(model.parameters())
    for given in ({"image": batch["image"]}, {"text": batch["text"]}, batch):  # every expert
        sum_of(model(**given)).backward()
    optimiser.step()
    states = [v for s in optimiser.state.values() for v in s.values() if v.ndim]
    sizes = [sum(t.nbytes for t in group) for group in (model.parameters(), states)]
    assert [memory["weights"], memory["optimiser"]] == pytest.approx(sizes, rel=0.01)
    assert memory["total"] == sum(v for name, v in memory.items() if name != "total")


def test_giant_pretraining_has_the_paper_s_1_9_billion_parameters() -> None:
    assert round(task_parameters("pretraining", PRESETS["giant"], {}) / 1e9, 1) == 1.9


def test_impossible_questions_are_refused() -> None:
    for mode, length in (("sound", 20), ("text", 0), ("pair", 65)):
        with pytest.raises(ValueError):
            forward_flops(PRESETS["tiny"], mode, length)  # pyright: ignore[reportArgumentType]
