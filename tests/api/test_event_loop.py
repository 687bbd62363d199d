"""What one request may cost everybody: the event loop never stands still for longer than the limit."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.api.nasty_requests import STALL_LIMIT_S, Nasty, nasty_requests, stall
from tests.support.running_app import ADMIN_KEY, RunningApp, start_app

pytestmark = pytest.mark.alone

_TRIES = 4
"""A machine that is busy with other things stalls a loop as well; a request that stalls it does so each time."""


@pytest.fixture(scope="module")
async def tight(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningApp]:
    """An application with the body limit that servers have, on a model of 2,048 tokens."""
    async with start_app(tmp_path_factory.mktemp("tight"), context_tokens=2048, max_body_bytes=4 << 20) as running_app:
        yield running_app


@pytest.fixture(scope="module")
async def long_context(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningApp]:
    """The same on a model of 131,072 tokens, where bodies may be as large as the general limit."""
    async with start_app(
        tmp_path_factory.mktemp("long_context"), context_tokens=1 << 17, max_body_bytes=4 << 20
    ) as running_app:
        yield running_app


@pytest.mark.parametrize("nasty", nasty_requests("tiny"), ids=lambda nasty: nasty.name)
async def test_no_request_stops_the_loop(tight: RunningApp, long_context: RunningApp, nasty: Nasty) -> None:
    body = nasty.build()
    for running_app in (tight, long_context):
        shortest = await _stalled(running_app, nasty, body)
        for _ in range(_TRIES - 1):
            if shortest <= STALL_LIMIT_S:
                break
            await asyncio.sleep(0.2)
            shortest = min(shortest, await _stalled(running_app, nasty, body))
        assert shortest <= STALL_LIMIT_S


async def _stalled(running_app: RunningApp, nasty: Nasty, body: bytes) -> float:
    async with running_app.http(ADMIN_KEY) as client:
        headers = [("content-type", "application/json"), *nasty.headers]
        with stall() as longest:
            answer = await client.post(nasty.path, content=body, headers=headers)
        assert answer.status_code < 500, answer.text[:500]
    return longest[0]
