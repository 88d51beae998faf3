"""VQ-KD: numbers of the released tokenizer, what learns and what does not, files and errors."""

import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed
from torch.multiprocessing.spawn import spawn

from minibeit3.codebook import DEAD_AFTER, Codebook, cosine_k_means, nearest
from minibeit3.data.emoji import Emoji
from minibeit3.data.paths import data_root
from minibeit3.visual_tokenizer import (
    VQKD,
    VQKDConfig,
    code_usage,
    load_released_vqkd,
    preprocess,
)

FIXTURE = Path(__file__).parent / "fixtures" / "vqkd.safetensors"
TINY = VQKDConfig(
    image_size=16,
    patch=4,
    width=16,
    ffn_width=32,
    heads=2,
    depth=2,
    decoder_depth=1,
    codes=12,
    code_dim=6,
    teacher_dim=5,
)
State = dict[str, Tensor]


def images(batch: int = 4, seed: int = 0, size: int = 16) -> Tensor:
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def target(batch: int = 4, seed: int = 1) -> Tensor:
    return torch.randn(batch, 16, 5, generator=torch.Generator().manual_seed(seed))


def started(config: VQKDConfig = TINY) -> VQKD:
    """A tokenizer with large random weights, after its first training batch."""
    model = VQKD(config)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
        model.train()(images(), target())
    return model


def snapshot(model: VQKD) -> State:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def released_state(model: VQKD) -> State:
    """The released names and unused tensors around our weights."""
    state = {k: v for k, v in snapshot(model).items() if not k.startswith("codebook.")}
    codes = model.codebook.vectors.clone()
    counts = torch.zeros(len(codes))
    return state | {
        "quantize.embedding.weight": codes,
        "quantize.embedding.embed_avg": codes.clone(),
        "quantize.embedding.cluster_size": counts,
        "quantize.embedding.initted": torch.ones(1),
        "quantize.cluster_size": counts.clone(),
    }


def part(tensors: State, prefix: str) -> State:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def unit(n: int, width: int = 6, seed: int = 0) -> Tensor:
    vectors = torch.randn(n, width, generator=torch.Generator().manual_seed(seed))
    return F.normalize(vectors, dim=-1)


def codebook(codes: int = 12, *, decay: float = 0.99, restart_dead: bool = False) -> Codebook:
    book = Codebook(codes, 6, decay=decay, restart_dead=restart_dead, seed=0)
    book.start(unit(100))
    return book


# Numbers of the released code


def test_every_stage_reproduces_the_released_tokenizer(reference: Path) -> None:
    tensors = load_file(reference / "vqkd.safetensors")
    expected = part(tensors, "outputs/")
    model = load_released_vqkd(part(tensors, "state_dict/"), heads=4)
    image01 = tensors["inputs/image01"]

    def close(actual: Tensor, name: str) -> None:
        torch.testing.assert_close(actual, expected[name], atol=1e-5, rtol=0)

    with torch.no_grad():
        close(preprocess(image01, 32), "preprocessed")
        close(model.encode(image01), "to_quantizer")
        quantised = model.quantise(model.encode(image01))
        close(rearrange(quantised.vectors, "B (h w) C -> B C h w", h=4), "quantized")
        assert torch.equal(model.tokens(image01), expected["tokens"])
        close(model.features(image01), "decoded")
        close(model.decode(expected["tokens"]), "decoded")
        out = model(image01, expected["teacher_target"])
        close(out.loss, "loss")
        close(out.cosine_loss, "rec_loss")
        close(out.commitment_loss, "quant_loss")
        close(model.train()(image01, expected["teacher_target"]).loss, "train_loss")
        close(model.codebook.vectors, "codebook_after_ema")


