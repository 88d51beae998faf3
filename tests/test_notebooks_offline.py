"""The second gate: notebooks run by nbclient, without any network, and a dead kernel is seen.

Two small notebooks by default, for `make test` runs all of them by nbval already;
MINIBEIT3_OFFLINE=all runs all here too.
"""

import os
import socket
import time
from contextlib import nullcontext
from pathlib import Path

import nbformat
import pytest

from tests.offline import OUTSIDE, PROOF, started, ways

pytestmark = pytest.mark.slow

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
SMALL = ("00", "03")
CHOSEN = [
    path
    for path in NOTEBOOKS
    if os.environ.get("MINIBEIT3_OFFLINE") == "all" or path.name[:2] in SMALL
]


def written(folder: Path, source: str) -> Path:
    cells = [nbformat.v4.new_code_cell(source)]
    path = folder / "small.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


@pytest.mark.parametrize("path", CHOSEN, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom_without_a_network(path: Path, tmp_path: Path) -> None:
    ran = started(ways()[0], path, tmp_path, timeout=900)
    assert ran.returncode == 0, ran.stderr[-3000:]


@pytest.mark.parametrize("way", ["namespace as user", "namespace", "sockets"])
def test_a_notebook_that_asks_the_network_fails(way: str, tmp_path: Path) -> None:
    if way not in ways():
        pytest.skip(f"this system allows no {way}: there are {', '.join(ways())}")
    asking = f"import urllib.request\nurllib.request.urlopen('http://{OUTSIDE}', timeout=5)"
    ran = started(way, written(tmp_path, asking), tmp_path, timeout=120)
    assert ran.returncode != 0 and "URLError" in ran.stderr, ran.stderr[-2000:]
    assert ("this gate has no network" in ran.stderr) == (way == "sockets")


@pytest.mark.parametrize("answer", [TimeoutError("nobody"), "somebody", OSError("no way")])
def test_an_open_gate_is_noticed_whether_or_not_somebody_answers(
    answer: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect(address: tuple[str, int], timeout: float) -> object:
        assert address == (OUTSIDE, 80)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(socket, "create_connection", connect)
    closed = type(answer) is OSError
    with nullcontext() if closed else pytest.raises(RuntimeError, match="the gate is open"):
        exec(PROOF, {})


def test_a_dead_kernel_fails_in_seconds_and_not_at_the_timeout(tmp_path: Path) -> None:
    killed = written(tmp_path, "import os\nos._exit(1)")
    began = time.monotonic()
    ran = started(ways()[0], killed, tmp_path, timeout=280)  # a cell may take 300
    assert ran.returncode != 0 and "DeadKernelError" in ran.stderr, ran.stderr[-2000:]
    assert time.monotonic() - began < 120
