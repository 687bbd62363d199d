"""An application without a model for tests of batches, and the steps that they share, through OpenAI's own client."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterable
from typing import Any, Literal

import httpx
import openai
import pytest
from openai.types import Batch

from tests.api.fake_engine import FakeEngine
from tests.support.running_app import ADMIN_KEY, RunningApp, push, start_app, write_adapter

CHAT: Literal["/v1/chat/completions"] = "/v1/chat/completions"
ENDED = ("completed", "failed", "cancelled", "expired")


@pytest.fixture(scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningApp]:
    folder, engine = tmp_path_factory.mktemp("batches"), FakeEngine(prompt_tokens=7)
    async with start_app(folder, engine, blender=True, evaluation_yield_above=1000) as running_app:
        async with running_app.http(ADMIN_KEY) as admin:
            for name in ("acme.sql", "acme.json", "zeta.one"):
                assert (await push(admin, name, write_adapter(running_app.sources / name))).status_code == 201
            target = {"targets": [{"model": "acme.sql", "weight": 1}]}
            assert (await admin.put("/admin/v1/aliases/acme.live", json=target)).status_code == 201
        yield running_app


@pytest.fixture
def running(shared: RunningApp) -> RunningApp:
    """The application, its engine as it was at the start."""
    engine = shared.engine
    engine.chunk_pause_s, engine.failure, engine.current, engine.most = 0.0, None, "ready", 0
    engine.calls.clear()
    return shared


@pytest.fixture
def tenant(request: pytest.FixtureRequest) -> str:
    """One that no other test has."""
    return re.sub(r"[^a-z]+", "-", request.node.name.lower())[-50:].strip("-")


def client_of(running_app: RunningApp, key: str) -> openai.AsyncOpenAI:
    transport = httpx.ASGITransport(running_app.app, raise_app_exceptions=False)
    http = httpx.AsyncClient(transport=transport)
    return openai.AsyncOpenAI(api_key=key, base_url="http://localhost/v1", http_client=http, max_retries=0)


def line(custom_id: str, model: str | None = "tiny", **changes: Any) -> dict[str, Any]:
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
    return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body} | changes


def jsonl(lines: Iterable[Any]) -> bytes:
    return b"".join(one if isinstance(one, bytes) else json.dumps(one).encode() + b"\n" for one in lines)


async def begun(client: openai.AsyncOpenAI, lines: Iterable[Any], **fields: Any) -> Batch:
    file = await client.files.create(file=("asked.jsonl", jsonl(lines)), purpose="batch")
    return await client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h", **fields)


async def ended(client: openai.AsyncOpenAI, batch_id: str) -> Batch:
    async with asyncio.timeout(60):
        while (batch := await client.batches.retrieve(batch_id)).status not in ENDED:
            await asyncio.sleep(0.05)
    return batch


async def written(client: openai.AsyncOpenAI, file_id: str | None) -> list[dict[str, Any]]:
    if file_id is None:
        return []
    return [json.loads(one) for one in (await client.files.content(file_id)).text.splitlines()]
