"""Looking inside a model from outside: `with capture(model, "blocks.*.attn:pattern") as seen:`."""

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from minibeit3.attention import SharedAttention, attention_pattern
from minibeit3.embed import Streams
from minibeit3.released import DecoupledAttention
from minibeit3.visibility import Visibility


def joint_pattern(attn: nn.Module, x: Streams, *call: Any) -> tuple[Tensor, Streams]:
    """Weights (B, H, S, S) and output of an attention module, both by the formula.

    x, call: what the module was called with. ValueError for a mixed batch, which has no one
    pattern, and for a call that reads earlier tokens from a cache.
    """
    assert isinstance(attn, SharedAttention | DecoupledAttention)
    *route, seen, cache = call
    assert isinstance(seen, Visibility)
    streams = [s for s in attn.project(x, *route) if s is not None]
    if cache is not None or (len(streams) == 2 and any(len(s) != seen.pairs for s in streams)):
        raise ValueError("no one attention pattern: capture images, texts or pairs, without cache")
    visible = seen.pair if len(streams) == 2 else seen.text if x.image is None else seen.image
    qkv = torch.cat(streams, dim=1)
    q, k, v = rearrange(qkv, "B S (three H K) -> three B H S K", three=3, H=attn.heads)
    pattern = attention_pattern(q, k, visible)
    mixed = rearrange(pattern.to(v.dtype) @ v, "B H S K -> B S (H K)")
    image_len = 0 if x.image is None else x.image.shape[1]
    parts = mixed[:, :image_len], mixed[:, image_len:]
    both = Streams(*(None if s is None else p for s, p in zip(x, parts, strict=True)))
    return pattern, attn.finish(both, *route)


@contextmanager
def capture(
    model: nn.Module, *names: str, gradients: bool = False
) -> Iterator[dict[str, Tensor | Streams]]:
    """Record what modules return while the block runs; the hooks go away with it.

    names: module names ("blocks.3.ffn"; * stands for one part of a name), matched from any depth,
    so that a task's backbone needs no prefix; "blocks.*.attn:pattern" records the attention
    weights (B, H, S, S) that the module uses, recomputed from its input. The block gets a dict
    from the matched names to detached copies; a module that runs again keeps the last.
    gradients: True = values stay in the graph and patterns keep their .grad, for relevance.
    Raises ValueError when a name matches no module, on compiled modules (their hooks never
    fire), and at the end when a matched module never ran.
    """
    modules = dict(model.named_modules())
    compiled = [n for n, m in modules.items() if "_orig_mod" in n or m._compiled_call_impl]
    if hasattr(model, "_orig_mod") or compiled:
        raise ValueError("hooks never fire on a compiled model: capture the one before compile()")
    seen: dict[str, Tensor | Streams] = {}
    expected: set[str] = set()

    def record(key: str, module: nn.Module, call: Any, out: Any) -> Any:
        if not key.endswith(":pattern"):
            seen[key] = out if gradients else _detached(out)
            return None
        with torch.set_grad_enabled(gradients and torch.is_grad_enabled()):
            pattern, formula = joint_pattern(module, *call)
        if pattern.requires_grad:
            pattern.retain_grad()
        seen[key] = pattern
        return formula if gradients else None  # so that the recorded weights are the ones in use

    with ExitStack() as hooks:
        for name in names:
            for key, module in _matches(modules, name).items():
                expected.add(key)
                hook = module.register_forward_hook(partial(record, key))
                hooks.callback(hook.remove)
        yield seen
    if expected - seen.keys():
        raise ValueError(f"these never ran: {sorted(expected - seen.keys())}")


def _matches(modules: dict[str, nn.Module], name: str) -> dict[str, nn.Module]:
    """Modules by the part of their name that `name` matches; ValueError when there is none."""
    wanted, _, what = name.partition(":")
    pattern = re.compile(r"(?:^|\.)(" + re.escape(wanted).replace(r"\*", r"[^.]+") + ")$")
    kinds = SharedAttention | DecoupledAttention if what else nn.Module
    found = {}
    for path, module in modules.items():
        match = pattern.search(path)
        if match and isinstance(module, kinds):
            found[match[1] + name[len(wanted) :]] = module
    if what not in ("", "pattern") or not found:
        some = [n for n in modules if n.endswith((".attn", ".ffn"))][:4]
        raise ValueError(f"{name!r} matches nothing here: try {some}, or an .attn with ':pattern'")
    return found


def _detached(value: Any) -> Any:
    """A copy outside the graph: of a tensor, or of each of a module's streams."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    return type(value)(*(v if v is None else v.detach().clone() for v in value))
