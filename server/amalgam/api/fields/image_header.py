"""What the first bytes of a picture say: its format and its size. No pixel is unpacked for it.

A few kilobytes of picture may unpack to gigabytes, or take hours to unpack. Its size, and how often a decoder goes over
it, are therefore known before anything unpacks it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

FORMATS: Final = ("PNG", "JPEG", "WebP", "GIF")
_FRAMES: Final = frozenset({*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0)})
"""These markers of JPEG come with a picture's size."""
_ALONE: Final = frozenset({0x01, *range(0xD0, 0xD9)})
"""These markers of JPEG have no length."""
_SCAN: Final = b"\xff\xda"
_PNG_DATA: Final = frozenset({b"IDAT", b"fdAT", b"IEND"})
"""At these chunks of PNG a decoder knows all that stands before the pixels."""
_GIF_EXTENSION: Final = 0x21
_GIF_PICTURE: Final = 0x2C


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """What a picture is before it is unpacked."""

    format: str
    width: int
    height: int
    scans: int = 1
    """A decoder goes over all pixels so often; a progressive JPEG is told in several scans."""

    @property
    def pixels(self) -> int:
        """How many it unpacks to."""
        return self.width * self.height


def read_image_header(data: bytes) -> ImageHeader | None:
    """Format and size of the picture in ``data``; None where it is none of `FORMATS`, or says no size."""
    for name, (is_one, size_of) in _READERS.items():
        if is_one(data):
            try:
                width, height = size_of(data)
            except (IndexError, ValueError):
                return None
            # Between two markers the byte 0xFF is always followed by a zero, so each of these begins a scan.
            scans = data.count(_SCAN) if name == "JPEG" else 1
            return ImageHeader(name, width, height, scans) if width > 0 and height > 0 else None
    return None


def _number(data: bytes, start: int, stop: int, order: str = "big") -> int:
    part = data[start:stop]
    if len(part) != stop - start:
        raise ValueError("cut short")
    return int.from_bytes(part, "little" if order == "little" else "big")


def _png(data: bytes) -> tuple[int, int]:
    """The largest of all sizes that stand before the picture's data: a decoder heeds the last of them."""
    if data[12:16] != b"IHDR":
        raise ValueError("no header")
    at, found = 8, (0, 0)
    while (kind := data[at + 4 : at + 8]) and kind not in _PNG_DATA:
        if kind == b"IHDR":
            size = _number(data, at + 8, at + 12), _number(data, at + 12, at + 16)
            found = max(found, size, key=lambda one: one[0] * one[1])
        at += 12 + _number(data, at, at + 4)
    return found


def _jpeg(data: bytes) -> tuple[int, int]:
    """The largest of all sizes that stand before the picture's data: a decoder may heed any of them."""
    at, found = 2, (0, 0)
    while True:
        if data[at] != 0xFF:
            raise ValueError("no marker")
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
        elif marker in _ALONE:
            at += 2
        elif marker in (0xDA, 0xD9):
            return found
        else:
            if marker in _FRAMES:
                size = _number(data, at + 7, at + 9), _number(data, at + 5, at + 7)
                found = max(found, size, key=lambda one: one[0] * one[1])
            at += 2 + max(_number(data, at + 2, at + 4), 2)


def _webp(data: bytes) -> tuple[int, int]:
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + _number(data, 24, 27, "little"), 1 + _number(data, 27, 30, "little")
    if kind == b"VP8L":
        bits = _number(data, 21, 25, "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        return _number(data, 26, 28, "little") & 0x3FFF, _number(data, 28, 30, "little") & 0x3FFF
    raise ValueError("no picture")


def _gif(data: bytes) -> tuple[int, int]:
    """The size of the screen, or of the first picture where that reaches beyond it."""
    width, height = _number(data, 6, 8, "little"), _number(data, 8, 10, "little")
    at = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    while data[at] == _GIF_EXTENSION:
        at += 2
        while data[at]:
            at += 1 + data[at]
        at += 1
    if data[at] != _GIF_PICTURE:
        raise ValueError("no picture")
    left, top, wide, high = (_number(data, at + place, at + place + 2, "little") for place in (1, 3, 5, 7))
    return max(width, left + wide), max(height, top + high)


_READERS: Final[Mapping[str, tuple[Callable[[bytes], bool], Callable[[bytes], tuple[int, int]]]]] = {
    "PNG": (lambda data: data.startswith(b"\x89PNG\r\n\x1a\n"), _png),
    "JPEG": (lambda data: data.startswith(b"\xff\xd8\xff"), _jpeg),
    "WebP": (lambda data: data.startswith(b"RIFF") and data[8:12] == b"WEBP", _webp),
    "GIF": (lambda data: data.startswith((b"GIF87a", b"GIF89a")), _gif),
}
