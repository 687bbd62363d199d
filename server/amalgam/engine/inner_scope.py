"""The scope of a request as handlers within the server are shown it: a plain POST that came by no socket."""

from collections.abc import Iterable
from typing import Any


def inner_scope(app: Any, headers: Iterable[tuple[bytes, bytes]] = ()) -> dict[str, Any]:
    """A POST to ``app`` with ``headers``; its state is its own."""
    return {
        "type": "http",
        "app": app,
        "method": "POST",
        "scheme": "http",
        "path": "/",
        "raw_path": b"/",
        "query_string": b"",
        "root_path": "",
        "headers": list(headers),
        "client": None,
        "server": None,
        "state": {},
    }
