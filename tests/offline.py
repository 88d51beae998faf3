"""Execute notebooks without a network: python tests/offline.py namespace notebooks/00_*.ipynb

nbval, the first gate, waits for its timeout when a kernel dies; nbclient looks every second. Way
"namespace": everything runs in a network namespace that has its own loopback, over which kernels
speak, and nothing else. Way "sockets", where the system forbids that: the kernel's sockets refuse
addresses elsewhere. Nothing is written.
"""

import fcntl
import os
import socket
import struct
import subprocess
import sys
from functools import cache
from pathlib import Path

OUTSIDE = "192.0.2.1"  # a documentation address (RFC 5737): nobody answers, nobody may ask
SIOCSIFFLAGS, IFF_UP = 0x8914, 1
WAYS = {
    "namespace as user": ["unshare", "--map-root-user", "--net"],
    "namespace": ["unshare", "--net"],
    "sockets": [],
}
BLOCK = """
import socket
def _refuse(self, address, *rest):
    if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1"):
        raise OSError("this gate has no network")
    return _connect(self, address, *rest)
_connect, socket.socket.connect = socket.socket.connect, _refuse
socket.socket.connect_ex = _refuse
"""
PROOF = f"""
import socket
try:
    socket.create_connection(("{OUTSIDE}", 80), timeout=2)
except TimeoutError as error:
    raise RuntimeError("packets leave: the gate is open") from error
except OSError:
    pass
else:
    raise RuntimeError("somebody answered: the gate is open")
"""


@cache
def ways() -> tuple[str, ...]:
    """The ways that this machine allows, the strictest first."""

    def works(prefix: list[str]) -> bool:
        try:
            return subprocess.run([*prefix, "true"], capture_output=True).returncode == 0
        except FileNotFoundError:
            return False

    return tuple(name for name, prefix in WAYS.items() if works(prefix))


def started(
    way: str, notebook: Path, folder: Path, timeout: int
) -> subprocess.CompletedProcess[str]:
    """Run one notebook in a process of its own, ended after `timeout` seconds.

    folder: for what learners' progress and kernels leave behind.
    """
    kept = {"MINIBEIT3_PROGRESS": str(folder / "progress.json"), "HOME": str(folder)}
    command = [*WAYS[way], sys.executable, __file__, way, str(notebook)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, env=os.environ | kept
    )


def execute(way: str, path: Path) -> None:
    """Run a notebook; raises what a cell raises, and DeadKernelError soon after a kernel's end."""
    import nbformat
    from nbclient import NotebookClient

    if way != "sockets":
        loopback()
    notebook = nbformat.read(path, as_version=4)
    for source in (PROOF, BLOCK if way == "sockets" else ""):
        notebook.cells.insert(0, nbformat.v4.new_code_cell(source))
    NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        store_widget_state=False,
        resources={"metadata": {"path": str(path.parent)}},
    ).execute()


def loopback() -> None:
    """Switch on the namespace's own loopback, which is new and down (netdevice(7))."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sh14x", b"lo", IFF_UP)
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, request)


if __name__ == "__main__":
    execute(sys.argv[1], Path(sys.argv[2]))
