"""What makes two requests the same one, and two callers' keys different ones."""

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request

from amalgam.api.admin.idempotency import MAX_KEPT_BYTES, Fingerprint, answer_to_keep, key_name
from amalgam.errors.requests import FieldRefused


def scope(**changes: Any) -> dict[str, Any]:
    headers = changes.pop("headers", {})
    base = {"type": "http", "method": "POST", "path": "/admin/v1/merges", "query_string": b""}
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    return base | {"headers": raw} | changes


def fingerprint(body: bytes, cuts: list[int] | None = None, **changes: Any) -> str:
    """Of a body that comes in pieces."""
    found = Fingerprint(scope(**changes))
    edges = [0, *sorted(min(cut, len(body)) for cut in cuts or ()), len(body)]
    pieces = [body[a:b] for a, b in itertools.pairwise(edges)]
    for index, piece in enumerate(pieces):
        assert not found.is_whole
        found.update({"type": "http.request", "body": piece, "more_body": index < len(pieces) - 1})
    assert found.is_whole
    return found.hex()


def form(boundary: str, content: bytes = b"weights", name: str = "sql") -> tuple[bytes, dict[str, str]]:
    mark = f"--{boundary}".encode()
    parts = [
        mark + b'\r\nContent-Disposition: form-data; name="name"\r\n\r\n' + name.encode(),
        mark + b'\r\nContent-Disposition: form-data; name="files"; filename="w"\r\n\r\n' + content,
        mark + b"--\r\n",
    ]
    return b"\r\n".join(parts), {"Content-Type": f"multipart/form-data; boundary={boundary}"}


@settings(max_examples=60, deadline=None)
@given(
    content=st.binary(max_size=40) | st.sampled_from([b"--", b"-----", b"--b", b"--bb--b"]),
    cuts=st.lists(st.integers(0, 220), max_size=12),
    boundaries=st.tuples(st.sampled_from(["bb", "b-b", "xyz"]), st.sampled_from(["12345678", "c"])),
)
def test_a_form_is_the_same_whatever_its_boundary_and_however_it_comes(
    content: bytes, cuts: list[int], boundaries: tuple[str, str]
) -> None:
    if any(f"--{boundary}".encode() in content for boundary in boundaries):
        return
    found = []
    for boundary in boundaries:
        body, headers = form(boundary, content)
        found += [fingerprint(body, cuts, headers=headers), fingerprint(body, headers=headers)]
    assert len(set(found)) == 1


def test_whatever_differs_makes_another_request() -> None:
    base = fingerprint(b"{}")
    others = [
        fingerprint(b"{ }"),
        fingerprint(b""),
        fingerprint(b"{}", path="/admin/v1/merges:plan"),
        fingerprint(b"{}", query_string=b"wait_s=5"),
        fingerprint(b"{}", headers={"Content-Type": "application/json"}),
    ]
    body, headers = form("b")
    others += [fingerprint(body, headers=headers)]
    others += [
        fingerprint(form("b", b"other")[0], headers=headers),
        fingerprint(form("b", name="x")[0], headers=headers),
    ]
    assert len({base, *others}) == 1 + len(others)
    json = {"Content-Type": "application/json"}
    assert fingerprint(b"{}", headers=json) == fingerprint(
        b"{}", headers={"Content-Type": "Application/JSON; charset=utf-8"}
    )


def test_keys_belong_to_their_caller_and_are_not_kept_in_plain_text() -> None:
    def name(key: str, **headers: str) -> str:
        return key_name([key], Request(scope(headers=headers)))

    names = [
        name("k"),
        name("k", Authorization="Bearer a"),
        name("k", Authorization="Bearer b"),
        name("l", Authorization="Bearer b"),
    ]
    assert len(set(names)) == 4
    assert name("k", Authorization="Bearer a") == name("k", **{"x-api-key": "a"})
    assert all(len(each) == 64 for each in names)


@pytest.mark.parametrize("given", [[""], ["x" * 256], ["ä"], ["a\tb"], ["a", "a"]])
def test_what_is_no_key(given: list[str]) -> None:
    with pytest.raises(FieldRefused, match="Idempotency-Key"):
        key_name(given, Request(scope()))


def answered(status: int, body: bytes = b"{}") -> list[Any]:
    headers = [(b"Content-Type", b"application/json"), (b"location", b"/x"), (b"x-request-id", b"1"), (b"etag", b"2")]
    return [
        {"type": "http.response.start", "status": status, "headers": headers},
        {"type": "http.response.body", "body": body, "more_body": True},
        {"type": "http.response.body", "body": b"", "more_body": False},
    ]


def test_what_a_retry_may_do_better_is_not_kept() -> None:
    whole = Fingerprint(scope())
    assert answer_to_keep(answered(201), whole) is None
    whole.update({"type": "http.request", "body": b"", "more_body": False})
    for status in (200, 201, 202, 400, 404, 409, 422):
        kept = answer_to_keep(answered(status), whole)
        assert kept is not None
        assert (kept.status, kept.body) == (status, b"{}")
        assert kept.headers == (("content-type", "application/json"), ("location", "/x"))
    for status in (429, 499, 500, 502, 503):
        assert answer_to_keep(answered(status), whole) is None
    assert answer_to_keep(answered(200, b"x" * MAX_KEPT_BYTES), whole) is not None
    assert answer_to_keep(answered(200, b"x" * (MAX_KEPT_BYTES + 1)), whole) is None
    assert answer_to_keep([], whole) is None
