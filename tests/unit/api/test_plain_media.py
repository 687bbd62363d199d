"""Spellings of pictures and sounds that mean one thing: what vLLM reads is the same for each, and the bytes are."""

import base64
import textwrap
from typing import Any, Final
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amalgam.api.fields.by_endpoint import check_fields
from amalgam.api.fields.plain_media import plain_base64, plain_url, with_plain_media
from amalgam.errors.requests import FieldRefused
from tests.unit.api.test_media_fields import HEARS, SEES, chat, encoded, url

PICTURE: Final = url(encoded())
DATA: Final = PICTURE.partition(",")[2]
PLAIN: Final = {"type": "image_url", "image_url": {"url": PICTURE}}
ITEM: Final = {"type": "input_image", "image_url": PICTURE, "detail": "auto"}
WRAPPED: Final = "\r\n".join(textwrap.wrap(DATA, 76))
"""As MIME and the command of that name write it."""


def addresses() -> list[str]:
    return [
        f"data:image/png;base64,{WRAPPED}",
        f"data:image/png;base64,{DATA.rstrip('=')}",
        f"data:image/png;base64, {quote(DATA)}\n",
        f"data:image/png;base64,{base64.urlsafe_b64encode(encoded()).decode()}",
        f"data:image/png;charset=utf-8;base64,{DATA}",
        f"DATA:image/PNG;BASE64,{DATA}",
    ]


@pytest.mark.parametrize("endpoint", ["chat_completions", "tokenize"])
@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": PICTURE},
        {"type": "image_url", "image_url": {"url": PICTURE, "detail": "original"}},
        {"type": "image_url", "image_url": {"url": PICTURE, "detail": None}},
        {"type": "image_url", "image_url": PICTURE, "detail": "low"},
        {"type": "input_image", "image_url": PICTURE},
        {"type": "input_image", "image_url": {"url": PICTURE}, "detail": "high"},
        *({"type": "image_url", "image_url": {"url": address}} for address in addresses()),
    ],
    ids=range(12),
)
def test_a_picture_of_a_chat_is_one_part_in_every_spelling(endpoint: Any, part: Any) -> None:
    kept = check_fields(endpoint, chat(part), media=SEES).body
    assert kept["messages"][0]["content"][1] == PLAIN


@pytest.mark.parametrize(
    "part",
    [
        PLAIN,
        {"type": "input_image", "image_url": PICTURE},
        {"type": "input_image", "image_url": {"url": PICTURE}},
        {"type": "input_image", "image_url": PICTURE, "detail": None},
        {"type": "input_image", "image_url": PICTURE, "detail": "original"},
        *({"type": "input_image", "image_url": address, "detail": "auto"} for address in addresses()),
    ],
    ids=range(11),
)
def test_a_picture_of_an_item_is_one_part_in_every_spelling(part: Any) -> None:
    message = {"type": "message", "role": "user", "content": [part]}
    output = {"type": "function_call_output", "call_id": "1", "output": [part]}
    call = {"type": "function_call", "call_id": "1", "name": "look", "arguments": "{}"}
    kept = check_fields("responses", {"input": [message, call, output]}, media=SEES).body
    assert kept["input"][0]["content"] == [ITEM]
    assert kept["input"][2]["output"] == [ITEM]


def test_blocks_of_anthropics_dialect_too() -> None:
    source = {"type": "base64", "media_type": "image/png", "data": WRAPPED}
    address = {"type": "url", "url": addresses()[-1]}
    result = {"type": "tool_result", "tool_use_id": "1", "content": [{"type": "image", "source": source}]}
    kept = check_fields("messages", chat(result, {"type": "image", "source": address}), media=SEES).body
    _, told, seen = kept["messages"][0]["content"]
    assert told["content"][0]["source"] == {**source, "data": DATA}
    assert seen["source"] == {"type": "url", "url": PICTURE}


def test_sounds_too() -> None:
    given = {"type": "input_audio", "input_audio": {"data": WRAPPED, "format": "WAV"}}
    kept = check_fields("chat_completions", chat(given), media=HEARS).body
    assert kept["messages"][0]["content"][1]["input_audio"] == {"data": DATA, "format": "wav"}
    kept = check_fields("chat_completions", chat({"type": "audio_url", "audio_url": PICTURE}), media=HEARS).body
    assert kept["messages"][0]["content"][1] == {"type": "audio_url", "audio_url": {"url": PICTURE}}


def test_what_is_plain_is_not_copied_and_what_is_no_part_stays() -> None:
    for body in (chat(PLAIN), {"prompt": "a"}, {"messages": "a", "input": None}, chat("a", 5, None, {"type": ["x"]})):
        assert with_plain_media("chat_completions", body) is body
    body = {"input": [{"role": "user", "content": [ITEM]}]}
    assert with_plain_media("responses", body) is body
    for address in ("https://a.example/b_c-d.png?x=%20", "data:text/plain,a", "a", 5, None):
        assert plain_url(address) is address


@pytest.mark.parametrize("endpoint", ["chat_completions", "messages", "responses"])
def test_what_is_nested_without_end_is_left_to_the_checks(endpoint: Any) -> None:
    nested: Any = [{"type": "text", "text": "a"}]
    for _ in range(400):
        nested = [{"type": "tool_result", "content": nested}]
    body = {"input" if endpoint == "responses" else "messages": [{"role": "user", "content": nested}]}
    assert with_plain_media(endpoint, body) is body
    with pytest.raises(FieldRefused):
        check_fields(endpoint, body, media=SEES)


@given(st.binary(max_size=200), st.integers(1, 80), st.booleans(), st.booleans(), st.sampled_from(["", "\n", " \r\n"]))
def test_every_way_of_writing_bytes_is_read_as_those_bytes(
    data: bytes, width: int, for_addresses: bool, is_padded: bool, between: str
) -> None:
    encode = base64.urlsafe_b64encode if for_addresses else base64.b64encode
    text = encode(data).decode()
    text = text if is_padded else text.rstrip("=")
    text = between.join(text[at : at + width] for at in range(0, len(text), width))
    assert base64.b64decode(plain_base64(text), validate=True) == data
    assert base64.b64decode(plain_base64(quote(text)), validate=True) == data
