"""Properties of every task, with both backbones."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from einops import rearrange
from torch import Tensor, nn

from minibeit3.backbones import Backbone, build_backbone
from minibeit3.config import BEiT3Config
from minibeit3.modes import (
    ClozeAnswerer,
    ClozeReasoner,
    ImageCaptioner,
    ImageClassifier,
    ImageTextRetriever,
    SemanticSegmenter,
    TextClassifier,
    TokenTagger,
    VisualQuestionAnswerer,
    VisualReasoner,
)

PAPER = BEiT3Config(
    depth=3, width=24, ffn_width=48, heads=2, fusion_layers=1, image_size=16, patch_size=4,
    max_text_length=12, vocab_size=50,
)  # fmt: skip
CONFIGS = {"paper": PAPER, "released": replace(PAPER, variant="released", fusion_layers=0)}
B, T = 2, 7
IMAGE, IMAGE_B = torch.randn(2, B, 3, 16, 16, generator=torch.Generator().manual_seed(0))
TEXT = torch.randint(3, 49, (B, T), generator=torch.Generator().manual_seed(1))
REAL = torch.tensor([[True] * 7, [True] * 4 + [False] * 3])

Call = Callable[[nn.Module, Tensor, Tensor], Tensor]
TASKS: dict[str, tuple[Callable[[Backbone, torch.Generator], nn.Module], Call, tuple[int, ...]]] = {
    "image": (lambda b, g: ImageClassifier(b, 5, g), lambda m, t, r: m(IMAGE), (B, 5)),
    "segment": (lambda b, g: SemanticSegmenter(b, 5, g), lambda m, t, r: m(IMAGE), (B, 5, 16, 16)),
    "text": (lambda b, g: TextClassifier(b, 5, g), lambda m, t, r: m(t, r), (B, 5)),
    "tags": (lambda b, g: TokenTagger(b, 5, g), lambda m, t, r: m(t, r)[:, :4], (B, 4, 5)),
    "vqa": (lambda b, g: VisualQuestionAnswerer(b, 5, g), lambda m, t, r: m(IMAGE, t, r), (B, 5)),
    "cloze": (lambda b, g: ClozeAnswerer(b, 5, 4, 2, g), lambda m, t, r: m(IMAGE, t, r), (B, 5)),
    "reason": (lambda b, g: VisualReasoner(b, g), lambda m, t, r: m(IMAGE, IMAGE_B, t, r), (B, 2)),
    "reason cloze": (
        lambda b, g: ClozeReasoner(b, 4, 2, g),
        lambda m, t, r: m(IMAGE, IMAGE_B, t, r),
        (B, 2),
    ),
    "retrieve": (lambda b, g: ImageTextRetriever(b, g), lambda m, t, r: m(IMAGE, t, r), (B, B)),
    "caption": (
        lambda b, g: ImageCaptioner(b, generator=g),
        lambda m, t, r: m(IMAGE, t, r)[:, :4],
        (B, 4, 50),
    ),
}
TEXT_TASKS = [name for name in TASKS if name not in ("image", "segment")]
PAIR_TASKS = ["vqa", "cloze", "reason", "reason cloze", "caption"]


def build(task: str, variant: str, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    backbone = build_backbone(CONFIGS[variant], generator)
    return TASKS[task][0](backbone, generator).eval()


def call(task: str, model: nn.Module, text: Tensor = TEXT, real: Tensor = REAL) -> Tensor:
    return TASKS[task][1](model, text, real)


def enlarge(head: nn.Module) -> None:
    """A head that starts at a thousandth says nothing that a test could see."""
    for weight in head.parameters():
        weight.data.mul_(1000 if weight.ndim == 2 else 1)


both_variants = pytest.mark.parametrize("variant", CONFIGS)
all_tasks = pytest.mark.parametrize("task", TASKS)


@both_variants
@all_tasks
def test_a_task_returns_finite_logits_of_its_shape(task: str, variant: str) -> None:
    out = call(task, build(task, variant))
    assert out.shape == TASKS[task][2]
    assert out.isfinite().all()


@all_tasks
def test_the_seed_decides_every_initial_value(task: str) -> None:
    first, same, other = (build(task, "paper", seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[k], same[k]) for k in first)
    random = [k for k in first if "weight" in k and "norm" not in k and first[k].std() > 0]
    assert not any(torch.equal(first[k], other[k]) for k in random)


@both_variants
@all_tasks
def test_json_settings_and_weights_rebuild_the_task(task: str, variant: str) -> None:
    model = build(task, variant)
    settings = json.loads(json.dumps(model.settings))
    copy = type(model)(build_backbone(CONFIGS[variant]), **settings).eval()
    copy.load_state_dict(model.state_dict())
    assert torch.equal(call(task, model), call(task, copy))


@both_variants
@pytest.mark.parametrize("task", TEXT_TASKS)
def test_padded_words_change_nothing(task: str, variant: str) -> None:
    model = build(task, variant)
    other = torch.where(REAL, TEXT, 3)
    longer = torch.cat([TEXT, torch.ones(B, 3, dtype=torch.long)], dim=1)
    longer_real = torch.cat([REAL, torch.zeros(B, 3, dtype=torch.bool)], dim=1)
    expected = call(task, model)
    torch.testing.assert_close(call(task, model, other), expected)
    torch.testing.assert_close(call(task, model, longer, longer_real), expected)


@both_variants
@pytest.mark.parametrize("task", TEXT_TASKS)
def test_a_text_of_padding_alone_is_finite(task: str, variant: str) -> None:
    model = build(task, variant).train()
    out = call(task, model, real=torch.zeros_like(REAL))
    out.sum().backward()
    assert out.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@both_variants
@pytest.mark.parametrize("task", PAIR_TASKS)
def test_a_pair_task_depends_on_image_and_text(task: str, variant: str) -> None:
    model = build(task, variant)
    if task == "reason":
        enlarge(model.head)
    expected = call(task, model)
    assert not torch.allclose(call(task, model, text=TEXT.flip(0)), expected, atol=1e-6)
    model.backbone.image_embed.patch.weight.data.neg_()
    assert not torch.allclose(call(task, model), expected, atol=1e-6)


EXPERTS = {"image": "V", "segment": "V", "text": "L", "tags": "L", "retrieve": "V L"}


@all_tasks
def test_a_mode_trains_its_experts_and_no_other(task: str) -> None:
    model = build(task, "paper")
    call(task, model).square().sum().backward()
    trained = {
        name.split(".experts.")[1].split(".")[0]
        for name, parameter in model.named_parameters()
        if ".experts." in name and parameter.grad is not None
    }
    assert trained == set(EXPERTS.get(task, "V L VL").split())


@pytest.mark.parametrize("task", TASKS)
def test_every_part_of_a_head_learns(task: str) -> None:
    model = build(task, "paper")
    model.backbone.requires_grad_(False)
    call(task, model).square().sum().backward()
    still = [
        n
        for n, p in model.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.any())
    ]
    assert still == []


@both_variants
def test_reasoner_pairs_the_statement_with_each_image(variant: str) -> None:
    model = build("reason", variant)
    assert isinstance(model, VisualReasoner)
    enlarge(model.head)
    pairs = [model.backbone(image, TEXT, REAL) for image in (IMAGE, IMAGE_B)]
    read = torch.cat([slot for x in pairs for slot in (x.image[:, 0], x.text[:, 0])], dim=-1)
    torch.testing.assert_close(call("reason", model), model.head(read))


def test_released_head_scales_are_kept() -> None:
    image, reason, vqa = (build(task, "paper") for task in ("image", "reason", "vqa"))
    small = [image.head.weight, reason.head[1].weight, reason.head[4].weight]
    assert all(0.5e-5 < weight.std() < 2e-5 for weight in small)
    assert all(0.5e-2 < vqa.head[i].weight.std() < 2e-2 for i in (0, 3))


@both_variants
def test_retrieval_vectors_are_unit_and_separate(variant: str) -> None:
    model = build("retrieve", variant)
    assert isinstance(model, ImageTextRetriever)
    image, text = model.embed_image(IMAGE), model.embed_text(TEXT, REAL)
    for vectors in (image, text):
        torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(B))
    expected = model.logit_scale.exp() * image @ text.T
    torch.testing.assert_close(model.classify(IMAGE, text), expected)
    rows = torch.arange(B)
    losses = [nn.functional.cross_entropy(logits, rows) for logits in (expected, expected.T)]
    torch.testing.assert_close(model.loss(IMAGE, TEXT, REAL), sum(losses) / 2)


@both_variants
def test_segmenter_levels_are_the_backbones_layers(variant: str) -> None:
    model = build("segment", variant)
    assert isinstance(model, SemanticSegmenter)
    levels, blocks = model.levels(IMAGE), []
    hooks = [
        block.register_forward_hook(lambda module, call, out: blocks.append(out.image[:, 1:]))
        for block in model.backbone.blocks
    ]
    model.backbone(IMAGE)
    for hook in hooks:
        hook.remove()
    assert len(levels) == len(model.layers)
    for layer, level in zip(model.layers, levels, strict=True):
        torch.testing.assert_close(level, blocks[layer - 1])


def test_segmenter_draws_each_cell_of_a_patch_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("segment", "paper")
    assert isinstance(model, SemanticSegmenter)
    weight = model.head.grow.weight.data.zero_()
    rearrange(weight, "(p q D) levels -> p q D levels", p=4, q=4)[0, 3] = 1  # upper right cell
    for conv in (model.head.smooth, model.head.classes):
        conv.weight.data.zero_()
        conv.weight.data[:, :, conv.kernel_size[0] // 2, conv.kernel_size[1] // 2] = 1
    patches = torch.zeros(1, 16, 24)
    patches[0, 1 * 4 + 2] = 1  # row 1, column 2
    monkeypatch.setattr(model, "levels", lambda image: [patches] * len(model.layers))
    model.head.norms = nn.ModuleList(nn.Identity() for _ in model.layers)
    peak = model(IMAGE[:1])[0, 0]
    row, column = divmod(int(peak.argmax()), 16)
    assert (row, column) == (1 * 4 + 0, 2 * 4 + 3)


@pytest.mark.parametrize(
    ("task", "targets"),
    [
        ("image", torch.tensor([0, 3])),
        ("image", torch.tensor([[0.5, 0.5, 0, 0, 0], [0, 0, 0, 0, 1.0]])),
        ("segment", torch.randint(5, (B, 16, 16))),
        ("text", torch.tensor([0, 3])),
        ("tags", torch.randint(5, (B, T))),
        ("vqa", torch.rand(B, 5)),
        ("reason", torch.tensor([0, 1])),
    ],
)
def test_a_loss_falls_when_it_is_followed(task: str, targets: Tensor) -> None:
    model = build(task, "paper")
    inputs = {
        "image": (IMAGE,), "segment": (IMAGE,), "text": (TEXT, REAL), "tags": (TEXT, REAL),
        "vqa": (IMAGE, TEXT, REAL), "reason": (IMAGE, IMAGE_B, TEXT, REAL),
    }[task]  # fmt: skip
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(6):
        loss = model.loss(*inputs, targets)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_padding_and_void_pixels_have_no_label() -> None:
    tagger, segmenter = build("tags", "paper"), build("segment", "paper")
    labels, regions = torch.randint(5, (B, T)), torch.randint(5, (B, 16, 16))
    changed = torch.where(REAL, labels, 4)
    assert torch.equal(tagger.loss(TEXT, REAL, labels), tagger.loss(TEXT, REAL, changed))
    regions[0] = 255
    alone = segmenter.loss(IMAGE[1:], regions[1:])
    torch.testing.assert_close(segmenter.loss(IMAGE, regions), alone)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((IMAGE[..., :8], TEXT, REAL), "resize it"),
        ((IMAGE, TEXT.float(), REAL), "int64"),
        ((IMAGE, TEXT[0], REAL), "int64"),
        ((IMAGE, TEXT + 40, REAL), "vocabulary"),
        ((IMAGE, TEXT, REAL.long()), "bool"),
        ((IMAGE, TEXT, REAL[:, :3]), "bool"),
        ((IMAGE[:1], TEXT, REAL), "pairs"),
    ],
)
@pytest.mark.parametrize("task", ["vqa", "caption"])
def test_bad_input_is_named(task: str, arguments: tuple[Tensor, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build(task, "paper")(*arguments)


@pytest.mark.parametrize("wrong", [{"mask_id": 50}, {"mask_id": 2}, {"bos_id": -1}])
def test_captioner_refuses_special_ids_that_clash_or_lie_outside(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="four ids"):
        ImageCaptioner(build_backbone(PAPER), **wrong)
