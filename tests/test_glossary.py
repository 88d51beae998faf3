"""The glossary: every word of the notebooks' objectives is a term in two languages, or plain."""

import json
import re
from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
GLOSSARY = json.loads((NOTEBOOKS / "glossary.json").read_text(encoding="utf-8"))
FORMS = {f.lower() for entry in GLOSSARY["terms"] for f in (entry["term"], *entry["forms"])}


def undefined(objective: str) -> set[str]:
    """Words of an objective that are neither in a term nor plain; longest terms are taken first."""
    text = f" {re.sub(r'[*:,.;()]+(?= |$)|[*]', ' ', objective.lower())} "
    for form in sorted(FORMS, key=len, reverse=True):
        text = re.sub(rf"(?<=\s){re.escape(form)}(?=\s)", " ", text)
    return set(text.split()) - set(GLOSSARY["plain"])


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_every_term_of_the_objectives_is_defined(path: Path) -> None:
    first = nbformat.read(path, as_version=4).cells[0].source
    found = set().union(*map(undefined, re.findall(r"^- (.*)$", first, re.M)))
    assert not found, (
        f"{sorted(found)}: define in notebooks/glossary.json, or add to its plain words"
    )


def test_an_unknown_term_would_be_found() -> None:
    assert undefined("**measure** the isotropy of codes") == {"isotropy"}


def test_entries_are_complete_in_both_languages_and_no_form_is_claimed_twice() -> None:
    forms = [f.lower() for entry in GLOSSARY["terms"] for f in (entry["term"], *entry["forms"])]
    assert len(forms) == len(set(forms)) and not set(forms) & set(GLOSSARY["plain"])
    for entry in GLOSSARY["terms"]:
        assert entry.keys() == {"term", "zh", "en_means", "zh_means", "forms"}
        for key in ("zh", "zh_means"):
            assert re.search(r"[\u4e00-\u9fff]", entry[key]), entry["term"]
        assert not re.search(r"[\u4e00-\u9fff]", entry["term"] + entry["en_means"])
    assert [e["term"].lower() for e in GLOSSARY["terms"]] == sorted(
        e["term"].lower() for e in GLOSSARY["terms"]
    )
