"""The engine's core dies or hangs under requests, at a server of its own: it comes back, and nobody waits for ever."""

import asyncio
import os
import signal
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from tests.e2e.conftest import RunningServer, running_server
from tests.e2e.engine_core import RESTART_LIMIT_S, core_pid, wait_until
from tests.e2e.test_adapter_lifecycle import logprobs

pytestmark = pytest.mark.slow

PROMPT: Any = [{"role": "user", "content": "Count from one to one thousand in words."}]
HANG_S = 15


@pytest.fixture(scope="module")
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    yield from running_server(tmp_path_factory.mktemp("death"), AMALGAM_ENGINE_HANG_S=str(HANG_S))


@pytest.fixture
def server(own_server: RunningServer) -> RunningServer:
    return own_server


async def stream_until_end(client: openai.AsyncOpenAI, started: asyncio.Event) -> str:
    """How a stream that is cut by the engine's death ends."""
    try:
        stream = await client.chat.completions.create(
            model="sql", messages=PROMPT, max_tokens=1800, stream=True, extra_body={"ignore_eos": True}
        )
        async for _ in stream:
            started.set()
    except openai.APIStatusError as error:
        return f"status {error.status_code}"
    except openai.APIError:
        # An SSE event `data: {"error": …}` is this exception in the client.
        return "error event"
    return "ended as if all were well"


async def whole_answer(client: openai.AsyncOpenAI) -> int:
    with pytest.raises(openai.APIStatusError) as caught:
        await client.chat.completions.create(
            model="json", messages=PROMPT, max_tokens=1800, extra_body={"ignore_eos": True}
        )
    assert caught.value.response.headers["retry-after"]
    return caught.value.status_code


@pytest.mark.parametrize(
    ("blow", "noticed_s"), [(signal.SIGKILL, 1.5), (signal.SIGSTOP, HANG_S + 15.0)], ids=["dies", "hangs"]
)
async def test_the_engine_comes_back_and_nobody_is_left_waiting(
    server: RunningServer,
    client: openai.OpenAI,
    async_client: openai.AsyncOpenAI,
    admin: httpx.Client,
    blow: signal.Signals,
    noticed_s: float,
) -> None:
    expected = logprobs(client, "sql")
    assert admin.post("/admin/v1/adapters/code:pin").status_code == 200
    restarts = admin.get("/admin/v1/engine").json()["restarts"]
    admin.post("/admin/v1/adapters/json:unload")
    started = asyncio.Event()
    streaming = asyncio.create_task(stream_until_end(async_client, started))
    await asyncio.wait_for(started.wait(), 60)
    os.kill(core_pid(server), blow)
    # Its adapter has yet to be loaded, so the first thing that the lost core is asked is not a generation.
    waiting = asyncio.create_task(whole_answer(async_client))
    noticed = await asyncio.to_thread(wait_until, server, False, noticed_s)
    assert noticed <= noticed_s
    refused = await asyncio.to_thread(
        httpx.post,
        f"{server.url}/v1/chat/completions",
        json={"model": "sql", "messages": PROMPT},
        headers={"Authorization": f"Bearer {client.api_key}"},
        timeout=30,
    )
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "engine_not_ready"
    assert refused.headers["retry-after"]
    assert httpx.get(f"{server.url}/livez", timeout=30).status_code == 200
    assert await asyncio.wait_for(streaming, 60) in ("error event", "status 503")
    assert await asyncio.wait_for(waiting, 60) == 503
    await asyncio.to_thread(wait_until, server, True, RESTART_LIMIT_S)
    engine = admin.get("/admin/v1/engine").json()
    assert engine["restarts"] == restarts + 1
    assert [r["model"] for r in engine["residents"] if r["pinned"]] == ["code@1"]
    assert all(r["held"] == 0 for r in engine["residents"])
    assert logprobs(client, "sql") == pytest.approx(expected, abs=0.02)
    admin.post("/admin/v1/adapters/code:unpin")
