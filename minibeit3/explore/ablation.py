"""AblationExplorer: any results file, the figures that can be compared, and what is noise."""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import ipywidgets as W

from minibeit3.data.paths import data_root
from minibeit3.explore.core import Drawn
from minibeit3.explore.rows import comparison_picture, comparisons
from minibeit3.explore.widgets import Shell
from minibeit3.storage import CheckpointError, read_json


def read_results(folder: str | PathLike[str] | None = None) -> dict[str, Any]:
    """Name -> content of every results file below a folder; None = the checkout's `results`.

    Raises ValueError for a damaged file and for a folder without any.
    """
    root = data_root().parent / "results" if folder is None else Path(folder)
    files = sorted(root.rglob("*.json"))
    if not files:
        raise ValueError(f"no results file in {root}: name a folder with *.json")
    try:
        return {str(f.relative_to(root).with_suffix("")): read_json(f) for f in files}
    except CheckpointError as error:
        raise ValueError(str(error)) from error


class AblationExplorer:
    """Choose a file and a comparison; bars with intervals, what overlaps is called noise."""

    def __init__(
        self, results: Mapping[str, Any] | None = None, compare: str | None = None
    ) -> None:
        """results: as from `read_results`, None = the checkout's. compare: shown first.

        Raises ValueError when nothing in them can be compared.
        """
        self.path = W.Text(placeholder="own folder of results", continuous_update=False)
        self.said, self.view = W.Label(), W.VBox()
        self.path.observe(self._typed, names="value")
        self._open(read_results() if results is None else results, compare)

    def use(self, folder: str | PathLike[str]) -> None:
        """Compare one's own results; ValueError for a folder without them."""
        self._open(read_results(folder))

    def _typed(self, change: Any) -> None:
        try:
            self.use(change["new"])
            self.said.value = ""
        except ValueError as error:
            self.said.value = str(error)

    def _open(self, results: Mapping[str, Any], compare: str | None = None) -> None:
        found = {name: comparisons(content) for name, content in results.items()}
        self.found = {name: groups for name, groups in found.items() if groups}
        if not self.found:
            raise ValueError("nothing to compare: no two figures that differ in one thing")
        names = [name for name, groups in self.found.items() if compare in groups]
        self.file = W.Dropdown(
            options=list(self.found), value=(names or list(self.found))[0], description="results"
        )
        groups = list(self.found[str(self.file.value)])
        first = compare if compare in groups else groups[0]
        self.compare = W.Dropdown(options=groups, value=first, description="compare")
        self.compare.layout.width = "560px"
        self.shell = Shell("AblationExplorer", [self.compare], self.draw)
        self.file.observe(self._other_file, names="value")
        self.view.children = (self.file, self.shell.view, W.HBox([self.path, self.said]))

    def _other_file(self, _: object) -> None:
        self.compare.options = list(self.found[str(self.file.value)])  # chooses the first
        self.shell.refresh()  # which may have the name that was chosen before

    def draw(self) -> Drawn:
        """The picture of the present comparison, and its sentence."""
        name = str(self.compare.value)
        rows = self.found[str(self.file.value)].get(name)
        if rows is None:  # for a moment, while the options change with the file
            name, rows = next(iter(self.found[str(self.file.value)].items()))
        return comparison_picture(f"{self.file.value}: {name}", rows)

    def __repr__(self) -> str:
        return self.shell.sentence()

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, Any]:
        return self.shell.bundle(self.view)

    def export_html(self, path: str | PathLike[str], most: int = 150) -> None:
        """One page of the present file's comparisons (see `Shell.export_html`)."""
        self.shell.export_html(path, most)