def test_codebook_decoder_and_losses_reproduce_released_numbers() -> None:
    tensors = load_file(FIXTURE)
    state, expected = part(tensors, "state_dict/"), part(tensors, "outputs/")
    sizes = VQKDConfig(image_size=32, patch=8, width=48, ffn_width=192, heads=4, depth=1)
    model = VQKD(replace(sizes, decoder_depth=3, codes=64, code_dim=8, teacher_dim=24))
    model.decoder.load_state_dict(part(state, "decoder."))
    model.decode_task_layer.load_state_dict(part(state, "decode_task_layer."))
    model.codebook.vectors.copy_(state["quantize.embedding.weight"])
    model.codebook.started.fill_(True)

    raw = expected["to_quantizer"]
    vectors, tokens, commitment = model.quantise(raw)
    assert torch.equal(tokens, expected["tokens"])
    quantized = rearrange(vectors, "B (h w) C -> B C h w", h=4)
    torch.testing.assert_close(quantized, expected["quantized"], atol=1e-5, rtol=0)
    torch.testing.assert_close(commitment, expected["quant_loss"], atol=1e-5, rtol=0)
    with torch.no_grad():
        decoded = model.decode(tokens)
    torch.testing.assert_close(decoded, expected["decoded"], atol=1e-5, rtol=0)
    model.codebook.learn(F.normalize(raw.flatten(0, 1), dim=-1), tokens.flatten())
    after = expected["codebook_after_ema"]
    torch.testing.assert_close(model.codebook.vectors, after, atol=1e-5, rtol=0)


def test_k_means_start_and_first_step_reproduce_released_numbers() -> None:
    expected = part(load_file(FIXTURE), "kmeans/")
    vectors = F.normalize(rearrange(expected["z"], "B C h w -> (B h w) C"), dim=-1)
    book = Codebook(16, 8, decay=0.99, restart_dead=False, seed=5)
    book.start(vectors)
    tokens = nearest(vectors, book.vectors)
    assert torch.equal(tokens, expected["ind"])
    found = rearrange(book.vectors[tokens], "(B h w) C -> B C h w", B=2, h=6)
    torch.testing.assert_close(found, expected["zq"], atol=1e-5, rtol=0)
    loss = F.mse_loss(vectors, book.vectors[tokens])
    torch.testing.assert_close(loss, expected["loss"], atol=1e-5, rtol=0)
    book.learn(vectors, tokens)
    torch.testing.assert_close(book.vectors, expected["weight"], atol=1e-5, rtol=0)


def test_default_sizes_have_the_released_parameter_counts() -> None:
    with torch.device("meta"):
        model = VQKD(VQKDConfig())

    def count(name: str) -> int:
        return sum(p.numel() for p in model.get_submodule(name).parameters())

    assert count("encoder") == 85_789_440
    assert count("decoder") == 21_440_256
    assert (count("encode_task_layer"), count("decode_task_layer")) == (615_200, 984_320)


# The input contract


def test_tokens_of_an_image_do_not_depend_on_the_rest_of_the_batch() -> None:
    model = started().eval()
    dark = images(seed=3) / 300
    alone = torch.cat([model.tokens(image[None]) for image in dark])
    assert torch.equal(model.tokens(torch.cat([dark, images(seed=4)]))[:4], alone)


@pytest.mark.parametrize(
    "bad",
    [images() * 255, images() * 2 - 1, images() - 1e-3, torch.full((1, 3, 16, 16), torch.nan)],
)
def test_values_outside_zero_to_one_are_refused_with_the_range_named(bad: Tensor) -> None:
    with pytest.raises(ValueError, match=r"\[0, 1\], got"):
        started().tokens(bad)


def test_bytes_and_wrong_sizes_are_refused_with_the_fix_named() -> None:
    with pytest.raises(ValueError, match="divide by 255"):
        started().tokens((images() * 255).byte())
    with pytest.raises(ValueError, match=r"\(B, 3, 16, 16\), got \(4, 3, 20, 20\)"):
        started().tokens(images(size=20))
    with pytest.raises(ValueError, match=r"\(4, 16, 5\)"):
        started()(images(), target()[:, 1:])


