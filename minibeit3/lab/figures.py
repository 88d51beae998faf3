"""Pictures in notebooks: small ones, with a sentence for those who cannot see them."""

from base64 import b64encode
from collections.abc import Sequence
from html import escape as esc
from io import BytesIO
from typing import Any

from IPython.core.getipython import get_ipython
from IPython.core.pylabtools import print_figure
from IPython.display import Image as Shown
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

COLOURS = 256  # of a palette: a figure of lines and bars has fewer, and takes a third of the bytes
INLINE = "module://matplotlib_inline.backend_inline"


def tell_figures() -> bool:
    """From now on figures and images are shown with alt text; False outside a notebook's kernel.

    The picture stands in the output twice: alone, and as HTML with its sentence, which is what
    JupyterLab shows.
    """
    import matplotlib
    import matplotlib.pyplot as plt

    shell: Any = get_ipython()
    if shell is None or matplotlib.get_backend() not in ("inline", INLINE):
        return False
    plt.switch_backend(matplotlib.get_backend())  # it sets its own formats when it is first loaded
    formats = shell.display_formatter.formatters
    formats["image/png"].pop(Figure, None)  # else the figure is drawn once more for it
    shell.display_formatter.mimebundle_formatter.for_type(Figure, figure_both)
    formats["text/html"].for_type(Shown, image_html)
    return True


def figure_both(figure: Figure, **_: Any) -> dict[str, bytes | str]:
    """Picture and HTML of a figure, drawn once: in live training the drawing is what costs."""
    png = figure_png(figure)
    return {"image/png": png, "text/html": figure_html(figure, png)}


def figure_png(figure: Figure) -> bytes:
    """The figure without its empty border, in `COLOURS` colours at most."""
    drawn: Any = print_figure(figure, "png", bbox_inches="tight", metadata={"Software": None})
    out = BytesIO()
    picture = Image.open(BytesIO(drawn)).convert("RGB")
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return out.getvalue()


def figure_html(figure: Figure, png: bytes) -> str:
    """The picture with its sentence as alt text."""
    data = b64encode(png).decode()
    return f'<img alt="{esc(describe_figure(figure))}" src="data:image/png;base64,{data}">'


def image_html(image: Shown) -> str | None:
    """An IPython image with the alt text it was given, which JupyterLab leaves out; or None."""
    alt, data = image.alt, image.data
    if not alt or not isinstance(data, bytes) or image.format != "png":
        return None
    return f'<img alt="{esc(alt)}" src="data:image/png;base64,{b64encode(data).decode()}">'


def describe_figure(figure: Figure) -> str:
    """What a figure shows, read off its titles, axis labels and legends; not what comes out."""
    over = [legend for legend in figure.legends if legend.get_texts()]
    names = [text.get_text() for legend in over for text in legend.get_texts()]
    panels = [_panel(axes, names) for axes in figure.axes if axes.get_label() != "<colorbar>"]
    told = [panel for panel in panels if panel]
    head = figure.get_suptitle() or ("Figure" if len(panels) == 1 else f"{len(panels)} panels")
    shown = f"; shown: {', '.join(names)}" if names else ""
    return f"{head}: {'; '.join(told) or 'without words'}{shown}."


def _panel(axes: Axes, known: Sequence[str]) -> str:
    """Title, axes and lines of one panel; known: names that the figure's legend tells anyway."""
    x, y = axes.get_xlabel(), axes.get_ylabel()
    labels = (str(name) for name in axes.get_legend_handles_labels()[1])
    names = [name for name in labels if name not in known]
    against = f"{y} by {x}" if x and y else x or y
    parts = [" ".join(axes.get_title().split()), against, ", ".join(names)]
    said = " · ".join(part for part in parts if part)
    if not said and (axes.lines or axes.patches or axes.images or axes.texts):
        said = " ".join(text.get_text() for text in axes.texts) or "a picture"
    return said
