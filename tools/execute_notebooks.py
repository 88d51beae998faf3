"""Run notebooks and keep their outputs: python tools/execute_notebooks.py notebooks/*.ipynb

Widget state is never saved; the pictures that explorers leave beside it are. A dead kernel fails
at once.
"""

import argparse
import resource
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient


def execute(path: Path, keep: bool) -> str:
    """Run one notebook in place; a line on how long it took. Raises what a cell raises."""
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
    if keep:
        nbformat.write(notebook, path)
    wall, peak = time.perf_counter() - began, now.ru_maxrss / 1024
    return f"{path.name}: {wall:.0f} s, {cpu:.0f} CPU-s, peak {peak:.0f} MB"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("notebooks", nargs="+", type=Path)
    parser.add_argument("--check", action="store_true", help="run only, write nothing")
    given = parser.parse_args()
    for notebook in given.notebooks:
        print(execute(notebook, keep=not given.check), flush=True)
