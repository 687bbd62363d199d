"""Pictures and sounds in requests: what is let through, and what is refused before anything unpacks or fetches it."""

import base64
import io
import struct
import zlib
from typing import Any

import pytest
from PIL import Image

from amalgam.api.fields.by_endpoint import check_fields
from amalgam.api.fields.image_header import ImageHeader, read_image_header
from amalgam.api.fields.media import MediaBounds
from amalgam.errors.requests import FieldRefused, MediaTooLarge, MediaUnsupported

SEES = MediaBounds(frozenset({"image"}), items=3, pixels=10_000, hosts=frozenset({"pictures.example"}))
HEARS = MediaBounds(frozenset({"audio"}))
FORMATS = ["PNG", "JPEG", "WEBP", "GIF"]


def encoded(kind: str = "PNG", size: tuple[int, int] = (31, 17), **options: Any) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (200, 30, 30)).save(file, kind, **options)
    return file.getvalue()


def url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def chat(*parts: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "What is this?"}, *parts]}]}


def image(data: bytes = b"", address: str | None = None) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": address or url(data or encoded())}}


@pytest.mark.parametrize("size", [(1, 1), (31, 17), (300, 2)])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        *[(kind, {}) for kind in FORMATS], ("JPEG", {"progressive": True}), ("WEBP", {"lossless": True}),
        ("GIF", {"comment": b"x"}),
    ],
    ids=str,
)  # fmt: skip
def test_a_pictures_size_is_read_as_pillow_reads_it(kind: str, options: Any, size: tuple[int, int]) -> None:
    found = read_image_header(encoded(kind, size, **options))
    assert found is not None
    assert (found.format.upper(), found.width, found.height) == (kind, *size)


def test_a_picture_with_much_beside_its_pixels_is_read() -> None:
    assert read_image_header(encoded("JPEG", exif=b"Exif\0\0" + b"x" * 60_000)) == ImageHeader("JPEG", 31, 17)
    assert read_image_header(encoded("WEBP", exif=b"Exif\0\0x")) == ImageHeader("WebP", 31, 17)


def test_a_gif_whose_picture_is_larger_than_its_screen_counts_as_large_as_it_unpacks() -> None:
    data = bytearray(encoded("GIF"))
    data[6:10] = struct.pack("<HH", 1, 1)
    found = read_image_header(bytes(data))
    assert found is not None
    assert found.pixels >= 31 * 17


@pytest.mark.parametrize("kind", FORMATS)
def test_what_is_cut_short_or_none_has_no_size_and_does_not_fail(kind: str) -> None:
    data = encoded(kind)
    for end in range(len(data)):
        found = read_image_header(data[:end])
        assert found is None or (found.width, found.height) == (31, 17)
    for other in (b"", b"GIF89a", b"\xff\xd8\xff", b"RIFF0000WEBPVP9 ", b"%!PS", b"II*\0" + bytes(64)):
        assert read_image_header(other) is None


@pytest.mark.parametrize("kind", FORMATS)
def test_pictures_come_as_data_in_all_dialects(kind: str) -> None:
    data = encoded(kind)
    source = {"type": "base64", "media_type": f"image/{kind.lower()}", "data": base64.b64encode(data).decode()}
    part = {"type": "input_image", "image_url": url(data), "detail": "auto"}
    check_fields("chat_completions", chat(image(data)), media=SEES)
    check_fields("messages", chat({"type": "image", "source": source}), media=SEES)
    nested = {"type": "tool_result", "tool_use_id": "1", "content": [{"type": "image", "source": source}]}
    check_fields("messages", chat(nested), media=SEES)
    check_fields("responses", {"input": [{"type": "message", "role": "user", "content": [part]}]}, media=SEES)


def refused(endpoint: Any, body: dict[str, Any], media: MediaBounds = SEES) -> FieldRefused:
    with pytest.raises(FieldRefused) as caught:
        check_fields(endpoint, body, media=media)
    return caught.value


BOMB = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", 60_000, 60_000) + bytes(9)


def test_a_picture_of_too_many_pixels_is_refused_without_being_unpacked() -> None:
    error = refused("chat_completions", chat(image(BOMB)))
    assert isinstance(error, MediaTooLarge)
    assert (error.code, error.status, error.param) == ("media_too_large", 400, "messages")
    # Pixels count together: each alone would pass.
    large = image(encoded(size=(90, 60)))
    check_fields("chat_completions", chat(large), media=SEES)
    assert isinstance(refused("chat_completions", chat(large, large)), MediaTooLarge)


def test_a_png_that_says_two_sizes_counts_as_large_as_it_unpacks() -> None:
    data = encoded("PNG", (1, 1))
    again = b"IHDR" + struct.pack(">IIBBBBB", 900, 800, 8, 2, 0, 0, 0)
    data = data[:33] + struct.pack(">I", 13) + again + struct.pack(">I", zlib.crc32(again)) + data[33:]
    assert Image.open(io.BytesIO(data)).size == (900, 800), "what a decoder makes room for"
    assert isinstance(refused("chat_completions", chat(image(data))), MediaTooLarge)


