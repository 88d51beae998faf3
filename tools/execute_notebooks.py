"""Run notebooks and keep their outputs: python tools/execute_notebooks.py notebooks/*.ipynb

Widget state is never saved; the pictures that explorers leave beside it are. A dead kernel fails
at once. After news in results/ alone, --refresh is enough: a quick run in the ci profile renews the
cells that nbval compares, which print the same in every profile.
"""

import argparse
import os
import resource
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

COMPARED = "nbval-check-output"


def execute(path: Path, keep: bool, refresh: bool = False) -> str:
    """Run one notebook in place; a line on how long it took. Raises what a cell raises.

    refresh: keep the new outputs of compared cells only.
    """
    notebook = nbformat.read(path, as_version=4)
    began, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    NotebookClient(
        notebook,
        timeout=600,  # seconds of a cell: slow machines train for minutes
        kernel_name="python3",
        store_widget_state=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(path.parent)}},
    ).execute()
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    notebook.metadata.pop("widgets", None)
    if refresh:
        before = nbformat.read(path, as_version=4)
        for old, new in zip(before.cells, notebook.cells, strict=True):
            if COMPARED in old.metadata.get("tags", ()):
                old.outputs = new.outputs
        notebook = before
    if keep:
        nbformat.write(notebook, path)
    wall, peak = time.perf_counter() - began, now.ru_maxrss / 1024
    return f"{path.name}: {wall:.0f} s, {cpu:.0f} CPU-s, peak {peak:.0f} MB"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("notebooks", nargs="+", type=Path)
    parser.add_argument("--check", action="store_true", help="run only, write nothing")
    parser.add_argument("--refresh", action="store_true", help="renew what nbval compares")
    given = parser.parse_args()
    if given.refresh:
        os.environ["MINIBEIT3_PROFILE"] = "ci"  # of the kernels
    for notebook in given.notebooks:
        print(execute(notebook, not given.check, given.refresh), flush=True)
