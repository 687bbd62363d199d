import json

import pytest
from starlette.requests import Request

from amalgam.api.fields.strict_json import parse_json, parse_object, require_json
from amalgam.errors.http import UnsupportedMediaType
from amalgam.errors.requests import FieldRefused


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"nul", b"{", b'{"a":1}x', b'{"a":1,}', b"'a'", b"\xff{}", b'{"a":"\xed\xa0\x80"}',
        '{"a":1}'.encode("utf-16"), '{"a":1}'.encode("utf-32"), b'{"a":NaN}', b'{"a":-Infinity}', b'{"a":1e999}',
        b'{"a":1,"a":2}', b'[{"b":{"a":1,"a":1}}]', b'{"\\u0061":1,"a":2}', rb'{"a":"\ud800"}', rb'{"\uDfff":1}',
        rb'["x\ud83dy\ude00"]', b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5000,
    ],
)  # fmt: skip
def test_what_another_program_could_read_otherwise_is_refused(raw: bytes) -> None:
    with pytest.raises(FieldRefused) as caught:
        parse_json(raw)
    assert caught.value.param == "body"
    assert len(caught.value.message) < 100


@pytest.mark.parametrize(
    "value", [{"a": [1, -2.5e10, True, None, "ü😀"], "b": {"a": {"a": "\ud7ff\ue000"}}}, [], "x", 7]
)
def test_json_is_read_as_it_is(value: object) -> None:
    for ascii_only in (True, False):
        assert parse_json(json.dumps(value, ensure_ascii=ascii_only).encode()) == value


@pytest.mark.parametrize("raw", [b"[]", b"null", b'"x"', b"1"])
def test_a_body_is_an_object(raw: bytes) -> None:
    with pytest.raises(FieldRefused):
        parse_object(raw)
    assert parse_object(b'{"a": []}') == {"a": []}


@pytest.mark.parametrize(
    ("kind", "taken"),
    [
        ("application/json", True), ("Application/JSON ; charset=utf-8", True), ("application/vnd.api+json", True),
        (None, False), ("", False), ("text/plain", False), ("text/json", False),
        ("application/x-www-form-urlencoded", False),
        ("multipart/form-data; boundary=application/json", False), ("application/jsonx", False),
    ],
)  # fmt: skip
def test_json_is_called_json(kind: str | None, taken: bool) -> None:
    headers = [] if kind is None else [(b"content-type", kind.encode())]
    request = Request({"type": "http", "headers": headers})
    if taken:
        require_json(request)
    else:
        with pytest.raises(UnsupportedMediaType):
            require_json(request)


def test_a_mark_of_the_byte_order_is_passed_over() -> None:
    assert parse_json(b'\xef\xbb\xbf{"a": 1}') == {"a": 1}
