"""How fast, beside what: the same work by this package, by its peers and by the bare products.

All contestants take turns in one process, round after round; a ratio is the median over rounds of
two times of one round. On a CPU a time is the process's CPU time (others' load does not count), on
CUDA the wall's. Times of different runs are not to be compared.

Letters: B samples, T text tokens, D width, F FFN width, n hidden places.
"""

import gc
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minibeit3.attention import joint_attention
from minibeit3.backbones import build_backbone
from minibeit3.config import BEiT3Config
from minibeit3.embed import Streams
from minibeit3.float8 import exchange
from minibeit3.info import Mode, forward_flops, training_flops
from minibeit3.masking import IMAGE_RATIO, PAIR_TEXT_RATIO, TEXT_RATIO, mask_patches
from minibeit3.modes.seq2seq import ImageCaptioner
from minibeit3.objective import MaskedBatch, MaskedDataModel, masked_data_loss
from minibeit3.precision import autocast
from minibeit3.visibility import Visibility

Run = Callable[[], Any]
Peer = Callable[..., Mapping[str, Run]]
"""f(work, config, batch, dtype): runs by what follows the peer's name; none of unknown work."""
STEPS = ("step", "gradient")
WORKS = (*get_args(Mode), *STEPS, "caption")
WORDS = 20  # of a caption
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16"}


def made_batch(config: BEiT3Config, batch: int, text_length: int, device: str) -> MaskedBatch:
    """`batch` images, texts and pairs of noise, hidden by the paper's ratios, nothing padded.

    The number of hidden places of a row is fixed, so that compiled code meets one shape only.
    """
    c, g = config, torch.Generator().manual_seed(0)
    image = torch.randn(2 * batch, c.channels, c.image_size, c.image_size, generator=g)
    words = torch.randint(4, c.vocab_size, (2 * batch, text_length), generator=g)
    patches = mask_patches(2 * batch, c.grid, IMAGE_RATIO, g)
    ratio = torch.tensor([PAIR_TEXT_RATIO, TEXT_RATIO]).repeat_interleave(batch)[:, None]
    rank = torch.rand(words.shape, generator=g).argsort(dim=1).argsort(dim=1)
    hidden = rank < (ratio * text_length).round().clamp(min=1)
    codes = torch.randint(c.visual_vocab_size, patches.shape, generator=g)
    shown = words.masked_fill(hidden, 3)
    return MaskedBatch(image, patches, codes, shown, None, hidden, words, batch).to(device)


def work_flops(config: BEiT3Config, work: str, batch: int, text_length: int) -> int | None:
    """Of the backbone, without heads, by count; None for captions."""
    modes: tuple[Mode, ...] = ("image", "text", "pair")
    if work in STEPS:
        return batch * sum(training_flops(config, mode, text_length) for mode in modes)
    return batch * forward_flops(config, work, text_length) if work in modes else None  # pyright: ignore[reportArgumentType]


def inputs(work: str, b: MaskedBatch) -> dict[str, Tensor]:
    """What a forward pass of one mode takes, by the backbone's names."""
    assert b.image is not None and b.text is not None
    image, text = b.image[b.pairs :], b.text[: b.pairs]
    given = {"image": {"image": image}, "text": {"text": text}}
    return given.get(work, {"image": image, "text": text})


