"""The paper's results (Table 1) beside the lab's long runs of the same use; for scale, not a race.

lab.beside_the_paper()    # a table in a notebook, the same as text elsewhere
"""

from dataclasses import dataclass
from html import escape as esc
from typing import NamedTuple

from minibeit3.lab.bands import Measured, band, known, lines, told, verdict

COLUMNS = (
    "use",
    "paper: giant",
    "best before it",
    "the lab's task",
    "pretrained",
    "from scratch",
    "without a model",
)


class Row(NamedTuple):
    """One result of the paper with its counterpart. line: name of a rule that needs no model."""

    use: str
    task: str
    paper: float
    before: float
    recipe: str
    figure: str
    line: str


ROWS = (  # figures of Table 1, in per cent but CIDEr; the counterparts are ours
    Row("vision", "ImageNet top 1", 89.6, 89.0, "scenes-classes", "top1", "pixels, linear"),
    Row("vision", "ADE20K mIoU", 62.8, 61.4, "scenes-segmentation", "mIoU", "ground"),
    Row("vision", "COCO box AP", 63.7, 63.3, "scenes-detection", "box/AP50", "places known"),
    Row("fusion", "VQAv2", 84.0, 82.3, "scenes-vqa", "accuracy", "question only"),
    Row("fusion", "NLVR2", 92.6, 87.0, "scenes-nlvr2", "accuracy", "statement only"),
    Row(
        "dual",
        "COCO recall at 1, mean of both ways",
        76.0,
        72.5,
        "scenes-retrieval",
        "text to image@1",
        "nearest pixels",
    ),
    Row(
        "sequence-to-sequence",
        "COCO captions, CIDEr",
        147.6,
        145.3,
        "scenes-captions",
        "beam 3/exact",
        "nearest pixels",
    ),
)


@dataclass(frozen=True)
class Table:
    """Rows of text under names; a table in a notebook, lines elsewhere."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def __repr__(self) -> str:
        return "\n".join(
            "; ".join(f"{name}: {cell}" for name, cell in zip(self.columns, row, strict=True))
            for row in self.rows
        )

    def _repr_html_(self) -> str:
        left = "style='text-align:left'"
        head = "".join(f"<th {left}>{esc(name)}</th>" for name in self.columns)
        body = "".join(
            "<tr>" + "".join(f"<td {left}>{esc(cell)}</td>" for cell in row) + "</tr>"
            for row in self.rows
        )
        return f"<table><tr>{head}</tr>{body}</table>"


def beside_the_paper() -> Table:
    """Every use of Table 1 that the lab has a task for, with the longest runs in results/modes.

    Those from scratch say how long, where there are some. What has not been run says so; the
    verdict is that of pretrained against from scratch.
    """
    return Table(COLUMNS, tuple(_cells(row) for row in ROWS))


def _cells(row: Row) -> tuple[str, ...]:
    labels = known(row.recipe, "labels")
    most = None if None in labels else max(labels, default=None)
    other = band(row.recipe, row.figure, labels=most, start="scratch")
    steps = None if other is None else other.steps
    own = band(row.recipe, row.figure, labels=most, steps=steps)
    if own is None:
        own, other = band(row.recipe, row.figure, labels=most), None
    rule = lines(row.recipe, row.figure, most).get(row.line)
    return (
        row.use,
        f"{row.task} {row.paper}",
        str(row.before),
        f"{row.recipe}, {row.figure}",
        told(own),
        _against(own, other),
        "not measured" if rule is None else f"{row.line} {told(rule)}",
    )


def _against(own: Measured | None, other: Measured | None) -> str:
    """The figure from scratch, and how the pretrained one stands to it."""
    said = verdict(own, other)
    share = told(None if other is None else other._replace(steps=0))
    return share if said == "unknown" else f"{share.partition(' (')[0]}: pretrained is {said}"
