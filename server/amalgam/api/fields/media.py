"""Pictures and sounds in the messages of a request: what of them the base model reads, in which form, and how much.

They come as `data:` URLs, or from the hosts that the operator names. A picture's size is known before anything unpacks
it. What a part does not say by its type is refused: vLLM would look for it under other names too.
"""

import binascii
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from amalgam.api.fields.checks import mapping
from amalgam.api.fields.image_header import FORMATS, read_image_header
from amalgam.errors.requests import FieldRefused, MediaTooLarge, MediaUnsupported

Medium = Literal["image", "audio"]
MEDIA_PARTS: Final[Mapping[str, tuple[Medium, str]]] = {
    "image_url": ("image", "image_url"),
    "input_image": ("image", "image_url"),
    "image": ("image", "source"),
    "input_audio": ("audio", "input_audio"),
    "audio_url": ("audio", "audio_url"),
}
"""By type of part, in all three dialects, it says which medium it is, and which field that is in."""
_HIDDEN: Final = frozenset(
    {"uuid", "image_url", "image_pil", "image_embeds", "input_audio", "audio_url", "audio_embeds"}
    | {"video_url", "video_embeds", "prompt_embeds"}
)
"""By these names vLLM finds media in parts of any type, or in what others have sent."""
_DATA_URL: Final = re.compile(r"data:(?:[a-z]+/[A-Za-z0-9.+-]{1,64})?;base64,", re.ASCII)
_MEDIA_TYPE: Final = re.compile(r"(image|audio)/[A-Za-z0-9.+-]{1,64}", re.ASCII)
_SOUND_FORMAT: Final = re.compile(r"[a-z0-9]{1,8}", re.ASCII)
MAX_SCANS: Final = 64
"""A JPEG has at most so many. Encoders write about ten; each takes a decoder as long as the whole picture, whatever its
bytes."""
_HOLDERS: Final = ("content", "output", "summary")
"""Parts are in these fields of a message or of an item."""


@dataclass(frozen=True, slots=True)
class MediaBounds:
    """What of media the served model reads.

    Attributes:
        reads: kinds of media.
        items: in one request, at most.
        pixels: of all pictures of one request together, at most.
        hosts: whose URLs are fetched, in small letters.
    """

    reads: frozenset[str] = frozenset()
    items: int = 8
    pixels: int = 1 << 24
    hosts: frozenset[str] = frozenset()


TEXT_ONLY: Final = MediaBounds()


def refuse_hidden(name: str, part: Mapping[str, Any], own: str | None = None) -> None:
    """Refuse a part with media beside what its type says.

    Args:
        name: of the request's field.
        part: of a content.
        own: the field that its type speaks of.
    """
    for key in _HIDDEN & part.keys() - {own}:
        if part[key] is not None:
            raise FieldRefused(name, f"a part of this type must not have {key}; send it in a part of its own type")


def check_media(body: Mapping[str, Any], bounds: MediaBounds) -> int:
    """Check every picture and sound in a body whose other fields have been checked.

    Returns: about how many bytes of the body they take; the rest is text.

    Raises:
        MediaUnsupported: the model does not read it, or it has not a form that is served.
        MediaTooLarge: too many, or too many pixels.
        FieldRefused: a part that is not shaped as its type says.
    """
    items = pixels = size_bytes = 0
    for name in ("messages", "input", "system"):
        for part in _media_parts(body.get(name)):
            items += 1
            if items > bounds.items:
                raise MediaTooLarge(name, f"it has more than {bounds.items} pictures and sounds", "Send fewer")
            data = _checked(name, part, bounds)
            size_bytes += len(data) * 4 // 3
            pixels += _pixels(name, data) if data and MEDIA_PARTS[part["type"]][0] == "image" else 0
            if pixels > bounds.pixels:
                raise MediaTooLarge(
                    name, f"its pictures have more than {bounds.pixels} pixels together", "Send them smaller"
                )
    return size_bytes


def _media_parts(value: Any) -> Iterator[Mapping[str, Any]]:
    """Parts of media in messages, in what they hold, and in what those hold."""
    for entry in value if isinstance(value, list) else ():
        if not isinstance(entry, dict):
            continue
        if isinstance(kind := entry.get("type"), str) and kind in MEDIA_PARTS:
            yield entry
        for holder in _HOLDERS:
            yield from _media_parts(entry.get(holder))


def _checked(name: str, part: Mapping[str, Any], bounds: MediaBounds) -> bytes:
    """The bytes of a part that may be served; none where they are fetched later."""
    medium, own = MEDIA_PARTS[part["type"]]
    if not bounds.reads:
        raise FieldRefused(name, f"content must be text, or parts of type text; the served model reads no {medium}")
    if medium not in bounds.reads:
        raise MediaUnsupported(name, f"the served model reads no {medium}", "Send text")
    refuse_hidden(name, part, own)
    return _data(name, part, bounds)


def _pixels(name: str, data: bytes) -> int:
    header = read_image_header(data)
    if header is None:
        raise MediaUnsupported(name, "a picture's bytes are none that can be read", f"Send {', '.join(FORMATS)}")
    if header.scans > MAX_SCANS:
        raise MediaTooLarge(
            name, f"a picture in JPEG has more than {MAX_SCANS} scans", "Save it again, or send it as PNG"
        )
    return header.pixels


def _data(name: str, part: Mapping[str, Any], bounds: MediaBounds) -> bytes:
    """The medium's bytes; none where it is fetched from a host that is allowed."""
    kind, own = part["type"], MEDIA_PARTS[part["type"]][1]
    if kind == "image":
        source = mapping(name, part.get(own))
        if source.get("type") == "url":
            return _of_url(name, source.get("url"), bounds)
        if source.get("type") != "base64" or not _matches(_MEDIA_TYPE, source.get("media_type")):
            raise FieldRefused(name, "an image's source must be of type base64 with a media_type, or of type url")
        return _decoded(name, source.get("data"))
    if kind == "input_audio":
        sound = mapping(name, part.get(own))
        if not _matches(_SOUND_FORMAT, sound.get("format")):
            raise FieldRefused(name, "input_audio must have a format such as wav, and data in base64")
        return _decoded(name, sound.get("data"))
    url = part.get(own)
    return _of_url(name, url.get("url") if isinstance(url, dict) else url, bounds)


def _of_url(name: str, url: Any, bounds: MediaBounds) -> bytes:
    if not isinstance(url, str):
        raise FieldRefused(name, "a part of media must have its URL as a string")
    found = _DATA_URL.match(url)
    if found is not None:
        return _decoded(name, url[found.end() :])
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        raise FieldRefused(name, "a part of media must have a URL that can be read") from None
    if parts.scheme not in ("http", "https") or parts.username is not None or "\\" in url:
        raise MediaUnsupported(name, "media come as data: URLs with base64", "Send the bytes themselves")
    if host not in bounds.hosts:
        where = "from the hosts that the operator names" if bounds.hosts else "from nowhere"
        raise MediaUnsupported(name, f"media are fetched {where}", "Send a data: URL with base64")
    return b""


def _decoded(name: str, text: Any) -> bytes:
    if not isinstance(text, str) or not text:
        raise FieldRefused(name, "media must be base64 in a string")
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except ValueError:
        raise FieldRefused(name, "has media that are not valid base64") from None


def _matches(pattern: re.Pattern[str], value: Any) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None
