"""One key floods the real engine: what it is refused, and what another key notices."""

import asyncio
import time
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import ADMIN_KEY, API_KEY, RunningServer

pytestmark = pytest.mark.slow

FLOOD = 150
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Count to one hundred."}], "ignore_eos": True}


def http(server: RunningServer, key: str) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=2 * FLOOD)
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.AsyncClient(base_url=server.url, headers=headers, timeout=300, limits=limits)


async def first_token_s(client: httpx.AsyncClient, model: str) -> float:
    began = time.monotonic()
    body = CHAT | {"model": model, "max_tokens": 4, "stream": True}
    async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert answer.status_code == 200
        async for line in answer.aiter_lines():
            if '"content":"' in line and '"content":""' not in line:
                break
    return time.monotonic() - began


@pytest.mark.parametrize("model", ["smollm2", "sql"])
async def test_another_key_does_not_wait_for_a_flood(server: RunningServer, model: str) -> None:
    """Also for the base model, and where all ask for the same adapter."""
    async with http(server, API_KEY) as heavy, http(server, ADMIN_KEY) as light:
        await first_token_s(light, model)
        alone_s = await first_token_s(light, model)

        async def one() -> int:
            answer = await heavy.post("/v1/chat/completions", json=CHAT | {"model": model, "max_tokens": 32})
            if answer.status_code == 429:
                assert int(answer.headers["retry-after"]) >= 1
                assert answer.json()["error"]["code"] == "too_many_requests"
            return answer.status_code

        began = time.monotonic()
        flood = [asyncio.create_task(one()) for _ in range(FLOOD)]
        # The engine has its batch, and the rest waits in front of it.
        async with asyncio.timeout(60):
            while not any(task.done() for task in flood):
                await asyncio.sleep(0.05)
        waits = [await first_token_s(light, model) for _ in range(3)]
        running = sum(not task.done() for task in flood)
        codes = await asyncio.gather(*flood)
        whole_s = time.monotonic() - began
        # Some steps of a full batch, and not the requests before it.
        assert min(waits) < max(10 * alone_s, 0.25 * whole_s)
        assert running > 0
        assert set(codes) <= {200, 429}
        assert codes.count(200) >= FLOOD // 2
    assert server.metric("amalgam_adapter_turn_waiting_requests") == 0
    assert server.metric("amalgam_requests_admitted ") == 0
