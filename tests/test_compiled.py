"""What torch.compile sees: blocks without a break, so that each layer is not called from Python."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from minibeit3 import build_backbone
from minibeit3.bench import FixedPlaces, made_batch
from minibeit3.objective import MaskedDataModel
from tests.test_backbones import small

pytestmark = [
    pytest.mark.slow,
    # torch's own, at a break between two graphs
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:The .grad:UserWarning"),
]


def task(variant: str, drop_path: float) -> Any:  # backbone, heads and a batch
    torch.manual_seed(0)
    torch._dynamo.reset()
    config = replace(small(variant).config, drop_path=drop_path)
    model = MaskedDataModel(build_backbone(config, torch.Generator().manual_seed(0)))
    return model.train(), made_batch(config, 2, 8, "cpu")


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_a_step_at_fixed_places_is_one_graph_with_the_same_loss(variant: str) -> None:
    model, b = task(variant, 0.0)
    fixed = FixedPlaces(model, b)
    whole: Any = torch.compile(fixed, fullgraph=True, backend="eager")
    torch.testing.assert_close(whole(), fixed())


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_in_a_training_step_all_blocks_are_one_graph(variant: str) -> None:
    model, b = task(variant, 0.1)
    real = torch.ones_like(b.text, dtype=torch.bool)
    real[0, -2:] = False
    found = torch._dynamo.explain(model)(b._replace(text_real=real), torch.Generator())
    calls = [
        sum(node.target is F.scaled_dot_product_attention for node in graph.graph.nodes)
        for graph in found.graphs
    ]
    kinds = 3  # images, pairs and texts attend by themselves
    assert [n for n in calls if n] == [kinds * model.backbone.config.depth]
