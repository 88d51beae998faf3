"""The one anywidget class: traits that the modules of all explorers share (see `live`)."""

import traitlets as t
from anywidget import AnyWidget


class Live(AnyWidget):
    """An ES module with what it is given (spec, view), what it asks, and what it gets."""

    _esm = t.Unicode().tag(sync=True)
    spec = t.Dict().tag(sync=True)
    view = t.Dict().tag(sync=True)
    ask = t.Dict().tag(sync=True)
    got = t.Dict().tag(sync=True)
    data = t.Bytes().tag(sync=True)
