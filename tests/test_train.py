"""The training engine: order, gradients, schedules, logs and what may go wrong on the way."""

import io
import json
import random
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor, nn

from minibeit3 import BEiT3Config, build_backbone, runfolder
from minibeit3 import train as engine
from minibeit3.batches import Batches, generator_of, to_device
from minibeit3.config import Variant
from minibeit3.embed import Streams
from minibeit3.optimiser import (
    layer_scales,
    learning_rate,
    no_weight_decay,
    parameter_groups,
    released_no_weight_decay,
)
from minibeit3.runlog import METRICS, Record, RunLog, progress, progress_line, read_metrics
from minibeit3.train import LONG, TrainConfig, compiles, train

TIMES = ("samples_per_second", "seconds_left", "cpu_seconds")


def model_of(seed: int = 0) -> nn.Module:
    """A small network with a buffer that training moves and dropout from the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 1))


def stack(samples: list[Any], generator: torch.Generator) -> Tensor:
    x = torch.stack([sample.x for sample in samples])
    return x + 0.1 * torch.rand(x.shape, generator=generator)


def source_of(config: TrainConfig, size: int = 13) -> Batches:
    samples = [SimpleNamespace(key=f"toy/{i}", x=torch.arange(6.0) * i / size) for i in range(size)]
    return Batches(samples, config.part_size, config.seed, stack)


def noisy(model: nn.Module, x: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Any]]:
    """A loss that draws from every generator there is."""
    noise = random.random() + float(np.random.rand()) + torch.rand(1, generator=generator)
    loss = (model(x).float() - x.sum(1, keepdim=True) * noise).square().mean()
    return loss, {"noise": noise.mean()}


def config_of(steps: int = 7, **changes: Any) -> TrainConfig:
    values: dict[str, Any] = {"batch_size": 4, "lr": 1e-2, "warmup": 2, "dtype": "float32"}
    values |= {"log_every": 1, "save_every": 2} | changes
    return TrainConfig(steps=steps, **values)


def run(
    folder: Path, config: TrainConfig, **options: Any
) -> tuple[list[Record], dict[str, Tensor]]:
    """The records without their clock and the final parameters of a fresh model's run."""
    model = model_of()
    records = train(model, noisy, source_of(config), config, folder, **options)
    return timeless(records), model.state_dict()


def timeless(records: list[Record]) -> list[Record]:
    return [{k: v for k, v in record.items() if k not in TIMES} for record in records]


def same(a: tuple[list[Record], dict[str, Tensor]], b: tuple[list[Record], dict[str, Tensor]]):
    """True = equal to the last bit."""
    return a[0] == b[0] and all(torch.equal(a[1][k], b[1][k]) for k in a[1].keys() | b[1].keys())


# Resume


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("until", [1, 4, 5])
def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path: Path, workers: int, until: int):
    whole = run(tmp_path / "whole", config_of())
    run(tmp_path / "cut", config_of(workers=workers), until=until)
    torch.rand(3)  # the world goes on in between
    assert same(run(tmp_path / "cut", config_of(workers=workers)), whole)


def test_without_reseeding_every_step_a_resumed_run_would_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole = run(tmp_path / "whole", config_of())
    run(tmp_path / "cut", config_of(), until=4)
    monkeypatch.setattr(engine, "seed_everything", lambda seed: None)
    assert not same(run(tmp_path / "cut", config_of()), whole)


def tiny_config(variant: Variant) -> BEiT3Config:
    fusion = 1 if variant == "paper" else 0
    sizes: dict[str, Any] = {"depth": 2, "width": 8, "ffn_width": 16, "heads": 2, "vocab_size": 9}
    sizes |= {"image_size": 8, "patch_size": 4, "max_text_length": 4, "drop_path": 0.5}
    return BEiT3Config(variant=variant, fusion_layers=fusion, **sizes)


def pairs_step(model: nn.Module, batch: Streams, generator: torch.Generator):
    out = model(batch.image, batch.text)
    loss = (out.image.mean(1) - out.text.mean(1)).square().mean() + out.image[:, 0].mean()
    return loss, {}


