"""Shipping a pretraining: logs stay small and whole, earlier runs stay where the model grew on."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from test_finetune import CONFIG

from minibeit3.backbones import build_backbone
from minibeit3.batches import generator_of
from minibeit3.checkpoint import from_pretrained, save_pretrained
from minibeit3.objective import MaskedDataModel
from minibeit3.text_tokenizer import TextTokenizer

TOOLS = Path(__file__).parents[1] / "tools"


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(TOOLS))
    return importlib.import_module("ship_pretrained")


@pytest.mark.parametrize("count", [1, 150, 200, 201, 999])
def test_a_shipped_log_is_small_and_keeps_both_ends(tool: Any, count: int) -> None:
    records = [{"step": step} for step in range(count)]
    kept = tool.thinned(records)
    assert kept[0] == records[0] and kept[-1] == records[-1]
    assert min(count, tool.RECORDS // 2) <= len(kept) <= tool.RECORDS + 1


def test_appended_runs_follow_those_that_were_shipped(
    tool: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = MaskedDataModel(build_backbone(CONFIG, generator_of(0)))
    for number in (1, 2):
        save_pretrained(model, tmp_path / f"run{number}/model", TextTokenizer.lab())
    state = {"step": 4, "config": {"steps": 9}}
    monkeypatch.setattr(tool.runfolder, "load_newest", lambda run: state)
    log = [{"step": step, "cpu_seconds": 2.0 * step} for step in (2, 4, 6)]
    monkeypatch.setattr(tool, "read_metrics", lambda run: log)
    out = tmp_path / "shipped"
    for number, more in ((1, []), (2, ["--append"])):
        given = [str(tmp_path / f"run{number}"), "--out", str(out), *more]
        given += ["--command", f"command {number}", "--commit", "abc"]
        monkeypatch.setattr(sys, "argv", ["ship_pretrained.py", *given])
        tool.main()
    told = json.loads((out / "training.json").read_text())
    assert [phase["command"] for phase in told["phases"]] == ["command 1", "command 2"]
    assert [phase["log"] for phase in told["phases"]] == ["metrics-1.jsonl", "metrics-2.jsonl"]
    assert told["cpu_seconds"] == 16.0  # both runs to step 4, without what came after it
    lines = (out / "metrics-2.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 4]
    assert isinstance(from_pretrained(out), MaskedDataModel)


def test_the_tenth_run_comes_after_the_ninth(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(TOOLS))
    report = importlib.import_module("report_pretraining")
    for number in range(1, 12):
        (tmp_path / f"metrics-{number}.jsonl").write_text(f'{{"step": {number}}}\n')
    records, begins = report.records_of(tmp_path)
    ends = [number * (number + 1) // 2 for number in range(1, 12)]
    assert [record["step"] for record in records] == ends and begins == ends[:-1]