def learn(model: nn.Module, loss: Callable[[], Tensor], dtype: torch.dtype, work: str) -> Run:
    """Forward, backward and, unless the work is "gradient", AdamW."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    device = next(model.parameters()).device

    def run() -> None:
        with autocast(device, dtype):
            value = loss()
        value.backward()
        if work == "step":
            optimiser.step()
        optimiser.zero_grad()

    return run


class FixedPlaces(nn.Module):
    """The loss of masked data modelling with hidden places as indices: no shape depends on data."""

    def __init__(self, model: MaskedDataModel, b: MaskedBatch) -> None:
        super().__init__()
        assert b.hidden_patches is not None and b.hidden_words is not None
        assert b.codes is not None and b.words is not None
        self.model, self.batch = model, b
        masks = F.pad(b.hidden_patches, (1, 0)), b.hidden_words
        self.at = [mask.flatten().nonzero()[:, 0] for mask in masks]
        self.targets = b.codes[b.hidden_patches], b.words[b.hidden_words]

    def forward(self) -> Tensor:
        m, b = self.model, self.batch
        x = m.backbone.embed(b.image, b.text, b.hidden_patches)
        x = m.backbone.encode(x, pairs=b.pairs)
        heads, total = (m.mim_head, m.mlm_head), torch.zeros((), device=self.at[0].device)
        for stream, head, at, truth in zip(x, heads, self.at, self.targets, strict=True):
            assert stream is not None
            logits = head(stream.flatten(0, 1).index_select(0, at))
            total = total + F.cross_entropy(logits.float(), truth)
        return total


class Bound(nn.Module):
    """The matrix products and attention calls of the backbone and the heads, and nothing else."""

    def __init__(self, config: BEiT3Config, b: MaskedBatch) -> None:
        super().__init__()
        c, self.heads, self.batch = config, config.heads, b
        sizes = [c.width, 3 * c.width], [c.width, c.width], [c.width, c.ffn_width, c.width]

        def layer() -> nn.ModuleList:
            each = [nn.Linear(i, o, bias=False) for size in sizes for i, o in pairwise(size)]
            return nn.ModuleList(each)

        self.image, self.text = (nn.ModuleList(layer() for _ in range(c.depth)) for _ in range(2))
        self.vision_head = nn.Linear(c.width, c.visual_vocab_size)
        self.word_head = nn.Linear(c.width, c.vocab_size)
        self.config = config

    def encode(self, x: Streams, pairs: int) -> Streams:
        """Both streams through all layers."""
        seen = Visibility(pairs, None, None, None)
        for image, text in zip(self.image, self.text, strict=True):
            layers: Any = (image, text)
            qkv = (None if s is None else e[0](s) for e, s in zip(layers, x, strict=True))
            mixed = joint_attention(Streams(*qkv), seen, self.heads)
            x = Streams(
                *(
                    None if s is None else e[3](e[2](e[1](s)))
                    for e, s in zip(layers, mixed, strict=True)
                )
            )
        return x

    def tokens(self, images: int, texts: int, text_length: int) -> Streams:
        """Noise in the place of embeddings; 0 = no such stream."""
        c, device = self.config, self.vision_head.weight.device
        return Streams(
            torch.randn(images, c.image_tokens, c.width, device=device) if images else None,
            torch.randn(texts, text_length, c.width, device=device) if texts else None,
        )

    def loss(self) -> Tensor:
        """Something to go back from, by way of the logits at hidden places."""
        b = self.batch
        assert b.image is not None and b.text is not None
        assert b.hidden_patches is not None and b.hidden_words is not None
        x = self.encode(self.tokens(len(b.image), len(b.text), b.text.shape[1]), b.pairs)
        assert x.image is not None and x.text is not None
        image = self.vision_head(x.image[:, 1:][b.hidden_patches])
        return image.float().mean() + self.word_head(x.text[b.hidden_words]).float().mean()


def contestants(
    work: str,
    config: BEiT3Config,
    batch: int,
    text_length: int,
    device: str = "cpu",
    dtypes: tuple[torch.dtype, ...] = (torch.float32,),
    compiled: bool = False,
    peers: Mapping[str, Peer] | None = None,
    eight: bool = False,
) -> dict[str, Run]:
    """By name, everything that does this work; each has its own weights.

    work: image, text, pair (forward), step (a mixed training step of 3 `batch` samples), gradient
    (a step that changes nothing: large models fit side by side) or caption (20 words). eight: a
    step with float8 products too. ValueError for unknown work.
    """
    if work not in WORKS:
        raise ValueError(f"unknown work {work!r}: choose from {', '.join(WORKS)}")
    b, found = made_batch(config, batch, text_length, device), {}
    for dtype in dtypes:
        name = NAMES[dtype]
        if work == "caption":
            runs = captions(config, b, device, dtype)
            found |= {f"minibeit3 {name}, {how}": run for how, run in runs.items()}
        else:
            for how in ("", " compiled") if compiled else ("",):
                found[f"minibeit3 {name}{how}"] = own(work, config, b, device, dtype, bool(how))
            if work in STEPS and eight:
                run = own(work, config, b, device, dtype, compiled, eight=True)
                found[f"minibeit3 {name}, float8{' compiled' * compiled}"] = run
            if work in STEPS:
                whole = own(work, config, b, device, dtype, False, pruned=False)
                found[f"minibeit3 {name}, whole last block"] = whole
            found[f"bound {name}"] = bound(work, config, b, device, dtype)
        for peer, make in (peers or {}).items():
            runs = make(work, config, b, dtype)
            found |= {f"{peer} {name}{how}": run for how, run in runs.items()}
    return found


def own(
    work: str,
    config: BEiT3Config,
    b: MaskedBatch,
    device: str,
    dtype: torch.dtype,
    compiled: bool,
    pruned: bool = True,
    eight: bool = False,
) -> Run:
    """A run of this package; compiled steps have no stochastic depth (drawn on the CPU)."""
    torch.manual_seed(0)
    if work in STEPS:
        config = replace(config, drop_path=0.0) if compiled else config
        model = MaskedDataModel(build_backbone(config)).to(device).train()
        if eight:
            exchange(model, torch.device(device))
        if not pruned:  # who looks into the last block gets the whole one
            model.backbone.blocks[-1].register_forward_hook(lambda *_: None)
        if compiled:
            return learn(model, torch.compile(FixedPlaces(model, b)), dtype, work)
        return learn(model, lambda: masked_data_loss(*model(b))[0], dtype, work)
    model: Any = build_backbone(config).to(device).eval()
    runner, given = torch.compile(model) if compiled else model, inputs(work, b)
    return forward(lambda: runner(**given), device, dtype)


def bound(work: str, config: BEiT3Config, b: MaskedBatch, device: str, dtype: torch.dtype) -> Run:
    """A run of the bare products."""
    model = Bound(config, b).to(device)
    if work in STEPS:
        return learn(model, model.loss, dtype, work)
    assert b.text is not None
    images, texts = b.pairs * (work != "text"), b.pairs * (work != "image")
    x = model.tokens(images, texts, b.text.shape[1])
    return forward(lambda: model.encode(x, b.pairs * (work == "pair")), device, dtype)


def forward(call: Run, device: str, dtype: torch.dtype) -> Run:
    """The call without gradients."""

    def run() -> Any:
        with torch.no_grad(), autocast(torch.device(device), dtype):
            return call()

    return run


def captions(
    config: BEiT3Config, b: MaskedBatch, device: str, dtype: torch.dtype = torch.float32
) -> dict[str, Run]:
    """Captions of `WORDS` words: greedy, by three beams, and greedy without the cache."""
    torch.manual_seed(0)
    captioner = ImageCaptioner(build_backbone(config)).to(device).eval()
    assert b.image is not None
    image, limit = b.image[b.pairs :], WORDS + 3
    silence(captioner.mlm_head, captioner.settings.values())

    def without_cache() -> list[list[int]]:
        ids = torch.full((len(image), 1), captioner.bos_id, device=device)
        mask = torch.full_like(ids, captioner.mask_id)
        for _ in range(WORDS):
            logits = captioner(image, torch.cat([ids, mask], dim=1))[:, -1]
            ids = torch.cat([ids, logits.argmax(dim=-1, keepdim=True)], dim=1)
        return ids[:, 1:].tolist()

    runs = {
        "greedy": lambda: captioner.generate(image, limit, beams=1),
        "3 beams": lambda: captioner.generate(image, limit, beams=3),
        "greedy without cache": without_cache,
    }
    return {name: forward(run, device, dtype) for name, run in runs.items()}


@torch.no_grad()
def silence(head: nn.Linear, specials: Iterable[int]) -> None:
    """Never guess these: random weights must not end a caption early."""
    for special in specials:
        head.bias[special] = -1e4


def in_turns(runs: Mapping[str, Run], rounds: int, cuda: bool) -> dict[str, list[float]]:
    """Seconds of every run in every round, after one round that does not count."""
    clock = time.perf_counter if cuda else time.process_time
    times: dict[str, list[float]] = {name: [] for name in runs}
    gc.collect()
    for number in range(rounds + 1):
        for name, run in runs.items():
            if cuda:
                torch.cuda.synchronize()
            began = clock()
            run()
            if cuda:
                torch.cuda.synchronize()
            if number:
                times[name].append(clock() - began)
    return times


def table(
    times: Mapping[str, list[float]],
    flops: int | None,
    ceilings: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """One row per contestant: median seconds, its speed as a multiple of each other's.

    ceilings: GFLOP/s that matrix products reach here, by the name of the type.
    """
    rows = []
    for name, mine in times.items():
        row: dict[str, Any] = {"name": name, "seconds": statistics.median(mine)}
        if flops is not None:
            speed = row["gflops_per_second"] = flops / row["seconds"] / 1e9
            limit = next((v for k, v in (ceilings or {}).items() if k in name), None)
            if limit is not None:
                row["share_of_matmul"] = speed / limit
        row["times_as_fast_as"] = {
            other: statistics.median(b / a for a, b in zip(mine, theirs, strict=True))
            for other, theirs in times.items()
            if other != name
        }
        rows.append(row)
    return rows