@pytest.mark.parametrize("bad", [torch.full((1, 16), 12), torch.full((1, 16), -1)])
def test_decode_refuses_ids_outside_the_codebook(bad: Tensor) -> None:
    with pytest.raises(ValueError, match=r"\[0, 12\)"):
        started().decode(bad)


def test_decode_refuses_another_grid() -> None:
    with pytest.raises(ValueError, match="4 x 4 grid"):
        started().decode(torch.zeros(1, 15, dtype=torch.int64))


def test_an_empty_codebook_is_refused_instead_of_giving_token_zero() -> None:
    with pytest.raises(ValueError, match="codebook is empty"):
        VQKD(TINY).tokens(images())


def test_sizes_that_do_not_fit_are_refused() -> None:
    wrong: list[dict[str, object]] = [
        {"heads": 3},
        {"patch": 5},
        {"codes": 0},
        {"depth": 2.0},
        {"decay": 1.5},
        {"decay": float("nan")},
        {"restart_dead": 1},
    ]
    for change in wrong:
        with pytest.raises(ValueError, match=next(iter(change))):
            VQKDConfig(**(asdict(TINY) | change))  # pyright: ignore[reportArgumentType]


# What learns and what does not


def test_straight_through_gradient_of_a_code_reaches_its_normalised_vector_unchanged() -> None:
    model = started()
    raw = model.encode(images()).detach().requires_grad_()
    vectors = model.quantise(raw).vectors
    weight = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(2))
    (through,) = torch.autograd.grad((vectors * weight).sum(), raw)
    (direct,) = torch.autograd.grad((F.normalize(raw, dim=-1) * weight).sum(), raw)
    torch.testing.assert_close(through, direct)


def test_teacher_loss_alone_reaches_every_encoder_parameter() -> None:
    model = started()
    model(images(), target()).cosine_loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_codebook_is_no_parameter_and_gets_no_gradient() -> None:
    model = started()
    model(images(), target()).loss.backward()
    assert not [name for name, _ in model.named_parameters() if "codebook" in name]
    assert not model.codebook.vectors.requires_grad
    assert model.codebook.vectors.grad is None


def test_moving_average_turns_hit_codes_and_leaves_the_others_bit_identical() -> None:
    book = codebook(decay=0.9)
    before = book.vectors.clone()
    vectors = unit(40, seed=1)
    tokens = torch.arange(40) % 5
    book.learn(vectors, tokens)
    assert torch.equal(book.vectors[5:], before[5:])
    for code in range(5):
        mean = F.normalize(vectors[tokens == code].mean(0), dim=0)
        expected = F.normalize(0.9 * before[code] + 0.1 * mean, dim=0)
        torch.testing.assert_close(book.vectors[code], expected)


