"""The lab's terms in English and Chinese, looked up where a learner meets them."""

import json
from html import escape as esc
from typing import NamedTuple

from minibeit3.data.paths import data_root


class Term(NamedTuple):
    """A term of notebooks/glossary.json in both languages."""

    term: str
    zh: str
    en_means: str
    zh_means: str

    def __repr__(self) -> str:
        return f"{self.term}: {self.en_means}\n{self.zh}: {self.zh_means}"

    def _repr_html_(self) -> str:
        lines = (self.term, self.en_means), (self.zh, self.zh_means)
        return "<p>" + "<br>".join(f"<b>{esc(a)}</b>: {esc(b)}" for a, b in lines) + "</p>"


def term(name: str) -> Term:
    """The entry of a term or of one of its forms ("tokens"), in English or Chinese.

    ValueError that lists terms which are alike when there is none.
    """
    file = data_root().parent / "notebooks/glossary.json"
    entries = json.loads(file.read_text(encoding="utf-8"))["terms"]
    wanted = name.strip().lower()
    for entry in entries:
        if wanted in {form.lower() for form in (entry["term"], entry["zh"], *entry["forms"])}:
            return Term(*(entry[field] for field in Term._fields))
    parts = wanted.split() or [wanted]
    alike = [e["term"] for e in entries if any(part in e["term"].lower() for part in parts)]
    alike = alike or [e["term"] for e in entries]
    raise ValueError(f"no term {name!r} in the glossary; there are {', '.join(alike)}")
