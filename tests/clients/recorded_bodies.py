"""Bodies as clients send them, written by hand after what is public about each: one JSON file a request.

A file holds the client, the path, the client's own headers, the body, and the names that the answer's header
``x-amalgam-ignored`` has to hold. ``MODEL`` stands for the model.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

_FOLDER: Final = Path(__file__).parent / "recorded"
_LENGTHS: Final = ("max_tokens", "max_completion_tokens", "max_output_tokens")


@dataclass(frozen=True, slots=True)
class Recorded:
    """One request of one client."""

    name: str
    client: str
    path: str
    headers: dict[str, str]
    ignored: list[str]
    body: dict[str, Any]

    def body_for(self, model: str, longest: int | None = None) -> dict[str, Any]:
        """The body, with ``model``, and answers of at most ``longest`` tokens where it says how long they may be."""
        changes = {} if longest is None else {key: longest for key in _LENGTHS if self.body.get(key)}
        return self.body | {"model": model} | changes

    @property
    def streams(self) -> bool:
        return bool(self.body.get("stream"))


def recorded_bodies() -> list[Recorded]:
    """All of them, by name."""
    return [Recorded(path.stem, **json.loads(path.read_text())) for path in sorted(_FOLDER.glob("*.json"))]


def ignored_names(header: str | None) -> list[str]:
    """What a header ``x-amalgam-ignored`` names."""
    return sorted(header.split(", ")) if header else []
