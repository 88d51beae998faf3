"""Slides from the notebooks: python tools/build_slides.py [--out notebooks/slides] [NB ...]

One page per notebook that needs no network: arrow keys turn it, printing gives one slide a page.
The tag "slide" starts a slide, "slide-more" adds to the one before. Text is shown without tables
and answers, code as its figures and printed lines. Notebooks without the tag are left out.
"""

import argparse
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

import nbformat
from nbconvert.filters.markdown_mistune import markdown2html_mistune
from nbformat import NotebookNode

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
LEFT_OUT = re.compile(r"<details>.*?</details>|^\|.*$\n?", re.DOTALL | re.M)
STYLE = """
body { margin: 0; font: 22px/1.45 system-ui, sans-serif; color: #222; background: #fff; }
section { display: none; box-sizing: border-box; min-height: 100vh; padding: 4vh 7vw 8vh; }
section.now { display: block; }
h1, h2, h3 { line-height: 1.2; } img { width: 86vw; height: 70vh; object-fit: contain; }
pre { font-size: 17px; overflow-x: auto; } a.anchor-link { display: none; }
footer { position: fixed; right: 2vw; bottom: 2vh; color: #666; font-size: 16px; }
@media print { section { display: block; break-after: page; } footer { display: none; } }
"""
SCRIPT = """
const all = [...document.querySelectorAll("section")], page = document.querySelector("footer");
const steps = {ArrowRight: 1, ArrowDown: 1, PageDown: 1, " ": 1, ArrowLeft: -1, ArrowUp: -1,
  PageUp: -1, Home: -1e9, End: 1e9};
let at = Number(location.hash.slice(1)) || 1;
function show() {
  at = Math.min(Math.max(at, 1), all.length);
  all.forEach((one, i) => one.classList.toggle("now", i + 1 === at));
  page.textContent = `${at} / ${all.length}`;
  history.replaceState(null, "", "#" + at);
}
addEventListener("keydown", e => {
  if (e.key in steps) { e.preventDefault(); at += steps[e.key]; show(); }
});
show();
"""


def shown(cell: NotebookNode, about: str) -> str:
    """The HTML of one cell; about: what its figures belong to, for those who cannot see them."""
    if cell.cell_type == "markdown":
        return markdown2html_mistune(LEFT_OUT.sub("", cell.source))
    parts = []
    for output in cell.outputs:
        data = output.get("data", {})
        if "image/png" in data:
            alt = data.get("text/plain", "")
            alt = f"Figure: {about}" if alt.startswith("<") else alt
            source = f"data:image/png;base64,{data['image/png'].strip()}"
            parts.append(f'<img alt="{escape(alt, quote=True)}" src="{source}">')
        elif text := output.get("text", data.get("text/plain", "")):
            parts.append(f"<pre>{escape(text)}</pre>")
    return "\n".join(parts)


def slides(notebook: NotebookNode) -> list[str]:
    """The HTML of each slide; ValueError when one would be empty or "slide-more" comes first."""
    found: list[str] = []
    heading = ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            heading = (re.findall(r"^#+ (.*)$", cell.source, re.M) or [heading])[-1]
        tags = {"slide", "slide-more"} & set(cell.metadata.get("tags", []))
        if not tags:
            continue
        page = shown(cell, heading)
        if not page.strip() or (tags == {"slide-more"} and not found):
            raise ValueError(f"nothing to show, or no slide before it:\n{cell.source}")
        if tags == {"slide-more"}:
            found[-1] += page
        else:
            title = f"<h2>{escape(heading)}</h2>\n" if cell.cell_type == "code" else ""
            found.append(title + page)
    return found


def page(title: str, pages: Sequence[str]) -> str:
    """One HTML file that holds everything it needs."""
    body = "\n".join(f"<section>\n{one}\n</section>" for one in pages)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}'
        f"</title><style>{STYLE}</style></head><body>\n{body}\n<footer></footer>"
        f"<script>{SCRIPT}</script></body></html>\n"
    )


def build(paths: Sequence[Path], out: Path) -> list[Path]:
    """Write the slides of every notebook that has some to the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for path in paths:
        if found := slides(nbformat.read(path, as_version=4)):
            written.append(out / f"{path.stem}.html")
            written[-1].write_text(page(path.stem, found), encoding="utf-8")
    return written


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    everything = sorted(NOTEBOOKS.glob("*.ipynb"))
    parser.add_argument("notebooks", nargs="*", type=Path, default=everything)
    parser.add_argument("--out", type=Path, default=NOTEBOOKS / "slides")
    given = parser.parse_args()
    for file in build(given.notebooks, given.out):
        print(file)