def test_codebook_keeps_unit_length_through_training() -> None:
    model = started(replace(TINY, decay=0.5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for seed in range(5):
        optimizer.zero_grad()
        model(images(seed=seed), target(seed=seed)).loss.backward()
        optimizer.step()
    lengths = model.codebook.vectors.norm(dim=-1)
    torch.testing.assert_close(lengths, torch.ones_like(lengths))


def test_codes_are_looked_up_before_the_codebook_moves() -> None:
    model = started(replace(TINY, decay=0.0))
    expected = model.quantise(model.encode(images(seed=9)))
    out = model(images(seed=9), target())
    assert torch.equal(out.tokens, expected.tokens)
    assert torch.equal(out.commitment_loss, expected.commitment_loss)


def test_first_training_batch_starts_the_codebook_in_float32_under_autocast() -> None:
    model = VQKD(replace(TINY, decay=1.0)).train()  # decay 1: what k-means found stays
    with torch.autocast("cpu", torch.bfloat16):
        raw = model.encode(images())
        out = model(images(), target())
    assert raw.dtype == out.loss.dtype == out.commitment_loss.dtype == torch.float32
    vectors = F.normalize(raw.detach().flatten(0, 1), dim=-1)
    expected = cosine_k_means(vectors, TINY.codes, torch.Generator().manual_seed(TINY.seed))
    torch.testing.assert_close(model.codebook.vectors, expected, atol=1e-6, rtol=0)


def test_k_means_fits_better_than_its_samples_and_copes_with_too_few_vectors() -> None:
    vectors = unit(500)
    chosen = torch.randperm(500, generator=torch.Generator().manual_seed(4))[:12]
    found = cosine_k_means(vectors, 12, torch.Generator().manual_seed(4))
    fit, start = ((vectors @ book.T).amax(1).mean() for book in (found, vectors[chosen]))
    assert fit > start + 0.05
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(12))
    few = cosine_k_means(vectors[:3], 12, torch.Generator().manual_seed(4))
    torch.testing.assert_close((few @ vectors[:3].T).amax(1), torch.ones(12))


def test_only_a_training_step_changes_anything() -> None:
    model = started()
    before, rng = snapshot(model), torch.get_rng_state()
    tokens = model.train().tokens(images(seed=5))
    model.eval()(images(seed=5), target())
    model.features(images(seed=5))
    model.decode(tokens)
    assert same(snapshot(model), before)
    assert torch.equal(torch.get_rng_state(), rng)
    model.train()(images(seed=5), target())
    assert not same(snapshot(model), before)


def test_dead_codes_are_reported_and_restart_only_on_request() -> None:
    vectors = F.normalize(unit(1) + 0.02 * unit(30, seed=2), dim=-1)  # one narrow cone
    kept, restarted = codebook(), codebook(restart_dead=True)
    before = kept.vectors.clone()
    for _ in range(DEAD_AFTER):
        for book in (kept, restarted):
            book.learn(vectors, nearest(vectors, book.vectors))
    dead = kept.dead()
    assert 0 < len(dead) < 12
    assert torch.equal(kept.vectors[dead], before[dead])
    assert not len(restarted.dead())
    assert (restarted.vectors[dead] @ vectors.T).amax(1).min() > 1 - 1e-6
    assert not VQKDConfig().restart_dead


def _learn_on_one_of_two(rank: int, folder: str) -> None:
    store = f"file://{folder}/store"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    book, vectors = codebook(), unit(40, seed=3)[rank::2]
    book.learn(vectors, nearest(vectors, book.vectors))
    save_file({"vectors": book.vectors}, f"{folder}/{rank}.safetensors")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_move_the_codebook_as_one_process_would(tmp_path: Path) -> None:
    spawn(_learn_on_one_of_two, (str(tmp_path),), nprocs=2)
    book, vectors = codebook(), unit(40, seed=3)
    book.learn(vectors, nearest(vectors, book.vectors))
    for rank in range(2):
        found = load_file(tmp_path / f"{rank}.safetensors")["vectors"]
        torch.testing.assert_close(found, book.vectors, atol=1e-6, rtol=0)


def test_code_usage_counts_and_perplexity() -> None:
    even = code_usage(torch.arange(8).repeat(3, 1), 8)
    assert (even.used, even.dead) == (1.0, 0)
    assert even.perplexity == pytest.approx(8)
    half = code_usage(torch.tensor([[0, 1, 1, 0]]), 8)
    assert (half.used, half.dead) == (0.25, 6)
    assert half.perplexity == pytest.approx(2)
    assert half.counts.tolist() == [2, 2, 0, 0, 0, 0, 0, 0]
    with pytest.raises(ValueError, match=r"\[0, 4\)"):
        code_usage(torch.arange(8), 4)


# Released checkpoints


def test_released_state_loads_from_a_dict_and_from_a_file(tmp_path: Path) -> None:
    model = started().eval()
    state = released_state(model) | {
        "teacher_model.x": torch.ones(1),
        "scaling_layer.y": torch.ones(1),
    }
    torch.save({"model": state, "epoch": 3}, tmp_path / "vqkd.pth")
    for source in (state, tmp_path / "vqkd.pth", str(tmp_path / "vqkd.pth")):
        loaded = load_released_vqkd(source, heads=2)
        assert loaded.config == TINY
        assert not loaded.training
        assert torch.equal(loaded.tokens(images()), model.tokens(images()))


def test_a_loaded_tokenizer_shares_no_memory_with_the_state_dict() -> None:
    state = released_state(started())
    before = {name: value.clone() for name, value in state.items()}
    loaded = load_released_vqkd(state, heads=2).train()
    with torch.no_grad():
        for parameter in loaded.parameters():
            parameter.zero_()
        loaded(images(), target())
    assert same(state, before)


def spoil_missing(state: State) -> str:
    del state["encoder.blocks.1.attn.q_bias"]
    return "missing encoder.blocks.1.attn.q_bias"


def spoil_unused(state: State) -> str:
    del state["quantize.embedding.embed_avg"]
    return "missing quantize.embedding.embed_avg"


def spoil_unexpected(state: State) -> str:
    state["encoder.blocks.0.gamma"] = torch.ones(1)
    return "unexpected encoder.blocks.0.gamma"


def spoil_shape(state: State) -> str:
    state["decoder.pos_embed"] = torch.zeros(1, 10, 16)
    return "decoder.pos_embed has shape (1, 10, 16), not (1, 17, 16)"


def spoil_value(state: State) -> str:
    state["encode_task_layer.0.weight"][3, 3] = torch.inf
    return "encode_task_layer.0.weight holds values that are not finite"


def spoil_storage(state: State) -> str:
    state["encoder.fc_norm.weight"] = torch.ones(1).expand(16)
    return "encoder.fc_norm.weight claims more values than its storage holds"


SPOIL: list[Callable[[State], str]] = [
    spoil_missing,
    spoil_unused,
    spoil_unexpected,
    spoil_shape,
    spoil_value,
    spoil_storage,
]


@pytest.mark.parametrize("spoil", SPOIL)
def test_a_tensor_that_does_not_fit_is_named(spoil: Callable[[State], str]) -> None:
    state = released_state(started())
    message = spoil(state)
    with pytest.raises(ValueError) as error:
        load_released_vqkd(state, heads=2)
    assert message in str(error.value)


def test_every_tensor_that_does_not_fit_is_listed_at_once() -> None:
    state = released_state(started())
    messages = [spoil(state) for spoil in SPOIL]
    with pytest.raises(ValueError, match="6 problems") as error:
        load_released_vqkd(state, heads=2)
    assert all(message in str(error.value) for message in messages)


def test_heads_that_no_tensor_shows_must_be_given_for_small_widths() -> None:
    with pytest.raises(ValueError, match="heads="):
        load_released_vqkd(released_state(started()))


def test_other_state_dicts_and_damaged_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"quantize\.embedding\.weight"):
        load_released_vqkd({"encoder.pos_embed": torch.zeros(1, 17, 16)})
    path = tmp_path / "a.pth"
    path.write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match=r"a\.pth"):
        load_released_vqkd(path)
    with pytest.raises(FileNotFoundError):
        load_released_vqkd(tmp_path / "absent.pth")


