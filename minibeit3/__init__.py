"""minibeit3: BEiT-3 ("Image as a Foreign Language", arXiv 2208.10442) as a lab."""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minibeit3.backbones import build_backbone, count_parameters, preset
    from minibeit3.capture import capture
    from minibeit3.checkpoint import from_pretrained, save_pretrained
    from minibeit3.config import PRESETS, BEiT3Config
    from minibeit3.convert import load_released, to_released
    from minibeit3.routing import routing_table

__version__ = "0.1.0"

__all__ = [
    "PRESETS",
    "BEiT3Config",
    "build_backbone",
    "capture",
    "count_parameters",
    "from_pretrained",
    "load_released",
    "preset",
    "routing_table",
    "save_pretrained",
    "to_released",
]

_HOMES = {
    "backbones": ("build_backbone", "count_parameters", "preset"),
    "capture": ("capture",),
    "checkpoint": ("from_pretrained", "save_pretrained"),
    "config": ("PRESETS", "BEiT3Config"),
    "convert": ("load_released", "to_released"),
    "routing": ("routing_table",),
}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use: the command line starts without torch."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """For completion in notebooks."""
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Keeps the name `capture` for the function: Python gives it to the file of that name."""

    @property
    def capture(self) -> Any:
        return __getattr__("capture")

    @capture.setter
    def capture(self, module: ModuleType) -> None:
        """Ignore the file; it stays in sys.modules."""


sys.modules[__name__].__class__ = _Package
