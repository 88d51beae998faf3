"""Where results come from: told by the repository and the machine themselves."""

import json
import os
import shlex
import subprocess
from pathlib import Path

import pytest
import torch

from minibeit3 import provenance as origin
from minibeit3.provenance import provenance, write_results


def test_the_command_can_be_given_again_word_by_word() -> None:
    words = ["runs/a b", "--arms", "twice as many pairs;base"]
    told = provenance("tools/study.py", words)
    assert shlex.split(told["command"]) == ["python", "tools/study.py", *words]
    assert told["machine"]["cores"] == os.cpu_count()
    assert told["machine"]["torch"] == torch.__version__
    assert told["machine"]["instructions"] == torch.backends.cpu.get_cpu_capability()


def test_the_commit_is_that_of_the_code_and_uncommitted_files_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*words: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b.example"]
        run = subprocess.run(
            ["git", *who, *words], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return run.stdout.strip()

    monkeypatch.setattr(origin, "ROOT", tmp_path)
    (tmp_path / "code.py").write_text("a = 1\n")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    clean = origin.state()
    assert clean == {"commit": git("rev-parse", "HEAD"), "changed_files": 0}
    (tmp_path / "code.py").write_text("a = 2\n")
    (tmp_path / "run.log").write_text("not of the code\n")
    assert origin.state() == clean | {"changed_files": 1}


def test_results_make_their_folder_and_replace_the_old_ones(tmp_path: Path) -> None:
    path = tmp_path / "new" / "study.json"
    for runs in ([1], [1, 2]):
        write_results(path, {"runs": runs})
        assert json.loads(path.read_text()) == {"runs": runs}
