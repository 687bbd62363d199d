"""The benchmark of a flood by one tenant: ratios pair by pair, and whether they are within the mark."""

import json

import pytest

from loadtests.overload import Seen
from loadtests.tenant_flood import TOKENS, request, rows_of


def phase(*answered_s: float, refused_ms: float | None = None) -> Seen:
    refused = [] if refused_ms is None else [refused_ms] * 9
    return Seen(answered_s=list(answered_s), refused_ms=refused, window_s=2)


def test_a_request_says_whose_it_is_and_what_it_asks_for() -> None:
    head, _, body = request("ak_1_x", "sql").partition(b"\r\n\r\n")
    assert b"Authorization: Bearer ak_1_x" in head
    assert f"Content-Length: {len(body)}".encode() in head
    assert (json.loads(body)["model"], json.loads(body)["max_tokens"]) == ("sql", TOKENS)


@pytest.mark.parametrize(("slow_s", "is_within"), [(1.9, "yes"), (2.1, "NO")])
def test_rows_are_pair_by_pair_and_say_whether_the_mark_holds(slow_s: float, is_within: str) -> None:
    quiet, noisy = [phase(1.0), phase(1.0)], [phase(slow_s), phase(slow_s)]
    p95, median, answers, beside = rows_of(quiet, noisy, [phase(3.0, 3.0, refused_ms=5.0), phase(3.0, 3.0)])
    assert p95.ratio == pytest.approx(slow_s)
    assert (p95.extra["pair by pair"], p95.extra["within the mark"]) == (f"{slow_s:.3f} {slow_s:.3f}", is_within)
    assert median.ratio == pytest.approx(slow_s)
    assert (answers.ratio, answers.extra["refused of the guest"]) == (1, "0 and 0")
    assert (beside.ratio, beside.extra["refused"]) == (2, "9")
