"""A front end that is not there: records what widgets send, and sends what a reader would."""

from typing import Any

import pytest

Sent = list[tuple[dict[str, Any], list[Any]]]


class FakeComm:
    """One widget's line to the browser."""

    comm_id = "fake"

    def __init__(self, sent: Sent) -> None:
        self.sent, self.handler = sent, None

    def on_msg(self, handler: Any) -> None:
        """Keep the widget's receiver."""
        self.handler = handler

    def send(self, data: Any = None, metadata: Any = None, buffers: Any = None) -> None:
        """Record an update with the bytes that belong to it."""
        self.sent.append((data or {}, list(buffers or [])))

    def close(self, *_: Any, **__: Any) -> None:
        """Nothing to close."""


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Sent:
    """Every message that widgets made from here on send."""
    messages: Sent = []
    monkeypatch.setattr("comm.create_comm", lambda *_, **__: FakeComm(messages))
    return messages


def from_browser(widget: Any, state: dict[str, Any]) -> None:
    """A change of traits as the front end sends it."""
    data = {"method": "update", "state": state, "buffer_paths": []}
    widget.comm.handler({"content": {"data": data}, "buffers": []})
