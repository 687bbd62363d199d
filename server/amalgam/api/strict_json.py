"""JSON as this server reads it: UTF-8, no key twice, no NaN or Infinity, no half characters, no bottomless nesting.

Python's own parser lets all of these through, and each means something else, or a crash, to the next program.
"""

import json
import math
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from amalgam.errors.doors import UnsupportedMediaType
from amalgam.errors.requests import FieldRefused


def parse_json(raw: bytes) -> Any:
    """The value that ``raw`` holds.

    Raises:
        FieldRefused: on ``body``; says what is wrong and repeats nothing of it.
    """
    try:
        text = raw.decode()
        value = json.loads(text, object_pairs_hook=_once, parse_constant=_constant, parse_float=_finite)
        if "\\ud" in text or "\\uD" in text:
            # An escape of half a character, unless its other half follows: nothing can encode the string again.
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise FieldRefused("body", "is nested too deeply") from None
    except UnicodeError:
        raise FieldRefused("body", "must be a JSON object in UTF-8, without half characters") from None
    except ValueError:
        # Python's own words would repeat the text, or name a limit that means nothing to the caller.
        raise FieldRefused("body", "must be a JSON object in UTF-8") from None
    return value


def parse_object(raw: bytes) -> dict[str, Any]:
    """The JSON object that ``raw`` holds. Raises FieldRefused where it is anything else."""
    value = parse_json(raw)
    if not isinstance(value, dict):
        raise FieldRefused("body", "must be a JSON object")
    return value


def require_json(request: Request) -> None:
    """Refuse a body that is not sent as JSON: a web page may send the other types anywhere without asking first.

    Raises:
        UnsupportedMediaType: with the header to send.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise UnsupportedMediaType


class StrictRoute(APIRoute):
    """A FastAPI route whose body is read by `parse_json`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler, over a request that reads JSON strictly."""
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handler(_StrictRequest(request.scope, request.receive))

        return strict


class _StrictRequest(Request):
    async def json(self) -> Any:
        return parse_json(await self.body())


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise FieldRefused("body", "has a key twice in one object")
    return found


def _constant(_: str) -> NoReturn:
    raise FieldRefused("body", "must not hold NaN or Infinity")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise FieldRefused("body", "holds a number that is too large")
    return value
