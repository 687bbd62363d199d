"""What clients send and is not answered: each refused before the engine sees it, as docs/clients.md says."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from tests.support.running_app import API_KEY, RunningApp, start_app

CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
HI: Final = [{"role": "user", "content": "Hi."}]
PNG: Final = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
PICTURE: Final = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}
PDF: Final = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="}}
SEARCH: Final = {"type": "web_search_20250305", "name": "web_search"}
USE: Final = {"type": "tool_use", "id": "1", "name": "look", "input": {}}
CALL: Final = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
CALLED: Final = {"role": "assistant", "content": "a", "tool_calls": [CALL]}
TOLD: Final = {"role": "tool", "tool_call_id": "1", "content": "Rain."}
CURSOR: Final = {"input": [{"role": "user", "content": [{"type": "input_text", "text": "Hi."}]}], "stream": True}

REFUSED: Final[dict[str, tuple[str, dict[str, Any], int, str | None, str]]] = {
    "Responses' body at the chat route": (CHAT, CURSOR, 400, "messages", "send this body to /v1/responses"),
    "chat's body at the Responses route": (RESPONSES, {"messages": HI}, 400, "input", "/v1/chat/completions"),
    "`previous_response_id`": (
        RESPONSES, {"input": "a", "previous_response_id": "resp_1"}, 400, "previous_response_id", "whole conversation",
    ),
    "`background: true`": (RESPONSES, {"input": "a", "background": True}, 400, "background", "stream"),
    "`functions` of old": (CHAT, {"messages": HI, "functions": [{"name": "f"}]}, 400, "functions", "send tools"),
    "`guided_json`": (
        CHAT, {"messages": HI, "guided_json": {"type": "object"}}, 400, "guided_json", "response_format",
    ),
    "sounds as an answer": (CHAT, {"messages": HI, "modalities": ["text", "audio"]}, 400, "modalities", "text only"),
    "a picture to a model that reads none": (
        CHAT, {"messages": [{"role": "user", "content": [PICTURE]}]}, 400, "messages", "reads no image",
    ),
    "a PDF to Anthropic's route": (
        MESSAGES, {"messages": [{"role": "user", "content": [PDF]}], "max_tokens": 4}, 400, "messages", "send what is",
    ),
    "a call in what a user says": (
        CHAT, {"messages": [{"role": "user", "content": [USE]}]}, 400, "messages", "with the role assistant",
    ),
    "a call whose id is no text": (
        CHAT, {"messages": [*HI, {"role": "assistant", "content": [{**USE, "id": 5}]}]},
        400, "messages", "tool_call_id",
    ),
    "`tool_calls` at Anthropic's route": (
        MESSAGES, {"messages": [*HI, CALLED], "max_tokens": 4}, 400, "messages", "send blocks of type tool_use",
    ),
    "a tool's message at Anthropic's route": (
        MESSAGES, {"messages": [*HI, TOLD], "max_tokens": 4}, 400, "messages", "results of tools are a user's",
    ),
    "a tool's message at the Responses route": (RESPONSES, {"input": [TOLD]}, 400, "input", "a function_call_output"),
    "a forced tool that would run here": (
        MESSAGES, {"messages": HI, "max_tokens": 4, "tools": [SEARCH], "tool_choice": {"type": "any"}}, 400,
        "tool_choice", "send functions",
    ),
    "`stream_options` without a stream": (
        CHAT, {"messages": HI, "stream_options": {"include_usage": True}}, 400, "stream_options", "stream",
    ),
    "half of a character in a text": (
        CHAT, {"messages": [{"role": "user", "content": "a\ud83d"}]}, 400, "body", "half",
    ),
    "a model that nobody serves": (CHAT, {"messages": HI, "model": "gpt-4o"}, 404, "model", "GET /v1/models"),
    "no model of embeddings": ("/v1/embeddings", {"input": "a"}, 404, None, "does not support embeddings"),
}  # fmt: skip


@pytest.fixture(scope="module")
async def running_app(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningApp]:
    async with start_app(tmp_path_factory.mktemp("refused"), context_tokens=8192) as opened:
        yield opened


@pytest.fixture
async def client(running_app: RunningApp) -> AsyncIterator[httpx.AsyncClient]:
    async with running_app.http(API_KEY) as session:
        yield session


@pytest.mark.parametrize("sent", REFUSED)
async def test_it_is_refused_before_the_engine_sees_it(
    running_app: RunningApp, client: httpx.AsyncClient, sent: str
) -> None:
    path, body, status, param, words = REFUSED[sent]
    asked = len(running_app.engine.calls)
    raw = json.dumps({"model": "tiny"} | body).encode()
    answer = await client.post(path, content=raw, headers={"content-type": "application/json"})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, param), error
    assert words in error["message"]
    assert len(running_app.engine.calls) == asked
    assert (answer.json().get("type") == "error") == (path == MESSAGES), "the mark of Anthropic's dialect"


def test_the_manual_lists_them_all() -> None:
    page = (Path(__file__).parents[2] / "docs" / "clients.md").read_text()
    for sent, (_, _, status, param, _) in REFUSED.items():
        told = f"| {sent} | {status}" + (f", `{param}` |" if param else " |")
        assert told in page, told
