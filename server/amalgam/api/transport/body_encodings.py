"""Compressed bodies: gzip, deflate and zstd, decoded within the limit of the body that they become."""

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import zstandard

from amalgam.errors.http import BodyTooLarge, UnsupportedEncoding
from amalgam.errors.requests import FieldRefused

_MOST_MEMBERS: Final = 16
"""A gzip file may be several in a row; a body has no reason to."""
_WINDOW_BYTES: Final = 8 << 20
"""A decoder of zstd of any size has to be able to keep so much."""


def content_encodings(headers: Sequence[str]) -> list[str]:
    """The codings of a body, in the order to undo them.

    Raises:
        UnsupportedEncoding: an unknown one, or several on top of each other.
    """
    given = [coding.strip().lower() for header in headers for coding in header.split(",")]
    codings = [coding for coding in given if coding not in ("", "identity")]
    if len(codings) > 1 or any(coding not in _DECODERS for coding in codings):
        raise UnsupportedEncoding(", ".join(sorted(_DECODERS)))
    return codings


def decoded(raw: bytes, codings: Sequence[str], limit_bytes: int) -> bytes:
    """The body as it was before ``codings``; never more than ``limit_bytes`` are made of it.

    Raises:
        BodyTooLarge: it becomes larger.
        FieldRefused: on ``body``; it is not what its header says.
    """
    for coding in codings:
        try:
            raw = _DECODERS[coding](raw, limit_bytes + 1)
        except (zlib.error, zstandard.ZstdError, EOFError):
            raise FieldRefused("body", f"is not {coding}, as its Content-Encoding says") from None
        if len(raw) > limit_bytes:
            raise BodyTooLarge(limit_bytes)
    return raw


def _gzip(raw: bytes, most: int) -> bytes:
    return _inflated(raw, most, zlib.MAX_WBITS | 16)


def _deflate(raw: bytes, most: int) -> bytes:
    """Unpack with zlib's header, as the standard has it, or without, as some clients send it."""
    try:
        return _inflated(raw, most, zlib.MAX_WBITS)
    except zlib.error:
        return _inflated(raw, most, -zlib.MAX_WBITS)


def _inflated(raw: bytes, most: int, window: int) -> bytes:
    made, left = bytearray(), raw
    for _ in range(_MOST_MEMBERS):
        decoder = zlib.decompressobj(window)
        made += decoder.decompress(left, most - len(made))
        left = decoder.unused_data
        if len(made) >= most or (decoder.eof and not left):
            return bytes(made)
        if not decoder.eof:
            break
    raise EOFError


def _zstd(raw: bytes, most: int) -> bytes:
    decoder = zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES)
    with decoder.stream_reader(raw, read_across_frames=True) as reader:
        made = reader.read(most)
    if not made and raw:
        raise EOFError
    return made


_DECODERS: Final[Mapping[str, Callable[[bytes, int], bytes]]] = {
    "gzip": _gzip,
    "x-gzip": _gzip,
    "deflate": _deflate,
    "zstd": _zstd,
}
