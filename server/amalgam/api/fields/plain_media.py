"""Pictures and sounds in the spellings that clients have for them, brought into the one that vLLM reads.

An address is given as a text or inside an object, a part by the name that it has in another dialect, and base64 as its
encoders write it: in lines, without its padding, in the alphabet for addresses. Each means one thing. How closely a
picture is looked at (``detail``) is the processor's own matter here.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import unquote

from amalgam.engine.protocol import Endpoint

_HOLDERS: Final = ("content", "output")
"""Parts are in these fields of a message, of an item, or of a block."""
_DEPTH: Final = 3
"""A message holds blocks, and a block parts; what lies deeper is read by nobody, and is left to the checks."""
_FIELDS: Final = ("messages", "input", "system")
_DATA_URL: Final = re.compile(
    r"data:([a-z]+/[a-z0-9.+-]{1,64})?(?:;[\w.+-]{1,64}=[^;,]{0,64}){0,4};base64,", re.I | re.A
)
_LOOSE: Final = (" ", "\n", "\r", "\t", "-", "_", "%")
"""None of these is in base64 as it is read strictly."""
_ALPHABET: Final = str.maketrans("-_", "+/")


def with_plain_media(endpoint: Endpoint, body: Mapping[str, Any]) -> Mapping[str, Any]:
    """``body``, or a copy whose parts of media are as vLLM reads them; what is no such part stays as it is."""
    plain = _plain_item if endpoint == "responses" else _plain_part
    changed = {name: _plain_list(body[name], plain) for name in _FIELDS if isinstance(body.get(name), list)}
    return {**body, **changed} if any(changed[name] is not body[name] for name in changed) else body


def plain_url(url: Any) -> Any:
    """An address; one of ``data:`` in small letters, without parameters, and with base64 as it is read strictly."""
    found = _DATA_URL.match(url) if isinstance(url, str) else None
    if found is None:
        return url
    head = f"data:{(found[1] or '').lower()};base64,"
    data = url[found.end() :]
    plain = plain_base64(data)
    return url if plain is data and url.startswith(head) else head + plain


def plain_base64(text: Any) -> Any:
    """Base64 without what stands between its letters, padded, in the usual alphabet; itself where it is so already."""
    if not isinstance(text, str) or not (len(text) % 4 or any(letter in text for letter in _LOOSE)):
        return text
    letters = "".join((unquote(text) if "%" in text else text).split()).translate(_ALPHABET).rstrip("=")
    return letters + "=" * (-len(letters) % 4)


def _plain_list(
    entries: list[Any], plain: Callable[[Mapping[str, Any]], Mapping[str, Any]], depth: int = _DEPTH
) -> list[Any]:
    made = [_plain_entry(entry, plain, depth) if isinstance(entry, Mapping) else entry for entry in entries]
    is_same = all(one is other for one, other in zip(made, entries, strict=True))
    return entries if is_same else made


def _plain_entry(entry: Mapping[str, Any], plain: Callable[[Mapping[str, Any]], Mapping[str, Any]], depth: int) -> Any:
    entry = plain(entry)
    holders = _HOLDERS if depth else ()
    held = {key: _plain_list(entry[key], plain, depth - 1) for key in holders if isinstance(entry.get(key), list)}
    return {**entry, **held} if any(held[key] is not entry[key] for key in held) else entry


def _plain_part(part: Mapping[str, Any]) -> Mapping[str, Any]:
    """A part of a chat, or a block of Anthropic's dialect."""
    kind = part.get("type")
    if kind == "input_image":
        return {
            **_without(part, "detail"),
            "type": "image_url",
            "image_url": {"url": plain_url(_address(part, "image_url"))},
        }
    if kind in ("image_url", "audio_url"):
        given, url = part.get(kind), plain_url(_address(part, kind))
        return part if given == {"url": url} else {**_without(part, "detail"), kind: {"url": url}}
    if kind == "input_audio":
        return _with_plain(_with_plain(part, kind, "data", plain_base64), kind, "format", _in_small_letters)
    if kind == "image":
        source = part.get("source")
        is_url = isinstance(source, Mapping) and source.get("type") == "url"
        return _with_plain(part, "source", *(("url", plain_url) if is_url else ("data", plain_base64)))
    return part


def _plain_item(part: Mapping[str, Any]) -> Mapping[str, Any]:
    """A part of the Responses dialect."""
    if part.get("type") not in ("input_image", "image_url"):
        return part
    url = plain_url(_address(part, "image_url"))
    plain = {**part, "type": "input_image", "image_url": url, "detail": "auto"}
    return part if plain == part else plain


def _address(part: Mapping[str, Any], key: str) -> Any:
    given = part.get(key)
    return given.get("url") if isinstance(given, Mapping) else given


def _with_plain(part: Mapping[str, Any], key: str, inner: str, plain: Callable[[Any], Any]) -> Mapping[str, Any]:
    """``part`` whose ``key`` holds ``inner``, made plain."""
    given = part.get(key)
    if not isinstance(given, Mapping):
        return part
    made = plain(given.get(inner))
    return part if made is given.get(inner) else {**part, key: {**given, inner: made}}


def _in_small_letters(word: Any) -> Any:
    return word.lower() if isinstance(word, str) and not word.islower() else word


def _without(part: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in part.items() if name != key}
