"""Pages and figures that need neither kernel nor network: one HTML text, everything inside."""

import base64
import html
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from minibeit3.explore.core import Drawn, Picture, to_png

Answer = tuple[Mapping[str, Any], bytes]


def script(name: str) -> str:
    """The ES module of an explorer: what all share, then its own part."""
    folder = files("minibeit3.explore") / "static"
    return "\n".join((folder / f"{part}.js").read_text("utf-8") for part in ("common", name))


def data_url(picture: Picture) -> str:
    """A picture as the address of itself."""
    return f"data:image/png;base64,{base64.b64encode(to_png(picture)).decode()}"


def figure(drawn: Drawn) -> str:
    """The picture as an HTML figure with alt text, for readers without a kernel."""
    alt = html.escape(drawn.alt, quote=True)
    data = base64.b64encode(drawn.png()).decode()
    return f'<figure><img alt="{alt}" src="data:image/png;base64,{data}"></figure>'


def bundle(view: Any, sentence: str, drawn: Drawn) -> dict[str, Any]:
    """Live view, PNG, figure with alt text, sentence: whichever the reader can show."""
    live: Any = view._repr_mimebundle_() or {}
    return dict(live) | {
        "text/plain": sentence,
        "text/html": figure(drawn),
        "image/png": base64.b64encode(drawn.png()).decode(),
    }


def live_page(
    name: str,
    title: str,
    spec: Mapping[str, Any],
    view: Mapping[str, Any],
    answers: Mapping[str, Answer],
) -> str:
    """An explorer of the browser with the answers it may ask for, by key."""
    stored = {key: [said, base64.b64encode(data).decode()] for key, (said, data) in answers.items()}
    module = script(name).replace("export default { render };", "const explorer = { render };")
    page = (files("minibeit3.explore") / "static" / "page.js").read_text("utf-8")
    store = {"spec": spec, "view": view, "answers": stored}
    return _document(title, f"{module}\nconst STORE = {_literal(store)};\n{page}")


def frames_page(
    name: str,
    controls: Sequence[tuple[str, Sequence[str]]],
    frames: Mapping[tuple[int, ...], Drawn],
    start: Sequence[int],
) -> str:
    """Drawn pictures behind native controls.

    controls: name and the options' texts. frames: option of each control -> picture.
    """
    pictures: dict[str, int] = {}
    shown = {}
    for key, drawn in frames.items():
        data = base64.b64encode(drawn.png()).decode()
        shown[",".join(map(str, key))] = [pictures.setdefault(data, len(pictures)), drawn.alt]
    store = {
        "name": name,
        "controls": [{"name": label, "options": list(options)} for label, options in controls],
        "frames": shown,
        "pictures": list(pictures),
        "start": list(start),
    }
    return _document(name, f"const FRAMES = {_literal(store)};\n{script('frames')}")


def _literal(value: object) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(value).replace("<", "\\u003c")


def _document(title: str, module: str) -> str:
    """A page of one explorer. Its policy forbids every request, whatever a caption says."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}script-src 'unsafe-inline'">
<title>{html.escape(title)}</title>
<div id="explorer"></div>
<script type="module">
{module}
</script>
</html>
"""
