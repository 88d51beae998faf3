"""The browser's part of an explorer through anywidget, and how the kernel answers it.

The browser says what it shows and asks for one thing at a time (`ask`: number, key, view); the
kernel answers with the same number (`got`, and bytes in `data`). Both are traits: the front end
has one update under way and merges later ones, so that the newest wins and nothing piles up.
"""

from collections.abc import Callable, Mapping
from typing import Any

from minibeit3.explore.page import Answer, script


def open_live(
    name: str,
    spec: Mapping[str, Any],
    view: Mapping[str, Any],
    answer: Callable[[str], Answer],
    seen: Callable[[Mapping[str, Any]], None],
) -> Any | None:
    """The widget of explorer `name`; None where anywidget is not installed.

    answer: what the browser asks by key, its ValueError is shown to the reader. seen: told the
    browser's new view.
    """
    try:
        from minibeit3.explore.browser import Live
    except ImportError:  # no anywidget here: the plain controls stand in
        return None
    widget = Live(_esm=script(name), spec=dict(spec), view=dict(view))

    def reply(change: Mapping[str, Any]) -> None:
        ask = change["new"]
        number, key, view = ask["number"], ask["key"], ask["view"]
        said, data = {}, b""
        try:
            if key is not None:
                said, data = answer(str(key))
        except ValueError as error:
            said = {"error": str(error)}
        with widget.hold_sync():
            widget.data = data
            widget.got = {**said, "number": number, "key": key}
        if view is not None:  # after the answer: the reader does not wait for the saved picture
            seen(view)

    widget.observe(reply, names="ask")
    return widget
