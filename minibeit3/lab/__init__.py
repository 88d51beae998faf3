"""What notebooks call: `lab.start`, exercises with checks and hints, and honest expectations."""

from minibeit3.lab.exercises import check, hint, score, use_reference
from minibeit3.lab.session import Session, start

__all__ = ["Session", "check", "hint", "score", "start", "use_reference"]
