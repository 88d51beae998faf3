"""minibeit3: BEiT-3 ("Image as a Foreign Language", arXiv 2208.10442) as a lab."""

from minibeit3.backbones import build_backbone, count_parameters, preset
from minibeit3.capture import capture
from minibeit3.config import PRESETS, BEiT3Config
from minibeit3.routing import routing_table

__version__ = "0.1.0"

__all__ = [
    "PRESETS",
    "BEiT3Config",
    "build_backbone",
    "capture",
    "count_parameters",
    "preset",
    "routing_table",
]
