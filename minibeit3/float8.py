"""Matrix products of the blocks in float8, by torchao: an option for large models on new GPUs.

Parameters, moments and all between the products stay what they are. Each product rounds its two
factors to float8 just before (e4m3; gradients e5m2), scaled by the tensor's largest value.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from minibeit3.model import Block
from minibeit3.released import DecoupledBlock

MULTIPLE = 16  # of both sizes of a matrix, else the hardware has no float8 product
CAPABILITY = (8, 9)


@contextmanager
def float8_products(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Inside, the blocks multiply in float8 (see `exchange`); at the end all is as it was."""
    layers = exchange(model, device)
    try:
        yield
    finally:
        for name, layer in layers.items():
            model.set_submodule(name, layer)


def exchange(model: nn.Module, device: torch.device) -> dict[str, nn.Module]:
    """Put layers with float8 products in the place of the blocks' linear layers; those, by name.

    The new layers hold the same parameters under the same names. Where the hardware has no float8
    products (a CPU, a GPU before compute capability 8.9) the factors are rounded alike and the
    product is an ordinary one: slower, to see what the rounding does. ImportError names the
    package to install; ValueError: no layer has sizes that fit.
    """
    blocks = [b for b in model.modules() if isinstance(b, Block | DecoupledBlock)]
    inside = {id(m) for b in blocks for m in b.modules() if isinstance(m, nn.Linear) and fits(m)}
    layers = {name: m for name, m in model.named_modules() if id(m) in inside}
    if not layers:
        raise ValueError(
            f"float8 needs linear layers in blocks, both sizes multiples of {MULTIPLE}, and this "
            "model has none: choose another width, or dtype bfloat16"
        )
    logging.getLogger("torchao").setLevel(logging.ERROR)  # of kernels for other machines
    try:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    except ImportError as error:
        raise ImportError(
            "float8 needs torchao: pip install -c constraints.txt -e '.[float8]'"
        ) from error
    # Gradients of weights are sums over tokens, whose number is any: fill it up.
    config = Float8LinearConfig(pad_inner_dim=True, emulate=not supported(device))
    convert_to_float8_training(
        model, config=config, module_filter_fn=lambda _, name: name in layers
    )
    return layers


def fits(layer: nn.Linear) -> bool:
    """True where both sizes are such that float8 products exist."""
    return layer.in_features % MULTIPLE == 0 and layer.out_features % MULTIPLE == 0


def supported(device: torch.device) -> bool:
    """True where the hardware multiplies float8."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= CAPABILITY
