"""The corpus of dear requests on the real engine: none keeps the event loop of the server for longer than the limit."""

import time
from collections.abc import Iterator

import httpx
import pytest

from tests.api.nasty_requests import STALL_LIMIT_S, Nasty, nasty_requests
from tests.e2e.conftest import RunningServer
from tests.e2e.test_bad_requests import check_next, good

_TRIES = 6
"""Processor time grows too where the other core is busy: what keeps the loop does so each time."""
_BUSY = "amalgam_event_loop_busy_seconds"


@pytest.fixture(scope="module")
def session(standard_server: RunningServer) -> Iterator[httpx.Client]:
    with standard_server.admin() as opened:
        # What is imported and built with the first request of a kind is not what is measured.
        for path in ("/v1/completions", "/v1/chat/completions"):
            text = {"prompt": "a"} if path == "/v1/completions" else {"messages": [{"role": "user", "content": "a"}]}
            opened.post(path, json={"model": "sql", "max_tokens": 1, "prompt_logprobs": 1} | text)
        yield opened


@pytest.mark.parametrize("nasty", nasty_requests("sql"), ids=lambda nasty: nasty.name)
def test_no_request_stops_the_servers_loop(server: RunningServer, session: httpx.Client, nasty: Nasty) -> None:
    """By the processor time of the loop's thread, which a busy machine does not stretch as it does the wall's."""
    body = nasty.build()
    headers = [("content-type", "application/json"), *nasty.headers]
    for _ in range(_TRIES):
        before = _longer_steps(server)
        answer = session.post(nasty.path, content=body, headers=headers)
        time.sleep(0.1)
        if _longer_steps(server) == before:
            break
    else:
        pytest.fail(f"the loop worked for longer than {STALL_LIMIT_S} s at a time")
    assert answer.status_code < 500, answer.text[:500]


def test_after_all_of_them_the_server_answers_as_ever(session: httpx.Client) -> None:
    check_next(session, good(session))


def _longer_steps(server: RunningServer) -> float:
    """Steps of the loop that took longer than the limit, a bound of the histogram, so far."""
    # Both from one page: between two pages the loop takes further steps.
    page = dict(line.rsplit(" ", 1) for line in httpx.get(f"{server.url}/metrics", timeout=30).text.splitlines())
    return float(page[f"{_BUSY}_count"]) - float(page[f'{_BUSY}_bucket{{le="{STALL_LIMIT_S}"}}'])
