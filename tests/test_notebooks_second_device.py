"""Notebooks that train do so on the device of their session, shown without a GPU (`second_device`).

One by default; MINIBEIT3_SECOND_DEVICE=all runs all that train. The budgets are those of profile
"ci". That a real GPU computes the same and how fast, only a GPU shows.
"""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

pytestmark = pytest.mark.slow

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
TRAIN = ("04", "07", "08", "09", "10")
CHOSEN = TRAIN if os.environ.get("MINIBEIT3_SECOND_DEVICE") == "all" else ("09",)
BEFORE = f"""
import os, sys
os.environ["MINIBEIT3_PROFILE"] = "ci"
sys.path.insert(0, {str(Path(__file__).parent)!r})
from dataclasses import replace
import torch
from minibeit3 import lab, train
from second_device import Far, second_device
_start, _backward, trained_on = lab.start, train.backward, []
lab.start = lambda *given: replace(_start(*given), device="cuda")
def _noted(model, *rest):
    trained_on.append(all(isinstance(p.data, Far) for p in model.parameters()))
    return _backward(model, *rest)
train.backward = _noted
torch.compile = lambda model, *_, **__: model
_device = second_device()
_device.__enter__()
"""
AFTER = "assert trained_on and all(trained_on), trained_on"


@pytest.mark.parametrize(
    "path", [p for p in NOTEBOOKS if p.name[:2] in CHOSEN], ids=lambda path: path.stem
)
def test_a_notebook_trains_on_the_device_of_its_session(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(BEFORE))
    notebook.cells.append(nbformat.v4.new_code_cell(AFTER))
    where = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, timeout=900, kernel_name="python3", resources=where).execute()