class Hostile:
    """Unpickling this would make a folder."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (self.path,)


def test_a_hostile_checkpoint_runs_nothing(tmp_path: Path) -> None:
    canary = tmp_path / "executed"
    torch.save({"model": Hostile(str(canary))}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="plain tensors"):
        load_released_vqkd(tmp_path / "a.pth")
    assert not canary.exists()


def test_positions_interpolate_only_when_asked_and_keep_the_class_row() -> None:
    state = released_state(started())
    ramp = torch.linspace(0, 1, 4)[None, :, None, None].expand(1, 4, 4, 16)
    state["encoder.pos_embed"][:, 1:] = rearrange(ramp, "1 h w D -> 1 (h w) D")
    larger = load_released_vqkd(state, heads=2, image_size=32)
    assert larger.tokens(images(size=32)).shape == (4, 64)
    table = larger.encoder.pos_embed.detach()
    assert torch.equal(table[:, :1], state["encoder.pos_embed"][:, :1])
    rows = rearrange(table[0, 1:], "(h w) D -> h w D", h=8)
    torch.testing.assert_close(rows, rows[:, :1].expand_as(rows))  # constant along a row
    assert (rows[1:, 0, 0] > rows[:-1, 0, 0]).all()  # still rising down the columns


# Own folders


def test_a_saved_tokenizer_comes_back_bit_identical(tmp_path: Path) -> None:
    model = started(replace(TINY, restart_dead=True, seed=3))
    model.save_pretrained(tmp_path / "a")
    loaded = VQKD.from_pretrained(tmp_path / "a")
    assert loaded.config == model.config
    assert same(snapshot(loaded), snapshot(model))
    assert not loaded.training
    assert sorted(os.listdir(tmp_path / "a")) == ["config.json", "model.safetensors"]


def test_half_precision_rounds_parameters_but_not_the_codebook(tmp_path: Path) -> None:
    model = started()
    model.save_pretrained(tmp_path, dtype=torch.float16)
    loaded = VQKD.from_pretrained(tmp_path)
    assert torch.equal(loaded.codebook.vectors, model.codebook.vectors)
    expected = model.encoder.pos_embed.half().float()
    assert torch.equal(loaded.encoder.pos_embed, expected)
    assert loaded.encoder.pos_embed.dtype == torch.float32


def test_damaged_folders_are_refused_with_the_field_or_tensor_named(tmp_path: Path) -> None:
    started().save_pretrained(tmp_path)
    config, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    good, tensors = config.read_text(), load_file(weights)
    for text, message in [
        (good.replace('"patch"', '"patsch"'), "patsch"),
        (good.replace('"vqkd"', '"beit3"'), "vqkd"),
        (good.replace('"depth": 2', '"depth": 1000000000'), "depth 1000000000"),
        (good.replace('"codes": 12', '"codes": 13'), r"codebook\.vectors has shape"),
        (good[:30], "not JSON"),
    ]:
        config.write_text(text)
        with pytest.raises(ValueError, match=message):
            VQKD.from_pretrained(tmp_path)
    config.write_text(good)
    del tensors["encoder.cls_token"]
    save_file(tensors, weights)
    with pytest.raises(ValueError, match=r"missing encoder\.cls_token"):
        VQKD.from_pretrained(tmp_path)
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(ValueError, match="damaged"):
        VQKD.from_pretrained(tmp_path)


def test_equal_seeds_give_equal_tokenizers_whatever_the_global_generator_holds() -> None:
    torch.manual_seed(1)
    first = snapshot(VQKD(TINY))
    torch.manual_seed(2)
    assert same(snapshot(VQKD(TINY)), first)
    assert not same(snapshot(VQKD(replace(TINY, seed=1))), first)


def test_the_committed_tokenizer_is_small_and_spreads_a_new_vendor_over_many_codes() -> None:
    folder = data_root() / "checkpoints" / "vqkd"
    model = VQKD.from_pretrained(folder)
    drawings = Emoji(split="test", size=model.config.image_size)
    pictures = torch.stack([drawings[index].image for index in range(0, 1512, 12)])  # pyright: ignore[reportArgumentType, reportCallIssue]
    usage = code_usage(model.tokens(pictures / 255), model.config.codes)
    assert sum(file.stat().st_size for file in folder.iterdir()) < 3e6
    assert usage.used > 0.4
    assert usage.perplexity > 50
