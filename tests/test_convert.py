"""Released checkpoints: same numbers, same bits back, and nothing in a hostile file runs."""

import argparse
import json
import os
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from minibeit3 import capture, load_released, preset, to_released
from minibeit3.backbones import build_backbone
from minibeit3.checkpoint import TASKS, backbone_of, empty_model, interpolate_positions, task_of
from minibeit3.config import BEiT3Config
from minibeit3.convert import HEAD_KEYS, released_names
from minibeit3.embed import Streams
from minibeit3.info import task_parameters
from minibeit3.released import ReleasedBEiT3
from minibeit3.storage import CheckpointError

FIXTURE = Path(__file__).parent / "fixtures" / "released_backbone.safetensors"
SETTINGS = {"image_classification": {"classes": 7}, "vqa": {"answers": 11}}
SMALL = BEiT3Config(
    variant="released",
    depth=2,
    width=64,
    ffn_width=96,
    heads=1,
    image_size=32,
    patch_size=8,
    max_text_length=10,
    vocab_size=97,
    visual_vocab_size=13,
)


def part(tensors: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    """Tensors whose names start with `kind`/, without it."""
    return {n.removeprefix(kind + "/"): t for n, t in tensors.items() if n.startswith(kind + "/")}


def released_state(task: str, config: BEiT3Config = SMALL) -> dict[str, Tensor]:
    """A random state dict under the released names, every value different."""
    model = empty_model(task, config, SETTINGS.get(task, {}))
    generator = torch.Generator().manual_seed(1)
    state = {n: torch.randn(t.shape, generator=generator) for n, t in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    return to_released(model)


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """Bit for bit, whatever the order."""
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.fixture(scope="module")
def case() -> dict[str, Tensor]:
    return load_file(FIXTURE)


@pytest.fixture(scope="module")
def backbone(case: dict[str, Tensor]) -> ReleasedBEiT3:
    model = load_released(part(case, "state_dict"), heads=4)
    assert isinstance(model, ReleasedBEiT3)
    return model


@torch.no_grad()
def test_the_backbone_computes_what_the_released_one_does(
    case: dict[str, Tensor], backbone: ReleasedBEiT3
) -> None:
    given, wanted = part(case, "inputs"), part(case, "outputs")
    image, ids, hidden = given["image"], given["ids"], given["vision_masked"]
    real = given["padding"] == 0

    def near(ours: Tensor | None, name: str) -> None:
        assert ours is not None
        torch.testing.assert_close(ours, wanted[name], rtol=0, atol=1e-5)

    def joined(x: Tensor | Streams) -> Tensor:
        assert isinstance(x, Streams) and x.image is not None and x.text is not None
        return torch.cat([x.image, x.text], dim=1)

    near(backbone(image).image, "vision")
    near(backbone(image, hidden_patches=hidden).image, "vision_masked")
    near(backbone(text=ids, text_real=real).text, "text")
    with capture(backbone, "blocks.*", "blocks.1.attn:pattern") as seen:
        out = backbone(image, ids, real, hidden)
    near(joined(out), "fusion_masked")
    for layer in range(3):
        near(joined(seen[f"blocks.{layer}"]), f"fusion_hidden/{layer + 1}")
    pattern = seen["blocks.1.attn:pattern"]
    assert isinstance(pattern, Tensor)
    near(pattern.transpose(0, 1), "fusion_attn_headsfirst/1")


def test_every_reference_checkpoint_loads_and_comes_back_bit_identical(reference: Path) -> None:
    tasks = {
        "backbone": "backbone",
        "imageclassification": "image_classification",
        "nlvr2": "nlvr2",
        "vqav2": "vqa",
        "retrieval": "retrieval",
        "captioning": "captioning",
    }
    for name, task in tasks.items():
        state = part(load_file(reference / f"{name}.safetensors"), "state_dict")
        model = load_released(state, heads=4)
        assert task_of(model) == task
        assert_same(to_released(model), state)


@pytest.mark.parametrize("task", ["backbone", *HEAD_KEYS])
def test_a_round_trip_keeps_every_bit_and_needs_no_order(task: str) -> None:
    state = released_state(task)
    for order in (list(state), list(reversed(state))):
        model = load_released({name: state[name] for name in order})
        assert task_of(model) == task and not model.training
        shown = SMALL if task == "pretraining" else replace(SMALL, visual_vocab_size=8192)
        assert backbone_of(model).config == shown
        assert_same(to_released(model), state)


@pytest.mark.parametrize("task", ["vqa", "image_classification"])
def test_without_output_norm_the_model_has_none(task: str) -> None:
    state = released_state(task, replace(SMALL, final_norm=False))
    assert not any("encoder.layer_norm" in name for name in state)
    model = load_released(state)
    assert not backbone_of(model).config.final_norm
    assert_same(to_released(model), state)


def test_queries_keys_and_values_stay_apart() -> None:
    state = released_state("backbone")
    fused = load_released(state).state_dict()["blocks.1.attn.project_in.experts.L.qkv.weight"]
    for letter, rows in zip("qkv", fused.chunk(3), strict=True):
        assert torch.equal(rows, state[f"encoder.layers.1.self_attn.{letter}_proj.B.weight"])


def test_released_names_are_those_of_the_released_files(case: dict[str, Tensor]) -> None:
    model = empty_model("backbone", replace(SMALL, depth=3), {})
    names = {theirs for name in model.state_dict() for theirs in released_names(name)}
    assert names == part(case, "state_dict").keys()


def test_the_prefix_of_the_fine_tuning_code_is_optional() -> None:
    bare = released_state("backbone")
    prefixed = load_released({"beit3." + name: value for name, value in bare.items()})
    assert_same(to_released(prefixed), bare)
    state = released_state("captioning")
    without = load_released({name.removeprefix("beit3."): v for name, v in state.items()})
    assert_same(to_released(without), state)


def test_a_pretrained_file_gives_its_backbone_alone_only_when_asked() -> None:
    state = released_state("pretraining")
    assert task_of(load_released(state)) == "pretraining"
    assert isinstance(load_released(state, task="backbone"), ReleasedBEiT3)
    with pytest.raises(CheckpointError, match=r"unexpected: mim_head\.bias, mim_head\.weight"):
        load_released(state, task="captioning")


def test_every_tensor_that_does_not_fit_is_listed() -> None:
    state = released_state("captioning")
    del state["mlm_head.bias"], state["beit3.encoder.layers.0.ffn.A.fc1.weight"]
    state["beit3.encoder.layers.1.ffn.B.fc2.bias"] = torch.zeros(5)
    state["beit3.encoder.layers.0.ffn.C.fc2.bias"] = torch.zeros(5)
    state["scaler"] = torch.zeros(1)
    with pytest.raises(CheckpointError) as error:
        load_released(state)
    assert str(error.value) == (
        "the state dict does not fit the model: missing: "
        "beit3.encoder.layers.0.ffn.A.fc1.weight, mlm_head.bias; "
        "unexpected: beit3.encoder.layers.0.ffn.C.fc2.bias, scaler; "
        "wrong shape: beit3.encoder.layers.1.ffn.B.fc2.bias (5,) not (64,)"
    )


@pytest.mark.parametrize("name", sorted(released_state("vqa")))
def test_no_tensor_may_be_missing(name: str) -> None:
    state = released_state("vqa")
    del state[name]
    with pytest.raises(CheckpointError, match=f"missing: {name}$"):
        load_released(state)


def test_heads_no_tensor_shows_must_be_said() -> None:
    state = released_state("backbone", replace(SMALL, width=48, heads=4))
    with pytest.raises(ValueError, match=r"width 48 .* give heads="):
        load_released(state)
    assert backbone_of(load_released(state, heads=4)).config.heads == 4
    with pytest.raises(ValueError, match="5 heads"):
        load_released(state, heads=5)


def test_the_mask_id_is_that_of_the_released_tokenizer() -> None:
    settings = empty_model("captioning", SMALL, {}).settings  # pyright: ignore[reportAttributeAccessIssue]
    assert load_released(released_state("captioning")).settings == settings
    large = released_state("captioning", replace(SMALL, vocab_size=64010))
    assert load_released(large).settings["mask_id"] == 64001  # pyright: ignore[reportIndexIssue, reportArgumentType, reportCallIssue]
    given = load_released(large, mask_id=5)
    assert given.settings["mask_id"] == 5  # pyright: ignore[reportIndexIssue, reportArgumentType, reportCallIssue]


def test_positions_interpolate_as_the_released_code_does(reference: Path) -> None:
    case = load_file(reference / "helpers.safetensors")
    table = interpolate_positions(case["inputs/pos_A"], 8, kept=3)
    torch.testing.assert_close(table, case["outputs/pos_A_doubled"], rtol=0, atol=1e-5)


def test_positions_interpolate_only_when_asked() -> None:
    state = released_state("backbone")
    name = "encoder.embed_positions.A.weight"
    same = load_released(state, image_size=32)
    assert_same(to_released(same), state)
    larger = load_released(state, image_size=48)
    assert isinstance(larger, ReleasedBEiT3) and larger.config.image_size == 48
    table = to_released(larger)[name]
    assert table.shape == (39, 64) and torch.equal(table[:3], state[name][:3])
    assert larger(torch.zeros(1, 3, 48, 48)).image.shape == (1, 37, 64)
    with pytest.raises(ValueError, match="image_size 50 is no multiple"):
        load_released(state, image_size=50)
    state[name] = torch.zeros(21, 64)  # 18 patches are no square
    with pytest.raises(CheckpointError, match="wrong shape"):
        load_released(state, image_size=48)


PUBLISHED = [
    ("base", "pretraining", 224, {}, 276_510_730, True),
    ("large", "pretraining", 224, {}, 746_709_514, True),
    ("base", "retrieval", 224, {}, 222_167_041, True),
    ("large", "retrieval", 224, {}, 674_799_617, True),
    ("base", "vqa", 480, {"answers": 3129}, 228_110_649, False),
    ("large", "vqa", 480, {"answers": 3129}, 682_985_529, False),
    ("large", "vqa", 768, {"answers": 3129}, 684_423_225, False),
    ("base", "nlvr2", 224, {}, 225_719_810, True),
    ("large", "nlvr2", 224, {}, 681_109_506, True),
    ("base", "captioning", 480, {}, 270_751_754, True),
    ("large", "captioning", 480, {}, 739_033_610, True),
    ("base", "retrieval", 384, {}, 222_458_881, True),
    ("large", "retrieval", 384, {}, 675_188_737, True),
]


@pytest.mark.parametrize(("size", "task", "pixels", "settings", "count", "norm"), PUBLISHED)
def test_the_published_models_have_their_published_sizes(
    size: str, task: str, pixels: int, settings: dict[str, int], count: int, norm: bool
) -> None:
    config = replace(preset(size, "released"), image_size=pixels, final_norm=norm)
    assert task_parameters(task, config, settings) == count


@pytest.mark.parametrize(("size", "count"), [("base", 86_662_120), ("large", 304_575_464)])
def test_the_vision_path_has_the_published_size_of_image_classifiers(size: str, count: int) -> None:
    config = replace(preset(size, "released"), final_norm=False)
    model = empty_model("image_classification", config, {"classes": 1000})
    language = (".experts.L.", "text_embed")
    vision = [p for n, p in model.named_parameters() if not any(part in n for part in language)]
    assert sum(p.numel() for p in vision) == count


def test_files_load_as_their_dicts_do_wherever_the_tensors_lie(tmp_path: Path) -> None:
    state = released_state("retrieval")
    args = argparse.Namespace(lr=1e-3, task="flickr30k")
    contents: list[Any] = [
        {"model": state, "args": args, "epoch": 3},
        {"module": state},
        state,
        {"model": {n: torch.nn.Parameter(t) for n, t in state.items()}},
    ]
    for number, content in enumerate(contents):
        for legacy in (False, True):
            path = tmp_path / f"{number}.pth"
            torch.save(content, path, _use_new_zipfile_serialization=not legacy)
            assert_same(to_released(load_released(path)), state)
    save_file(state, tmp_path / "a.safetensors")
    assert_same(to_released(load_released(tmp_path / "a.safetensors")), state)
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


def test_the_model_shares_no_memory_with_the_state_dict() -> None:
    state: dict[str, Tensor] = {}
    for name, value in released_state("retrieval").items():
        state[name] = torch.nn.Parameter(value)
    model = load_released(state)
    before = {name: value.clone() for name, value in state.items()}
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.requires_grad and parameter.is_leaf
            parameter.zero_()
    assert_same(state, before)


def test_half_precision_loads_as_float32(tmp_path: Path) -> None:
    state = {n: t.to(torch.bfloat16) for n, t in released_state("retrieval").items()}
    torch.save(state, tmp_path / "half.pth")
    model = load_released(tmp_path / "half.pth")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert_same({n: t.to(torch.bfloat16) for n, t in to_released(model).items()}, state)


class Payload:
    """Runs a call when it is unpickled without care."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def payloads(canary: Path) -> list[object]:
    touch = f"open({str(canary)!r}, 'w')"
    namespace = argparse.Namespace()
    namespace.path = canary  # a class that is not on the list, inside one that is
    return [
        Payload(os.system, f"touch {canary}"),
        Payload(eval, touch),
        Payload(exec, touch),
        Payload(open, str(canary), "w"),
        Payload(__import__, "antigravity"),
        {"model": {"beit3.text_embed.weight": Payload(os.system, f"touch {canary}")}},
        {"model": released_state("backbone"), "args": Payload(os.mkdir, str(canary))},
        {"args": argparse.Namespace(callback=Payload(eval, touch))},
        namespace,
        Path("x"),
    ]


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("number", range(10))
def test_code_in_a_checkpoint_never_runs(tmp_path: Path, number: int, legacy: bool) -> None:
    canary, path = tmp_path / "canary", tmp_path / "evil.pth"
    payload = payloads(canary)[number]
    torch.save(payload, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match="refused and nothing ran"):
        load_released(path)
    assert not canary.exists()


@pytest.mark.parametrize(
    ("function", "name"), [(open, r"(_?io)\.open"), (os.system, r"posix\.system"), (eval, "eval")]
)
def test_the_refusal_names_the_code_that_the_file_asks_for(
    tmp_path: Path, function: Callable[..., object], name: str
) -> None:
    torch.save(Payload(function, "x"), tmp_path / "evil.pth")
    with pytest.raises(
        CheckpointError, match=f"wants to run (builtins\\.|__builtin__\\.)?{name} when"
    ):
        load_released(tmp_path / "evil.pth")


def test_a_changed_or_cut_file_never_loads(tmp_path: Path) -> None:
    state, path = released_state("retrieval"), tmp_path / "a.pth"
    torch.save({"model": state}, path)
    content = path.read_bytes()
    generator = torch.Generator().manual_seed(0)
    for place in torch.randint(len(content), (60,), generator=generator).tolist():
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        try:
            assert_same(to_released(load_released(path)), state)  # in the padding between tensors
        except CheckpointError as error:
            assert str(path) in str(error)
    for length in torch.randint(len(content), (30,), generator=generator).tolist():
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=r"a\.pth"):
            load_released(path)


def doubled(times: int) -> tuple[Any, ...]:
    pair: tuple[Any, ...] = ()
    for _ in range(times):
        pair = (pair, pair)
    return pair


ABUSES: dict[str, tuple[Callable[[], object], str]] = {
    "a view of one number as a huge table": (
        lambda: (
            released_state("backbone") | {"text_embed.weight": torch.zeros(1).expand(10**9, 64)}
        ),
        "repeated views",
    ),
    "one storage under many names": (
        lambda: dict.fromkeys(released_state("backbone"), torch.zeros(64, 64)),
        "repeated views",
    ),
    "doubling tuples": (lambda: {"model": doubled(40)}, "'model' is a tuple"),
    "integers": (lambda: {"a": torch.zeros(3, dtype=torch.int64)}, "not floats"),
    "sparse": (lambda: {"a": torch.eye(3).to_sparse()}, "not floats"),
    "names that are numbers": (lambda: {1: torch.zeros(3)}, "'1' is a Tensor"),
    "values that are lists": (lambda: {"text_embed.weight": [1.0]}, "is a list"),
    "no dict": (lambda: [torch.zeros(3)], "expected a state dict"),
    "nothing": (dict, "no BEiT-3 checkpoint"),
    "absurd layers": (
        lambda: released_state("backbone") | {"encoder.layers.99999999.x": torch.zeros(3)},
        r"missing: encoder\.layers\.2.* unexpected: encoder\.layers\.99999999",
    ),
    "too many layers": (
        lambda: {f"encoder.layers.{i}.x": torch.zeros(1) for i in range(1001)},
        "1001 layers",
    ),
    "another model": (torch.nn.Linear(3, 3).state_dict, "no BEiT-3 checkpoint"),
}


@pytest.mark.parametrize("name", ABUSES)
def test_what_is_no_honest_state_dict_is_refused(tmp_path: Path, name: str) -> None:
    make, message = ABUSES[name]
    torch.save(make(), tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=message):
        load_released(tmp_path / "a.pth")


def test_deep_nesting_is_refused(tmp_path: Path) -> None:
    # protocol 2: mark, a list in a list in a list ..., written by hand as torch.save would recurse
    depth = 10**5
    pickled = b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b"."
    with zipfile.ZipFile(tmp_path / "deep.pth", "w") as archive:
        for name, content in (("data.pkl", pickled), ("version", b"3"), ("byteorder", b"little")):
            archive.writestr(f"deep/{name}", content)
    with pytest.raises(CheckpointError, match=r"deep\.pth"):
        load_released(tmp_path / "deep.pth")


def test_more_tensors_than_any_model_has_are_refused() -> None:
    nothing = torch.zeros(0)
    with pytest.raises(CheckpointError, match="at most 20,000 tensors"):
        load_released({f"encoder.layers.{i}.x": nothing for i in range(20_001)})


def test_archives_that_torch_never_writes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(10**7))
    with pytest.raises(CheckpointError, match="no archive that torch"):
        load_released(path)
    header = (2**30).to_bytes(8, "little")
    (tmp_path / "a.safetensors").write_bytes(header + b"{}")
    with pytest.raises(CheckpointError, match="header"):
        load_released(tmp_path / "a.safetensors")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"not a checkpoint", b"\x80\x02."])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a\.pth"):
        load_released(path)
    with pytest.raises(CheckpointError, match="is no file"):
        load_released(tmp_path / "absent.pth")


def test_the_variants_are_not_mixed_up() -> None:
    paper = build_backbone(replace(SMALL, variant="paper", fusion_layers=1))
    with pytest.raises(ValueError, match="variant must be 'released'"):
        to_released(paper)
    with pytest.raises(CheckpointError, match="use from_pretrained"):
        load_released(paper.state_dict())
    with pytest.raises(ValueError, match="no released model has the task 'segmentation'"):
        load_released(released_state("backbone"), task="segmentation")
    assert HEAD_KEYS.keys() <= TASKS.keys()


def test_the_fixture_says_where_it_comes_from() -> None:
    with safe_open(FIXTURE, "pt") as file:
        assert json.loads(file.metadata()["config"])["encoder_layers"] == 3
