"""The five released tasks: every head and the whole captioner against released outputs.

The fixtures are cut from the reference cases, so that these tests run where those are absent: of
four tasks the head, with the backbone's features; of captioning everything but unused positions.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from minibeit3.backbones import build_backbone
from minibeit3.config import BEiT3Config
from minibeit3.convert import load_released
from minibeit3.embed import Streams
from minibeit3.modes import (
    ImageCaptioner,
    ImageClassifier,
    ImageTextRetriever,
    VisualQuestionAnswerer,
    VisualReasoner,
)

FIXTURES = Path(__file__).parent / "fixtures"
CASES = ("imageclassification", "nlvr2", "vqav2", "retrieval", "captioning")
HEADS = CASES[:-1]
CONFIG = BEiT3Config(
    variant="released", depth=1, width=48, ffn_width=8, heads=4, image_size=32, patch_size=8,
    vocab_size=97,
)  # fmt: skip
Tensors = dict[str, Tensor]


class Recorded(nn.Module):
    """In place of a backbone: answers with what the real one said to the same kind of call."""

    def __init__(self, tensors: Tensors) -> None:
        super().__init__()
        self.tensors, self.config = tensors, CONFIG

    def forward(
        self,
        image: Tensor | None = None,
        text: Tensor | None = None,
        text_real: Tensor | None = None,
        pairs: int | None = None,
    ) -> Streams:
        kinds = ("image", image), ("text", text)
        return Streams(*(None if x is None else self.tensors[f"features/{k}"] for k, x in kinds))


def part(tensors: Tensors, prefix: str) -> Tensors:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def outputs_of(case: str, model: nn.Module, inputs: Tensors) -> Tensors:
    """What `model` says to the inputs of the reference case, by the name of the output."""
    image, ids = inputs["image"], inputs.get("ids", torch.empty(0))
    real = inputs["padding"] == 0 if "padding" in inputs else None
    match model:
        case ImageClassifier():
            return {"logits": model(image)}
        case VisualReasoner():
            return {"logits": model(image, inputs["image2"], ids, real)}
        case VisualQuestionAnswerer():
            loss = model.loss(image, ids, real, inputs["soft_targets"])
            return {"logits": model(image, ids, real), "loss": loss}
        case ImageTextRetriever():
            vectors = {"vision": model.embed_image(image), "language": model.embed_text(ids, real)}
            loss = model.loss(image, ids, real)
            return {**{f"{k}_cls": v for k, v in vectors.items()}, "loss": loss}
        case ImageCaptioner():
            hidden, shown = inputs["language_masked_pos"].bool(), inputs["masked_ids"]
            logits = model(image, shown, real)
            losses = {
                f"loss_iter{i}": model.loss(image, shown, real, hidden, ids, iteration=i)
                for i in (0, 12001)
            }
            return {"logits_all": logits, "logits_at_masked": logits[hidden], **losses}
    raise AssertionError(case)


def rebuilt(case: str, tensors: Tensors) -> Any:
    """The task's class with the recorded head, and the recording as its backbone."""
    bare = build_backbone(CONFIG)
    task = {
        "imageclassification": lambda: ImageClassifier(bare, classes=7),
        "nlvr2": lambda: VisualReasoner(bare),
        "vqav2": lambda: VisualQuestionAnswerer(bare, answers=11),
        "retrieval": lambda: ImageTextRetriever(bare),
    }[case]()
    task.backbone = Recorded(tensors)
    keys = task.RELEASED_HEAD_KEYS
    task.load_state_dict({keys[k]: v for k, v in part(tensors, "state_dict/").items()})
    return task


