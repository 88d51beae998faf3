"""The start cell: device, precision, profile, seed and versions, on one card."""

import os
import platform
from dataclasses import dataclass
from html import escape as esc
from importlib.metadata import version

import torch

from minibeit3.lab.figures import tell_figures

PROFILES = ("ci", "laptop", "gpu")
TITLES = {
    "00": "Start here: one photograph through the whole model",
    "01": "An image is a foreign language",
    "02": "Masking: what is hidden",
    "03": "Multiway block and expert routing",
    "04": "Masked data modelling: one loss, three streams, trained live",
    "05": "Does it use the other language? The gain, and the ablations the paper lacks",
    "06": "Attention and grounding",
    "07": "Vision encoder and language encoder",
    "08": "Fusion encoder: questions about pictures",
    "09": "Dual encoder: find pictures by text and texts by picture",
    "10": "Sequence-to-sequence: write what a picture shows",
    "11": "From tiny to 1.9 billion, and the released weights",
}


@dataclass(frozen=True)
class Session:
    """Where and how a notebook runs; `generator()` for everything random in it."""

    notebook: str
    profile: str
    device: str
    seed: int
    versions: dict[str, str]

    def generator(self, offset: int = 0) -> torch.Generator:
        """A fresh CPU generator of the notebook's seed."""
        return torch.Generator().manual_seed(self.seed + offset)

    def __repr__(self) -> str:
        return f"Notebook {self.notebook}: {TITLES.get(self.notebook, '')} (seed {self.seed})"

    def _repr_html_(self) -> str:
        rows = {"profile": self.profile, "device": self.device, "seed": str(self.seed)}
        cells = "".join(
            f"<tr><th style='text-align:left'>{esc(k)}</th><td>{esc(v)}</td></tr>"
            for k, v in (rows | self.versions).items()
        )
        return f"<b>{esc(repr(self))}</b><table>{cells}</table>"


def start(notebook: str, seed: int = 0) -> Session:
    """First line of every notebook. Profile: $MINIBEIT3_PROFILE, one of ci, laptop (default), gpu.

    Seeds torch's global generator too, and gives figures alt text. ValueError for an unknown
    profile, and for "gpu" without a CUDA device.
    """
    profile = os.environ.get("MINIBEIT3_PROFILE", "laptop")
    if profile not in PROFILES:
        raise ValueError(f"MINIBEIT3_PROFILE is {profile!r}: choose from {', '.join(PROFILES)}")
    if profile == "gpu" and not torch.cuda.is_available():
        raise ValueError("MINIBEIT3_PROFILE is 'gpu', but torch sees no CUDA device: use 'laptop'")
    torch.manual_seed(seed)
    tell_figures()
    versions = {"python": platform.python_version()}
    versions |= {name: version(name) for name in ("torch", "minibeit3", "ipywidgets")}
    return Session(notebook, profile, "cuda" if profile == "gpu" else "cpu", seed, versions)
