"""The table beside the paper's and the glossary: what is missing is said, words are escaped."""

import pytest

from minibeit3 import lab
from minibeit3.lab import bands, paper

RUN = {"labels": None, "blind": None, "holdout": None, "limit": 500, "training_cpu_s": 1.0}


def study(recipe: str) -> dict | None:
    runs = [
        RUN
        | {"start": start, "steps": 9, "seed": seed, "figures": {"accuracy": value + seed / 100}}
        for start, value in (("pretrained", 0.5), ("scratch", 0.2))
        for seed in range(3)
    ]
    lines = {"references": {"500": {"question only/accuracy": 0.3}}}
    return {"runs": runs, **lines} if recipe == "scenes-vqa" else None


def test_the_table_compares_what_was_run_and_says_what_was_not(monkeypatch) -> None:
    monkeypatch.setattr(bands, "study_of", study)
    table = lab.beside_the_paper()
    assert {len(row) for row in table.rows} == {len(table.columns)}
    rows = {row[1]: row for row in table.rows}
    assert "84.0" in repr(table) and rows["VQAv2 84.0"][4] == "51% ± 1 (3 seeds, 9 steps)"
    assert rows["VQAv2 84.0"][5] == "21% ± 1: pretrained is above"
    assert rows["VQAv2 84.0"][6] == "question only 30%"
    assert rows["NLVR2 92.6"][4] == bands.MISSING == rows["NLVR2 92.6"][5]
    assert rows["NLVR2 92.6"][6] == "not measured"


def test_the_table_compares_runs_of_one_length_though_longer_ones_stand_alone(monkeypatch) -> None:
    longer = RUN | {"start": "pretrained", "steps": 90, "seed": 0, "figures": {"accuracy": 0.9}}

    def more(recipe: str, starts: tuple[str, ...]) -> dict | None:
        found = study(recipe)
        if found is None:
            return None
        runs = [run for run in found["runs"] if run["start"] in starts]
        return found | {"runs": [*runs, longer]}

    for starts, own in (
        (("pretrained", "scratch"), "51% ± 1 (3 seeds, 9 steps)"),
        (("pretrained",), "90% (1 seed, 90 steps)"),
        (("scratch",), "90% (1 seed, 90 steps)"),  # no run of its length: not compared
    ):
        monkeypatch.setattr(bands, "study_of", lambda recipe, starts=starts: more(recipe, starts))
        rows = {row[1]: row for row in lab.beside_the_paper().rows}
        assert rows["VQAv2 84.0"][4] == own
        assert (rows["VQAv2 84.0"][5] == bands.MISSING) == (len(starts) == 1)


def test_the_table_escapes_its_cells() -> None:
    assert "<b>" not in paper.Table(("<b>",), (("<b>",),))._repr_html_()


def test_a_term_is_found_by_its_forms_in_both_languages() -> None:
    assert lab.term(" Tokens ") == lab.term("token") == lab.term("词元")
    assert "patch" in repr(lab.term("token")) and "图像块" in repr(lab.term("token"))
    assert "&lt;s&gt;" in lab.term("token")._repr_html_()
    with pytest.raises(ValueError, match="dual encoder"):
        lab.term("best encoder")