class Pairs:
    """Random images with random words."""

    def batch(self, number: int) -> Streams:
        g = generator_of(number)
        text = torch.randint(9, (2, 4), generator=g)
        return Streams(torch.randn(2, 3, 8, 8, generator=g), text)

    def names(self, number: int) -> list[str]:
        return [f"pair/{number}"]


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_both_backbones_resume_with_stochastic_depth(tmp_path: Path, variant: Variant):
    def go(folder: Path, until: int | None = None):
        model = build_backbone(tiny_config(variant), generator_of(1))
        records = train(model, pairs_step, Pairs(), config, folder, until=until)
        return timeless(records), model.state_dict()

    config = config_of(6, batch_size=2, layer_decay=0.7)
    whole = go(tmp_path / "whole")
    go(tmp_path / "cut", until=3)
    assert same(go(tmp_path / "cut"), whole)


def test_training_leaves_the_global_generators_as_they_were(tmp_path: Path):
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), torch.rand(1).item()

    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    expected = draw()
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
    run(tmp_path, config_of())
    assert draw() == expected


def test_watching_a_run_does_not_change_it(tmp_path: Path):
    whole, model, config = run(tmp_path / "a", config_of()), model_of(), config_of()

    def evaluate(record: Record) -> None:
        record["checked"] = model.eval()(torch.rand(4, 6)).mean().item()

    records = train(model, noisy, source_of(config), config, tmp_path / "b", on_log=evaluate)
    assert all(record.pop("checked") for record in records)
    assert same((timeless(records), model.state_dict()), whole)


def test_a_finished_run_is_loaded_and_not_trained_again(tmp_path: Path):
    whole = run(tmp_path, config_of())

    def never(*args: Any) -> Any:
        raise AssertionError("trained again")

    model = model_of(5)
    records = train(model, never, source_of(config_of()), config_of(), tmp_path)
    assert same((timeless(records), model.state_dict()), whole)


def test_an_interrupted_first_step_starts_from_the_same_weights(tmp_path: Path):
    whole = run(tmp_path / "whole", config_of(save_every=100))

    def interrupted(record: Record) -> None:
        if record["step"] == 3:
            raise KeyboardInterrupt

    config, model = config_of(save_every=100), model_of()
    with pytest.raises(KeyboardInterrupt):
        train(model, noisy, source_of(config), config, tmp_path / "a", on_log=interrupted)
    records = train(model, noisy, source_of(config), config, tmp_path / "a")
    assert same((timeless(records), model.state_dict()), whole)


def test_another_config_or_a_used_folder_is_refused(tmp_path: Path):
    run(tmp_path, config_of(), until=2)
    with pytest.raises(ValueError, match=r"another config.*'lr': \(0.01, 0.5\)"):
        run(tmp_path, config_of(lr=0.5))
    with pytest.raises(ValueError, match="holds a run already"):
        run(tmp_path, config_of(), resume="never")
    run(tmp_path, config_of(save_every=3, log_every=2))


