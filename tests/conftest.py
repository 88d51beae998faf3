"""Settings and fixtures that every test shares."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# Read by torch at its import, which therefore must not have happened yet. Two threads are what
# the CI machine has, or one for each of two processes (pytest -n 2); passive waiting keeps them
# off the cores when something else runs too.
os.environ.setdefault("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("MINIBEIT3_PROFILE", "ci")
os.environ.setdefault("MPLBACKEND", "agg")

# A busy machine must not fail a property by its clock, and a failure must come back when rerun.
settings.register_profile("minibeit3", deadline=None, derandomize=True)
settings.load_profile("minibeit3")


@pytest.fixture(scope="session")
def reference() -> Path:
    """Folder of outputs of the released models ($MINIBEIT3_REFERENCE); skips where it is absent."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "reference"
    folder = Path(os.environ.get("MINIBEIT3_REFERENCE", beside))
    if not folder.is_dir():
        pytest.skip(f"no reference tensors at {folder}: set MINIBEIT3_REFERENCE to their folder")
    return folder
