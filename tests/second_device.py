"""A second device without hardware: tensors that say they are elsewhere and compute on the CPU.

    with second_device():
        train(model, step, source, plan, folder, device="cuda")

What a GPU refuses is refused here too: operations on tensors of two devices, the CPU's generators,
numpy's arrays. So code that forgets to move a tensor fails where there is no GPU. Speed, kernels,
compilation and the numbers of a GPU are not tested by it.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

FAR, CPU = torch.device("meta"), torch.device("cpu")  # autograd in torch for CPUs knows no cuda
ops = torch.ops.aten
TAKE_BOTH = {ops.copy_.default, ops._to_copy.default}
TAKE_INDICES = {ops.index.Tensor, ops.index_put.default, ops.index_put_.default}
FUSED = "torch.optim.optimizer._get_fused_kernels_supported_devices"
MATH = 0  # of torch's choices of an attention kernel


class Far(Tensor):
    """A tensor on the second device; `near` holds its values, on the CPU."""

    near: Tensor

    @staticmethod
    def __new__(cls, near: Tensor) -> "Far":
        return Tensor._make_wrapper_subclass(
            cls,
            near.shape,
            strides=near.stride(),
            storage_offset=near.storage_offset(),
            dtype=near.dtype,
            device=FAR,
        )

    def __init__(self, near: Tensor) -> None:
        self.near = near

    def __repr__(self, **_: Any) -> str:
        return f"Far({self.near!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        flat = tree_flatten((args, kwargs))[0]
        if any(isinstance(x, torch.Generator) for x in flat):
            raise RuntimeError(f"{func}: a generator of the CPU for a tensor on {FAR}")
        given = args[:1] if func in TAKE_INDICES else args
        leaves = [x for x in tree_flatten((given, kwargs))[0] if isinstance(x, Tensor)]
        near = [x for x in leaves if not isinstance(x, Far) and x.dim()]  # numbers may join
        far = [x for x in flat if isinstance(x, Far)]
        if near and func not in TAKE_BOTH:
            raise RuntimeError(f"{func}: tensors on cpu and on {FAR}")
        if func is ops._fused_sdp_choice.default:
            return MATH
        to = kwargs.get("device")
        stays = to is None or is_far(to)
        if to is not None:
            kwargs["device"] = CPU
        out = func(*tree_map(plain, args), **tree_map(plain, kwargs))
        if func is ops._to_copy.default and not stays:
            return out.clone() if out is far[0].near else out
        if func is ops.copy_.default and not isinstance(args[0], Far):
            return args[0]
        out = tree_map(lambda x: Far(x) if isinstance(x, Tensor) else x, out) if stays else out
        return return_and_correct_aliasing(func, args, kwargs, out)


def plain(x: Any) -> Any:
    """The values of a Far, anything else as it is."""
    return x.near if isinstance(x, Far) else x


class ToFar(torch.autograd.Function):
    """A copy to the second device; the gradient comes back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return Far(x.detach().clone())

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        return plain(grad_outputs[0])


class Factories(TorchDispatchMode):
    """What torch's own code makes anew on the second device, without a tensor to tell it so."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if is_far(kwargs.get("device")) and not any(
            isinstance(x, Far) for x in tree_flatten((args, kwargs))[0]
        ):
            return Far(func(*args, **kwargs | {"device": CPU}))
        return func(*args, **kwargs)


def is_far(x: Any) -> bool:
    """Whether this names the second device."""
    if isinstance(x, str):
        x = torch.device(x)
    return isinstance(x, torch.device) and x.type in ("cuda", "meta")


class SecondDevice(TorchFunctionMode):
    """Torch without CUDA asks for its driver before it asks the tensor: this answers in time."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is Tensor.cuda:
            func, args = Tensor.to, (args[0], FAR)
        if func is Tensor.tolist:
            return args[0].cpu().tolist()
        if func is Tensor.to:
            return self.moved(*args, **kwargs)
        if is_far(kwargs.get("device")) and not any(isinstance(x, Far) for x in args):
            if isinstance(kwargs.get("generator"), torch.Generator):
                raise RuntimeError(f"{func}: a generator of the CPU for a tensor on {FAR}")
            out = func(*args, **kwargs | {"device": CPU, "requires_grad": False})
            return ToFar.apply(out)
        return func(*args, **kwargs)

    @staticmethod
    def moved(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Tensor.to in all its forms."""
        kwargs.pop("non_blocking", None)
        goals = [*args, kwargs.get("device"), kwargs.get("other")]
        device = next((g for g in goals if isinstance(g, str | torch.device)), None)
        other = next((g for g in goals if isinstance(g, Tensor)), None)
        dtypes = [g for g in (*args, kwargs.get("dtype")) if isinstance(g, torch.dtype)]
        if other is not None:
            device, dtypes = other.device, [other.dtype]
        if dtypes:
            x = Tensor.to(x, dtypes[0])
        if device is None or is_far(device) == isinstance(x, Far):
            return x
        return ToFar.apply(x) if is_far(device) else Tensor.cpu(x)


@contextmanager
def second_device() -> Iterator[None]:
    """Inside of it torch has a CUDA device of the kind that `Far` describes."""
    swap = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    told = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "synchronize": lambda *_: None,
        "is_bf16_supported": lambda *_, **__: False,
    }
    try:
        with (
            patch.multiple(torch.cuda, **told),
            patch(FUSED, lambda: ["cpu", FAR.type]),
            patch.object(torch.random, "fork_rng", lambda *_, **__: nullcontext()),
            patch.object(torch, "autocast", lambda *_, **__: nullcontext()),
            patch.object(torch, "inference_mode", torch.no_grad),  # a wrapper's version is counted
            Factories(),
            SecondDevice(),
        ):
            yield
    finally:
        torch.__future__.set_swap_module_params_on_conversion(swap)