def test_another_number_of_threads_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run(tmp_path, config_of(), until=2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    with pytest.warns(UserWarning, match="this run has 64"):
        run(tmp_path, config_of())


# Order


@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 5))
def test_every_epoch_shows_every_sample_once(size: int, batch: int, seed: int):
    batches = Batches(range(size), batch, seed, lambda samples, generator: samples)
    count = -(-3 * size // batch)
    drawn = [i for number in range(count) for i in batches.batch(number)]
    for epoch in range(3):
        assert sorted(drawn[epoch * size : (epoch + 1) * size]) == list(range(size))


def test_the_order_depends_on_seed_and_epoch_but_not_on_the_batch_size():
    def drawn(batch: int, seed: int) -> list[int]:
        batches = Batches(range(50), batch, seed, lambda samples, generator: samples)
        return [i for number in range(100 // batch) for i in batches.indices(number)]

    assert drawn(10, 0) == drawn(5, 0)
    assert drawn(10, 0) != drawn(10, 1)
    assert drawn(10, 0)[:50] != drawn(10, 0)[50:]


def test_every_tensor_of_a_batch_is_moved():
    sample = {"a": torch.ones(1), "b": [torch.ones(1), "c"], "d": Streams(torch.ones(1), None)}
    moved = to_device(sample, torch.device("meta"))
    assert moved["a"].is_meta and moved["b"][0].is_meta and moved["b"][1] == "c"
    assert isinstance(moved["d"], Streams) and moved["d"].image.is_meta and moved["d"].text is None


# Gradients and steps


def linear_step(model: nn.Module, x: Tensor, generator: torch.Generator):
    return model(x).square().mean(), {"mean": x.mean()}


def test_accumulation_gives_the_gradients_of_the_big_batch(tmp_path: Path):
    seen = []
    for parts in (1, 4):
        config = config_of(5, batch_size=8, accumulate=parts)
        samples = list(torch.randn(20, 6, generator=generator_of(0)))
        source = Batches(samples, config.part_size, 0, lambda chosen, g: torch.stack(chosen))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = nn.Linear(6, 1)
        seen.append(train(model, linear_step, source, config, tmp_path / str(parts)))
    for whole, split in zip(*(timeless(records) for records in seen), strict=True):
        assert split == pytest.approx(whole, rel=1e-5)


def test_gradients_are_cut_to_the_given_norm(tmp_path: Path):
    def moved(clip: float | None) -> float:
        model = nn.Linear(2, 1, bias=False)
        nn.init.zeros_(model.weight)
        # eps dwarfs Adam's second moment: the step is then proportional to the gradient.
        config = config_of(1, warmup=0, clip=clip, eps=1e6, weight_decay=0.0)
        source = Batches([torch.ones(2)] * 4, 4, 0, lambda chosen, g: torch.stack(chosen))
        name = tmp_path / str(clip)
        records = train(model, lambda m, x, g: (30 * m(x).sum(), {}), source, config, name)
        assert records[0]["grad_norm"] == pytest.approx(120 * 2**0.5)
        return model.weight.norm().item()

    assert moved(3.0) / moved(None) == pytest.approx(3.0 / (120 * 2**0.5), rel=1e-3)


def test_training_lowers_the_loss_and_ends_in_evaluation_mode(tmp_path: Path):
    config = config_of(60, lr=0.05)
    model, source = model_of(), source_of(config)

    def fit(model: nn.Module, x: Tensor, generator: torch.Generator):
        return (model(x) - x.sum(1, keepdim=True)).square().mean(), {}

    records = train(model, fit, source, config, tmp_path)
    assert records[-1]["loss"] < 0.3 * records[0]["loss"]
    assert not model.training


def test_bfloat16_rounds_matrix_products_but_not_parameters(tmp_path: Path):
    seen = []

    def spy(model: nn.Module, x: Tensor, generator: torch.Generator):
        out = model(x)
        seen.append(out.dtype)
        return out.float().square().mean(), {}

    config, model = config_of(1, warmup=0, dtype="bfloat16"), model_of()
    train(model, spy, source_of(config), config, tmp_path)
    assert seen == [torch.bfloat16]
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"warmup": 7}, "warmup 7 leaves nothing of 7 steps"),
        ({"accumulate": 3}, "batch_size 4 does not split into 3"),
        ({"clip": 0.0}, "clip 0.0"),
        ({"lr": -1.0}, "lr is -1.0"),
    ],
)
def test_a_senseless_config_is_refused(changes: dict[str, Any], words: str):
    with pytest.raises(ValueError, match=words):
        config_of(**changes)


# What is not finite


