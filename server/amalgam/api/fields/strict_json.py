"""JSON as this server reads it: UTF-8, no key twice, no NaN or Infinity, no half characters, no bottomless nesting.

Python's own parser lets all of these through, and each means something else, or a crash, to the next program.
"""

import asyncio
import json
import math
from collections.abc import Callable, Coroutine
from json.scanner import py_make_scanner  # type: ignore[attr-defined]
from typing import Any, Final, NoReturn

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from amalgam.errors.http import UnsupportedMediaType
from amalgam.errors.requests import FieldRefused

MAX_VALUES: Final = 1 << 20
"""It bounds the values in one body, counted by the signs that stand between and around them; those in strings count
with them."""
MAX_KEYS: Final = 1 << 17
"""Keys are counted by their colons, those in texts with them."""
_MANY_VALUES: Final = 1 << 14
_MAX_DIGITS: Final = 512
INLINE_BYTES: Final = 8 << 10
"""Up to here parsing takes less time than asking a thread to do it."""


def parse_json(raw: bytes) -> Any:
    """The value that ``raw`` holds.

    Raises:
        FieldRefused: on ``body``; says what is wrong and repeats nothing of it.
    """
    signs = raw.count(b",") + raw.count(b"{") + raw.count(b"[")
    if signs > MAX_VALUES:
        raise FieldRefused("body", f"must hold at most {MAX_VALUES} values; send less")
    if raw.count(b":") > MAX_KEYS:
        raise FieldRefused("body", f"must hold at most {MAX_KEYS} keys; send less")
    try:
        # Some clients write a mark of the byte order first, which other servers pass over.
        text = raw.decode("utf-8-sig")
        value = _decoder(len(raw), signs).decode(text)
        if "\\ud" in text or "\\uD" in text:
            # An escape of half a character, unless its other half follows: nothing can encode the string again.
            _encode_all(value)
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


async def read_object(request: Request) -> dict[str, Any]:
    """The body as a JSON object; a large one is parsed off the event loop.

    Raises:
        UnsupportedMediaType: not sent as JSON.
        FieldRefused: not JSON as `parse_json` reads it, or not an object.
    """
    require_json(request)
    raw = await request.body()
    # Python's parser keeps the event loop for as long as it runs; on a thread it gives way.
    return parse_object(raw) if len(raw) <= INLINE_BYTES else await asyncio.to_thread(parse_object, raw)


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
        raw = await self.body()
        return parse_json(raw) if len(raw) <= INLINE_BYTES else await asyncio.to_thread(parse_json, raw)


class _Strict(json.JSONDecoder):
    """The standard library's decoder, with what it lets through refused."""

    def __init__(self, parse_int: Callable[[str], int] | None = None) -> None:
        super().__init__(object_pairs_hook=_once, parse_constant=_constant, parse_float=_finite, parse_int=parse_int)


class _GivingWay(_Strict):
    """The same in Python's own code: slower, but other threads run between two values.

    The compiled scanner holds the interpreter's lock until it is through: for a second, where there are many values.
    """

    def __init__(self) -> None:
        super().__init__(_bounded_integer)
        self.scan_once = py_make_scanner(self)


def _encode_all(value: Any) -> None:
    """Encode every string in ``value``. Raises UnicodeEncodeError where one holds half a character."""
    left = [value]
    while left:
        one = left.pop()
        if isinstance(one, str):
            one.encode()
        elif isinstance(one, dict):
            left.extend(one)
            left.extend(one.values())
        elif isinstance(one, list):
            left.extend(one)


def _bounded_integer(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise FieldRefused("body", "holds a number that is too large")
    return int(text)


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


_SMALL: Final = _Strict()
_LARGE: Final = _Strict(_bounded_integer)
_GIVING_WAY: Final = _GivingWay()


def _decoder(size: int, signs: int) -> json.JSONDecoder:
    """What reads a body of ``size`` bytes with so many ``signs`` of values."""
    if signs > _MANY_VALUES:
        return _GIVING_WAY
    return _SMALL if size <= INLINE_BYTES else _LARGE