def cut(reference: Path) -> dict[str, Tensors]:
    """The content of both fixture files, from the reference cases."""
    heads: Tensors = {}
    for case in HEADS:
        tensors = load_file(reference / f"{case}.safetensors")
        model: Any = load_released(part(tensors, "state_dict/"), heads=4)
        calls: list[Streams] = []
        model.backbone.register_forward_hook(lambda m, call, out, calls=calls: calls.append(out))
        outputs_of(case, model, part(tensors, "inputs/"))
        for kind in ("image", "text"):
            said = [x for x in (getattr(call, kind) for call in calls) if x is not None]
            heads |= {f"{case}/features/{kind}": x.contiguous() for x in said[:1]}
        wanted = ("inputs/", "outputs/")
        heads |= {
            f"{case}/{k}": v
            for k, v in tensors.items()
            if k.startswith(wanted) or k.removeprefix("state_dict/") in model.RELEASED_HEAD_KEYS
        }
    captioning = load_file(reference / "captioning.safetensors")
    table = "state_dict/beit3.encoder.embed_positions.B.weight"
    captioning[table] = captioning[table][:12].contiguous()
    return {"released_heads": heads, "released_captioning": captioning}


@pytest.mark.parametrize("case", CASES)
def test_a_task_reproduces_the_released_one(reference: Path, case: str) -> None:
    tensors = load_file(reference / f"{case}.safetensors")
    model = load_released(part(tensors, "state_dict/"), heads=4)
    agree(outputs_of(case, model, part(tensors, "inputs/")), tensors)


@pytest.mark.parametrize("case", HEADS)
def test_a_head_reproduces_the_released_one(case: str) -> None:
    tensors = part(load_file(FIXTURES / "released_heads.safetensors"), f"{case}/")
    agree(outputs_of(case, rebuilt(case, tensors), part(tensors, "inputs/")), tensors)


@pytest.fixture(scope="module")
def captioning() -> tuple[ImageCaptioner, Tensors]:
    tensors = load_file(FIXTURES / "released_captioning.safetensors")
    model = load_released(part(tensors, "state_dict/"), heads=4)
    assert isinstance(model, ImageCaptioner)
    return model, tensors


def test_the_captioner_reproduces_the_released_one(
    captioning: tuple[ImageCaptioner, Tensors],
) -> None:
    model, tensors = captioning
    agree(outputs_of("captioning", model, part(tensors, "inputs/")), tensors)


def test_cached_greedy_steps_reproduce_the_released_ones(
    captioning: tuple[ImageCaptioner, Tensors],
) -> None:
    model, tensors = captioning
    image = tensors["inputs/image"]
    expected = tensors["outputs/greedy_tokens"]
    with torch.no_grad():
        score, ids = model.scorer(image), torch.zeros(len(image), 1, dtype=torch.long)
        for step in range(expected.shape[1]):
            logits = score(ids, None)
            agree({f"greedy_logits/{step}": logits}, tensors)
            ids = torch.cat([ids, logits.argmax(dim=-1, keepdim=True)], dim=1)
    assert torch.equal(ids[:, 1:], expected)
    found = model.generate(image, max_length=expected.shape[1] + 3, beams=1)
    assert found == expected.tolist()


def test_beam_search_finds_the_released_captions(
    captioning: tuple[ImageCaptioner, Tensors],
) -> None:
    model, tensors = captioning
    special = set(model.settings.values())
    released = [tensors[f"outputs/beam3_lp06_ids/{i}"].tolist() for i in range(3)]
    found = model.generate(tensors["inputs/image"], max_length=len(released[0]))
    assert found == [[i for i in ids if i not in special] for ids in released]


def test_the_fixtures_are_cut_from_the_reference(reference: Path) -> None:
    for name, tensors in cut(reference).items():
        kept = load_file(FIXTURES / f"{name}.safetensors")
        assert kept.keys() == tensors.keys()
        for key, value in kept.items():
            torch.testing.assert_close(value, tensors[key], rtol=0, atol=1e-5)


def agree(ours: Tensors, released: Tensors) -> None:
    for name, value in ours.items():
        expected = released[f"outputs/{name}"].reshape(value.shape)
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-5)