@pytest.mark.parametrize("place", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing_and_says_where(tmp_path: Path, place: str):
    config, calls = config_of(), 0
    model, source = model_of(), source_of(config)
    before: dict[str, Tensor] = {}

    def breaks(model: nn.Module, x: Tensor, generator: torch.Generator):
        nonlocal calls, before
        loss, metrics = noisy(model, x, generator)
        if calls == 4:
            before = {name: p.detach().clone() for name, p in model.named_parameters()}
            if place == "loss":
                loss = loss * float("nan")
            else:  # the root has a value at 0, but no slope
                loss = loss + (model.get_parameter("3.bias") * 0).sqrt().sum()
        calls += 1
        return loss, metrics

    with pytest.raises(FloatingPointError) as caught:
        train(model, breaks, source, config, tmp_path)
    told = str(caught.value)
    assert "step 5" in told and str(source.names(4)) in told and "step-00000004" in told
    assert "3.bias" in told or place == "loss"
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert same(run(tmp_path, config_of()), run(tmp_path / "whole", config_of()))


# Schedules and groups, against the released code


def test_the_schedule_is_the_released_one(reference: Path):
    with safe_open(reference / "helpers.safetensors", "pt") as file:
        expected = file.get_tensor("outputs/cosine").tolist()
    got = [learning_rate(step, 200, 40, 1e-3, 1e-6) for step in range(200)]
    assert got == pytest.approx(expected, rel=1e-12, abs=1e-18)


def to_ours(name: str) -> str:
    """Our name of a released parameter; q, k and v are one matrix of ours."""
    for old, new in (
        ("beit3.vision_embed.cls_token", "image_embed.cls"),
        ("beit3.vision_embed.mask_token", "image_embed.mask"),
        ("beit3.vision_embed.proj", "image_embed.patch"),
        ("beit3.text_embed", "text_embed.words"),
        ("beit3.encoder.embed_positions.A.weight", "image_embed.positions"),
        ("beit3.encoder.embed_positions.B.weight", "text_embed.positions"),
        ("beit3.encoder.layer_norm.", "norm.experts."),
        ("beit3.encoder.layers.", "blocks."),
    ):
        name = name.replace(old, new)
    parts = ["V" if p == "A" else "L" if p == "B" else p for p in name.split(".")]
    if parts[0] == "blocks":
        layer, kind = parts[1], parts[2]
        if kind == "ffn":
            inner = {"ffn_layernorm": "inner_norm"}.get(parts[4], parts[4])
            return f"blocks.{layer}.ffn.experts.{parts[3]}.{inner}.{parts[5]}"
        if kind == "final_layer_norm":
            return f"blocks.{layer}.ffn.experts.{parts[3]}.norm.{parts[4]}"
        if kind == "self_attn_layer_norm":
            return f"blocks.{layer}.attn.project_in.experts.{parts[3]}.norm.{parts[4]}"
        into = {"inner_attn_ln": "inner_norm", "out_proj": "out"}.get(parts[3])
        side = "project_out" if into else "project_in"
        return f"blocks.{layer}.attn.{side}.experts.{parts[4]}.{into or 'qkv'}.{parts[5]}"
    return ".".join(parts)


class Retriever(nn.Module):
    """Three layers and the released retrieval heads' parameters."""

    def __init__(self) -> None:
        super().__init__()
        sizes: dict[str, Any] = {"width": 8, "ffn_width": 16, "heads": 2, "vocab_size": 9}
        sizes |= {"image_size": 8, "patch_size": 4, "max_text_length": 4}
        self.backbone = build_backbone(BEiT3Config(variant="released", depth=3, **sizes))
        self.vision_head = nn.Linear(8, 8, bias=False)
        self.language_head = nn.Linear(8, 8, bias=False)
        self.logit_scale = nn.Parameter(torch.zeros(()))


def reference_names(reference: Path) -> tuple[dict[str, float], set[str]]:
    """(layer scale by our name, our names without weight decay) of the released code."""
    with safe_open(reference / "helpers.safetensors", "pt") as file:
        told = file.metadata()
    prefix = "outputs/layer_scale/"
    scales = {to_ours(k[len(prefix) :]): float(v) for k, v in told.items() if k.startswith(prefix)}
    return scales, {to_ours(name) for name in json.loads(told["outputs/no_weight_decay"])}


def bare(name: str) -> str:
    return name.removeprefix("backbone.")


def test_layer_scales_are_the_released_ones(reference: Path):
    expected, _ = reference_names(reference)
    got = {bare(name): scale for name, scale in layer_scales(Retriever(), 0.65).items()}
    assert got == pytest.approx(expected, rel=1e-12)


def test_what_does_not_decay_is_as_released_and_ours_spares_all_positions_and_tokens(
    reference: Path,
):
    _, expected = reference_names(reference)
    model = Retriever()
    assert {bare(name) for name in released_no_weight_decay(model)} == expected
    extra = {bare(name) for name in no_weight_decay(model)} - expected
    assert extra == {"text_embed.positions", "image_embed.mask"}


def test_positions_and_tokens_of_the_visual_tokenizer_do_not_decay():
    shapes = {"pos_embed": (1, 5, 4), "cls_token": (1, 1, 4), "proj": (4, 4)}
    model = nn.ParameterDict({name: torch.zeros(shape) for name, shape in shapes.items()})
    assert no_weight_decay(model) == {"pos_embed", "cls_token"}


def test_groups_hold_every_trainable_parameter_once():
    model = Retriever()
    model.vision_head.weight.requires_grad_(False)
    groups = parameter_groups(model, 0.05, 0.65)
    grouped = [p for group in groups for p in group["params"]]
    assert len({id(p) for p in grouped}) == len(grouped)
    assert {id(p) for p in grouped} == {id(p) for p in model.parameters() if p.requires_grad}
    decay = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
    scale = {id(p): g["scale"] for g in groups for p in g["params"]}
    words = model.backbone.text_embed.words.weight
    assert (decay[id(words)], scale[id(words)]) == (0.05, pytest.approx(0.65**4))
    assert (decay[id(model.logit_scale)], scale[id(model.logit_scale)]) == (0.0, 1.0)


def test_rate_and_scale_reach_the_parameters(tmp_path: Path):
    slow, fast = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    groups: list[dict[str, Any]] = [
        {"params": [slow], "scale": 0.1, "weight_decay": 0.0},
        {"params": [fast], "scale": 1.0, "weight_decay": 0.0},
    ]
    source = Batches([torch.ones(1)], 4, 0, lambda chosen, g: torch.stack(chosen))

    def total(model: nn.Module, x: Tensor, generator: torch.Generator):
        return slow.sum() + fast.sum(), {}

    config = config_of(1, warmup=0, eps=1e-12)
    train(nn.ParameterList([slow, fast]), total, source, config, tmp_path, groups=groups)
    assert 1 - slow.item() == pytest.approx(0.001, rel=1e-3)
    assert 1 - fast.item() == pytest.approx(0.01, rel=1e-3)


# Files


def test_two_checkpoints_are_kept_and_load_without_running_code(tmp_path: Path):
    run(tmp_path, config_of())
    steps = [path.name[:13] for path in runfolder.checkpoints(tmp_path)]
    assert steps == ["step-00000006", "step-00000007"]
    state = torch.load(runfolder.checkpoints(tmp_path)[-1], weights_only=True)
    assert state["step"] == 7 and state["config"]["lr"] == 1e-2


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(place: int) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[place * len(data) // 100] ^= 1
        path.write_bytes(data)

    return damage


@pytest.mark.parametrize("damage", [truncate, *(flip(place) for place in (0, 30, 60, 99))])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(
    tmp_path: Path, damage: Callable[[Path], None]
):
    whole = run(tmp_path, config_of())
    damage(runfolder.checkpoints(tmp_path)[-1])
    with pytest.warns(
        UserWarning, match=r"step-00000007-\w+\.pt is damaged: continuing from step-0*6"
    ):
        assert same(run(tmp_path, config_of()), whole)


def test_when_all_checkpoints_are_damaged_nothing_starts_over_silently(tmp_path: Path):
    run(tmp_path, config_of())
    for path in runfolder.checkpoints(tmp_path):
        truncate(path)
    for _ in range(2):
        with pytest.raises(ValueError, match="are all damaged"):
            run(tmp_path, config_of())


def test_every_flipped_bit_and_every_truncation_is_seen(tmp_path: Path):
    path = runfolder.save(tmp_path, 3, {"step": 3, "x": torch.arange(40.0)})
    data, chosen = path.read_bytes(), random.Random(0)
    for _ in range(200):
        broken = bytearray(data)
        broken[chosen.randrange(len(data))] ^= 1 << chosen.randrange(8)
        path.write_bytes(broken)
        with pytest.raises(ValueError, match="damaged"):
            runfolder.load_newest(tmp_path)
    for _ in range(50):
        path.write_bytes(data[: chosen.randrange(len(data))])
        with pytest.raises(ValueError, match="damaged"):
            runfolder.load_newest(tmp_path)
    path.write_bytes(data)
    state = runfolder.load_newest(tmp_path)
    assert state is not None and torch.equal(state["x"], torch.arange(40.0))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_full_disk_leaves_the_checkpoint_before_it(tmp_path: Path, share: float):
    state = {"step": 1, "x": torch.randn(5000)}
    first = runfolder.save(tmp_path, 1, state)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(first.stat().st_size * share), hard))
    try:
        with pytest.raises(OSError) as caught:
            runfolder.save(tmp_path, 2, state)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    told = str(caught.value)
    assert str(tmp_path / "step-00000002") in told and "20000 bytes needed" in told
    assert f"{shutil.disk_usage(tmp_path).free // 10**9}" in told and first.name in told
    assert sorted(path.name for path in tmp_path.iterdir()) == [first.name]
    loaded = runfolder.load_newest(tmp_path)
    assert loaded is not None and torch.equal(loaded["x"], state["x"])


