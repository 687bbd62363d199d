"""Headers by which vLLM lets itself be steered have no effect here, on the real engine, and leave nothing behind."""

import asyncio
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import API_KEY, QUEUED, RunningServer

BODY = {"model": "sql", "max_tokens": 1, "temperature": 0}
MESSAGES = [{"role": "user", "content": "Say one word."}]
ASKED: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES},
    "/v1/completions": {"prompt": "One"},
    "/v1/messages": {"messages": MESSAGES},
    "/v1/responses": {"input": "One", "max_output_tokens": 3},
}
STEERING = [
    {"X-Vllm-Priority": "1180591620717411303424"},
    {"X-Vllm-Priority": "-1180591620717411303424"},
    {"X-Vllm-Priority": "5"},
    {"X-data-parallel-rank": "9"},
    {"X-data-parallel-rank": "1180591620717411303424"},
    {"X-Session-ID": "s" * 5000},
    {"endpoint-load-metrics-format": "JSON"},
    {"endpoint-load-metrics-format": "TEXT"},
]


@pytest.mark.parametrize("path", ASKED)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_steering_headers_change_no_answer(server: RunningServer, path: str, stream: bool) -> None:
    body = BODY | ASKED[path] | ({"stream": True} if stream else {})
    if path == "/v1/responses":
        del body["max_tokens"]
    with server.client() as session:
        for headers in STEERING:
            answer = session.post(path, json=body, headers=headers)
            assert answer.status_code == 200, (headers, answer.text)
            assert "endpoint-load-metrics" not in answer.headers


async def test_no_request_stays_registered_for_what_its_headers_said(server: RunningServer) -> None:
    """vLLM refuses everybody once it knows `QUEUED` requests; each of these, were it not forgotten, is one of them."""
    body = BODY | {"prompt": "One", "max_tokens": 1}
    numbers = iter(range(QUEUED + 5))

    async def ask(session: httpx.AsyncClient) -> None:
        for number in numbers:
            headers = {"X-Vllm-Priority": f"118059162071741130{number}"}
            answer = await session.post("/v1/completions", json=body, headers=headers)
            assert answer.status_code == 200, (number, answer.text)

    headers = {"Authorization": f"Bearer {API_KEY}"}
    async with httpx.AsyncClient(base_url=server.url, headers=headers, timeout=120) as session:
        await asyncio.gather(*(ask(session) for _ in range(8)))
