"""What notebooks call: `lab.start`, exercises with checks and hints, and honest expectations."""

from minibeit3.lab.bands import Measured, band, counted, known, lines, told, verdict
from minibeit3.lab.exercises import check, hint, score, use_reference
from minibeit3.lab.glossary import term
from minibeit3.lab.paper import beside_the_paper
from minibeit3.lab.session import Session, start

__all__ = [
    "Measured",
    "Session",
    "band",
    "beside_the_paper",
    "check",
    "counted",
    "hint",
    "known",
    "lines",
    "score",
    "start",
    "term",
    "told",
    "use_reference",
    "verdict",
]
