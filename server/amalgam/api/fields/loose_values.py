"""Numbers and switches as some clients write them, and bodies that were sent to the route of another dialect.

vLLM's own server reads ``"max_tokens": "256"``, ``256.0`` and ``"stream": 1``, and clients in languages without
integers, or with forms of text fields, depend on it. Whatever can mean one thing only is brought into the form of the
tables before they check it; anything else stays, and is refused by them.
"""

import re
from collections.abc import Mapping
from typing import Any, Final, get_origin

from amalgam.api.fields.by_endpoint import HONOURED
from amalgam.engine.protocol import Endpoint
from amalgam.errors.requests import FieldRefused

_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,18}")
_NUMBER: Final = re.compile(r"[+-]?(?:[0-9]{1,18}(?:\.[0-9]{0,18})?|\.[0-9]{1,18})(?:[eE][+-]?[0-9]{1,2})?")
_SWITCHES: Final[Mapping[str, bool]] = {"true": True, "false": False, "1": True, "0": False}
_EXACT: Final = 1 << 53
"""Up to here every integer is a float of its own."""


def _kind(shape: Any) -> type | None:
    """What a field holds one of, where that is a number or a switch."""
    plain = shape if isinstance(shape, type) else getattr(shape, "__origin__", None)
    return plain if plain in (int, float, bool) and get_origin(plain) is None else None


_KINDS: Final[Mapping[Endpoint, Mapping[str, type]]] = {
    endpoint: {name: kind for name, spec in table.items() if (kind := _kind(spec.shape)) is not None}
    for endpoint, table in HONOURED.items()
}
_OTHER_ROUTES: Final[Mapping[tuple[Endpoint, str], str]] = {
    ("chat_completions", "input"): "/v1/responses",
    ("chat_completions", "prompt"): "/v1/completions",
    ("completions", "messages"): "/v1/chat/completions",
    ("completions", "input"): "/v1/responses",
    ("responses", "messages"): "/v1/chat/completions",
    ("responses", "prompt"): "/v1/completions",
    ("messages", "input"): "/v1/responses",
    ("messages", "prompt"): "/v1/completions",
}
"""It maps (route, what a body there holds in place of what it needs) to the route that reads such bodies."""
_NEEDED: Final[Mapping[Endpoint, tuple[str, ...]]] = {
    "chat_completions": ("messages",),
    "completions": ("prompt",),
    "responses": ("input",),
    "messages": ("messages", "max_tokens"),
    "count_tokens": ("messages",),
    "detokenize": ("tokens",),
    "embeddings": ("input",),
}


def plain_values(endpoint: Endpoint, body: Mapping[str, Any]) -> Mapping[str, Any]:
    """``body``, or a copy in which numbers and switches have the types that they stand for."""
    changes: dict[str, Any] = {}
    for name, kind in _KINDS[endpoint].items():
        value = body.get(name)
        if value is None or type(value) is kind or (kind is float and type(value) is int):
            continue
        plain = _plain(kind, value)
        if plain is not value:
            changes[name] = plain
    return {**body, **changes} if changes else body


def require_dialect(endpoint: Endpoint, body: Mapping[str, Any]) -> None:
    """Refuse a body without what this route answers.

    Raises:
        FieldRefused: on what is missing; with the route that takes such a body, where another does.
    """
    missing = next((name for name in _NEEDED.get(endpoint, ()) if body.get(name) is None), None)
    if missing is None and endpoint == "tokenize" and body.get("prompt") is None and body.get("messages") is None:
        missing = "prompt"
    if missing is None:
        return
    for (route, found), other in _OTHER_ROUTES.items():
        if route == endpoint and body.get(found) is not None and missing != "max_tokens":
            raise FieldRefused(missing, f"is missing, and {found} is there: send this body to {other}")
    raise FieldRefused(missing, "is missing; send it")


def _plain(kind: type, value: Any) -> Any:
    if kind is bool:
        return _SWITCHES.get(str(value).lower(), value) if type(value) in (int, str) else value
    if type(value) is bool:
        # Of a count, such as that of log-probabilities, true is one and false none.
        return value if kind is float else int(value) or None
    if kind is int and type(value) is float:
        return int(value) if value.is_integer() and abs(value) <= _EXACT else value
    if type(value) is not str:
        return value
    text = value.strip()
    if kind is int:
        return int(text) if _INTEGER.fullmatch(text) else value
    return float(text) if _NUMBER.fullmatch(text) else value