def test_a_jpeg_that_a_decoder_goes_over_again_and_again_is_refused() -> None:
    data = encoded("JPEG", progressive=True)
    last_scan = data[data.rindex(b"\xff\xda") : -2]
    check_fields("chat_completions", chat(image(data[:-2] + last_scan * 30 + data[-2:])), media=SEES)
    error = refused("chat_completions", chat(image(data[:-2] + last_scan * 90_000 + data[-2:])))
    assert isinstance(error, MediaTooLarge)
    assert "scans" in error.message


def test_pictures_are_counted_in_all_messages_together() -> None:
    check_fields("chat_completions", chat(*[image()] * 3), media=SEES)
    assert isinstance(refused("chat_completions", chat(*[image()] * 4)), MediaTooLarge)
    body = {"messages": chat(image(), image())["messages"] * 2}
    assert isinstance(refused("chat_completions", body), MediaTooLarge)


@pytest.mark.parametrize(
    "address",
    [
        "http://169.254.169.254/latest", "http://localhost/a.png", "https://elsewhere.example/a.png", "file:///etc/passwd",
        "ftp://pictures.example/a.png", "http://pictures.example@elsewhere.example/a", "http://pictures.example.evil/a",
        "http://evil\\@pictures.example/a", "//pictures.example/a.png", "http://[::1/a", "a.png", "data:,abc",
        "data:image/png,abc", "data:image/png;base64;base64,AAAA", "data:image/png;charset=x;base64,AAAA",
    ],
)  # fmt: skip
def test_nothing_is_fetched_from_where_the_operator_did_not_say(address: str) -> None:
    refused("chat_completions", chat(image(address=address)))
    refused("responses", {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": address}]}]})
    refused("messages", chat({"type": "image", "source": {"type": "url", "url": address}}))


def test_a_host_that_the_operator_names_is_let_through() -> None:
    for address in ("https://pictures.example/a.png", "http://PICTURES.example:8080/a.png?x=1"):
        check_fields("chat_completions", chat(image(address=address)), media=SEES)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "text", "text": "a", "uuid": "1", "image_url": {"url": "http://169.254.169.254/"}},
        {"type": "text", "text": "a", "image_url": "http://169.254.169.254/"},
        {"type": "text", "text": "a", "image_embeds": "AAAA"}, {"type": "refusal", "refusal": "a", "uuid": "other"},
        image() | {"uuid": "of-somebody-else"}, image() | {"video_url": {"url": "http://x"}},
        {"type": "image_url"}, {"type": "image_url", "image_url": 5}, {"type": "image_url", "image_url": {}},
        {"type": "image"}, {"type": "image", "source": {"type": "file", "file_id": "1"}},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png,x;base64,AAAA", "data": "AAAA"}},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": 5}},
        image(address="data:image/png;base64,"), image(address="data:image/png;base64,AAA"),
        image(address="data:image/png;base64,####"), image(b"not a picture"), image(b"%!PS-Adobe"),
        {"type": "video_url", "video_url": {"url": url(b"x", "video/mp4")}}, {"type": ["image_url"]}, {"type": {}},
    ],
    ids=range(21),
)  # fmt: skip
def test_media_that_are_not_what_their_part_says_are_refused(part: Any) -> None:
    for endpoint in ("chat_completions", "messages", "tokenize"):
        assert refused(endpoint, chat(part)).param == "messages"


def test_a_medium_that_the_model_does_not_read_is_refused() -> None:
    assert refused("chat_completions", chat(image()), MediaBounds()).code == "invalid_value"
    error = refused("chat_completions", chat(image()), HEARS)
    assert isinstance(error, MediaUnsupported)
    assert error.code == "media_unsupported"


def test_sounds_come_as_data_too() -> None:
    sound = base64.b64encode(b"RIFF").decode()
    check_fields(
        "chat_completions", chat({"type": "input_audio", "input_audio": {"data": sound, "format": "wav"}}), media=HEARS
    )
    check_fields(
        "chat_completions", chat({"type": "audio_url", "audio_url": {"url": url(b"RIFF", "audio/wav")}}), media=HEARS
    )
    for broken in ({"data": sound}, {"data": sound, "format": "wav;base64,AAAA,"}, {"format": "wav"}, 5):
        refused("chat_completions", chat({"type": "input_audio", "input_audio": broken}), HEARS)


def test_media_are_told_apart_from_the_text_beside_them() -> None:
    data = encoded()
    checked = check_fields("chat_completions", chat(image(data)), media=SEES)
    assert len(base64.b64encode(data)) - 4 <= checked.media_bytes <= len(base64.b64encode(data))
    assert check_fields("chat_completions", chat(), media=SEES).media_bytes == 0