def test_training_stops_on_a_full_disk_and_continues_when_there_is_room(tmp_path: Path):
    whole = run(tmp_path / "whole", config_of())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(record: Record) -> None:
        if record["step"] == 3:
            size = runfolder.checkpoints(tmp_path / "full")[-1].stat().st_size
            resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, hard))

    try:
        with pytest.raises(OSError, match=r"could not write .*step-00000004.*step-00000002-"):
            run(tmp_path / "full", config_of(), on_log=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert same(run(tmp_path / "full", config_of()), whole)


def test_a_log_without_room_says_which_file_it_is(tmp_path: Path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with RunLog(tmp_path, 0) as log:
        log.write({"step": 1})
        resource.setrlimit(resource.RLIMIT_FSIZE, (15, hard))
        try:
            with pytest.raises(OSError, match=METRICS):
                log.write({"step": 2})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        log.write({"step": 3})  # runs into the torn line
    assert read_metrics(tmp_path) == [{"step": 1}]


def test_a_folder_is_not_entered_twice_by_one_process(tmp_path: Path):
    with runfolder.locked(tmp_path), pytest.raises(BlockingIOError, match="this very process"):
        run(tmp_path, config_of())
    run(tmp_path, config_of())


def test_a_torn_last_line_and_lines_after_the_checkpoint_are_forgotten(tmp_path: Path):
    whole = run(tmp_path, config_of(), until=4)[0]
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"step": 5, "loss": 9.0}\n{"step": 6, "lo')
    assert timeless(read_metrics(tmp_path))[:4] == whole[:4]
    records, _ = run(tmp_path, config_of())
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6, 7]
    assert records[4]["loss"] != 9.0


def test_the_log_has_the_first_the_last_and_every_nth_step(tmp_path: Path):
    records, _ = run(tmp_path, config_of(11, log_every=4))
    assert [record["step"] for record in records] == [1, 4, 8, 11]
    assert records[-1].keys() == {"step", "loss", "lr", "grad_norm", "noise"}


def test_the_progress_line_says_how_long_it_will_take():
    record: Record = {
        "step": 120,
        "loss": 3.2145,
        "samples_per_second": 85.0,
        "seconds_left": 3751.2,
    }
    told = "step 120/1000, loss 3.2145, 85 samples/s, 1:02:31 left"
    assert progress_line(record, 1000) == told
    stream = io.StringIO()
    show = progress(1000, stream)
    show(record)
    show(record | {"step": 121})  # too soon after the other
    show(record | {"step": 1000})
    first, last = stream.getvalue().split("\r")[1:]
    assert first.startswith(told) and last.startswith("step 1000/") and last.endswith("\n")


@pytest.mark.parametrize(
    ("asked", "device", "steps", "done"),
    [
        ("auto", "cuda", LONG, True),
        ("auto", "cuda", LONG - 1, False),
        ("auto", "cpu", LONG, False),
        (True, "cpu", 1, True),
        (False, "cuda", LONG, False),
    ],
)
def test_long_runs_on_cuda_are_compiled_unless_the_config_says_otherwise(
    asked: Any, device: str, steps: int, done: bool
) -> None:
    config = TrainConfig(steps=steps, batch_size=1, lr=1e-3, compile=asked)
    assert compiles(config, torch.device(device)) is done
