"""Every way a request ends is counted once, and nothing is left running."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Message, Scope

from amalgam.api.errors import install_error_handlers
from amalgam.api.transport.middleware import RequestId
from amalgam.api.transport.observed import Observed
from amalgam.telemetry.context import note_adapter
from amalgam.telemetry.logs import JsonLines
from amalgam.telemetry.metric_table import METRICS
from amalgam.telemetry.metrics import Metrics
from amalgam.telemetry.server_state import ServerState
from tests.support.waiting import until

CHAT = "/v1/chat/completions"
SECRET = "ak_one_two-three"


async def chat(request: Request) -> Response:
    how = request.headers["how"]
    if how == "unknown model":
        return JSONResponse({"error": {}}, status_code=404)
    note_adapter("sql@1")
    if how == "raises":
        raise RuntimeError("no")
    if how == "disconnects":
        raise ClientDisconnect
    if how == "whole":
        request.state.request_metadata = SimpleNamespace(
            final_usage_info=SimpleNamespace(prompt_tokens=7, completion_tokens=2)
        )
        return JSONResponse({"choices": []})
    return StreamingResponse(parts(how), media_type="text/event-stream")


async def parts(how: str) -> AsyncIterator[str]:
    for _ in range(3):
        yield 'data: {"choices": []}\n\n'
        await asyncio.sleep(0.001)
    if how == "breaks":
        raise RuntimeError("no")
    if how == "hangs":
        await asyncio.sleep(60)
    yield "data: [DONE]\n\n"


async def responses(request: Request) -> Response:
    events = [{"type": "response.output_text.delta"}, {"type": "response.completed"}]
    events[1]["response"] = {"usage": {"input_tokens": 5, "output_tokens": 9}}  # type: ignore[assignment]
    return StreamingResponse(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events)


async def show(request: Request) -> Response:
    return JSONResponse({})


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def app(metrics: Metrics) -> FastAPI:
    app = FastAPI()
    app.add_api_route(CHAT, chat, methods=["POST"])
    app.add_api_route("/v1/responses", responses, methods=["POST"])
    app.add_api_route("/admin/v1/adapters/{name}", show)
    endpoints = {CHAT: "chat_completions", "/v1/responses": "responses"}
    app.add_middleware(Observed, metrics=metrics, endpoints=endpoints, access_log=True)
    return app


async def ask(
    app: ASGIApp, how: str = "whole", path: str = CHAT, method: str = "POST", leave_after: int | None = None
) -> int:
    """The status that a client sees, 0 for none; it leaves after so many parts."""
    left = asyncio.Event()
    seen = {"status": 0, "parts": 0}
    bodies = iter([{"type": "http.request", "body": b"", "more_body": False}])

    async def receive() -> Message:
        for body in bodies:
            return body
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            seen["status"] = message["status"]
        else:
            seen["parts"] += 1
        if seen["parts"] == leave_after:
            left.set()

    headers = [(b"how", how.encode()), (b"authorization", b"Bearer " + SECRET.encode())]
    headers += [(b"traceparent", b"00-" + b"ab" * 16 + b"-00f067aa0ba902b7-01")]
    scope: Scope = {
        "type": "http", "method": method, "path": path, "query_string": b"secret=1", "headers": headers,
        "amalgam.request_id": "req-1", "asgi": {"spec_version": "2.3"},
    }  # fmt: skip
    try:
        await app(scope, receive, send)
    except (RuntimeError, ClientDisconnect):
        return seen["status"]
    return seen["status"]


def counted(metrics: Metrics, name: str) -> dict[tuple[str, ...], float]:
    text = metrics.scrape(ServerState()).text(CollectorRegistry()).decode()
    order = next(spec.labels for spec in METRICS if spec.name == name)
    return {
        tuple(sample.labels[label] for label in order): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    }


@pytest.mark.parametrize(
    ("how", "adapter", "code"),
    [("whole", "sql@1", "200"), ("streams", "sql@1", "200"), ("raises", "sql@1", "500"), ("breaks", "sql@1", "500"),
     ("disconnects", "sql@1", "499"), ("unknown model", "none", "404")],
)  # fmt: skip
async def test_each_end_is_one_request_and_none_is_left_running(
    app: ASGIApp, metrics: Metrics, how: str, adapter: str, code: str
) -> None:
    await ask(app, how)
    assert counted(metrics, "amalgam_requests_total") == {("chat_completions", adapter, code): 1}
    assert counted(metrics, "amalgam_requests_running") == {("chat_completions",): 0}


async def test_a_client_that_leaves_in_the_middle_of_a_stream(app: ASGIApp, metrics: Metrics) -> None:
    assert await asyncio.wait_for(ask(app, "hangs", leave_after=2), 5) == 200
    assert counted(metrics, "amalgam_requests_total") == {("chat_completions", "sql@1", "499"): 1}
    assert counted(metrics, "amalgam_requests_running") == {("chat_completions",): 0}
    assert counted(metrics, "amalgam_completion_tokens_total") == {("sql@1",): 2}


async def test_a_cancelled_request_is_counted_too(app: ASGIApp, metrics: Metrics) -> None:
    task = asyncio.create_task(ask(app, "hangs"))
    await until(lambda: counted(metrics, "amalgam_requests_running") == {("chat_completions",): 1})
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert counted(metrics, "amalgam_requests_total") == {("chat_completions", "sql@1", "499"): 1}
    assert counted(metrics, "amalgam_requests_running") == {("chat_completions",): 0}


async def test_tokens_are_the_engines_own_count(app: ASGIApp, metrics: Metrics) -> None:
    await ask(app, "whole")
    await ask(app, path="/v1/responses")
    assert counted(metrics, "amalgam_prompt_tokens_total") == {("sql@1",): 7, ("none",): 5}
    assert counted(metrics, "amalgam_completion_tokens_total") == {("sql@1",): 2, ("none",): 9}


async def test_other_routes_count_by_template_and_unknown_words_by_none(app: ASGIApp, metrics: Metrics) -> None:
    await ask(app, path="/admin/v1/adapters/some-name", method="GET")
    await ask(app, path="/no/such/route", method="GET")
    await ask(app, path="/no/such/route", method="FORGED\nMETHOD")
    assert counted(metrics, "amalgam_http_requests_total") == {
        ("GET", "/admin/v1/adapters/{name}", "200"): 1,
        ("GET", "none", "404"): 1,
        ("other", "none", "404"): 1,
    }
    assert counted(metrics, "amalgam_requests_total") == {}


@pytest.fixture
def lines() -> Iterator[list[dict[str, Any]]]:
    seen: list[dict[str, Any]] = []
    handler = logging.Handler()
    handler.emit = lambda record: seen.append(json.loads(JsonLines().format(record)))  # type: ignore[method-assign]
    logger = logging.getLogger("amalgam.access")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield seen
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)


async def test_the_access_line_says_who_and_what_and_no_secret(app: ASGIApp, lines: list[dict[str, Any]]) -> None:
    await asyncio.create_task(ask(app, "whole"))
    await asyncio.create_task(ask(app, "streams", path=CHAT))
    await asyncio.create_task(ask(app, path="/admin/v1/adapters/some-name", method="GET"))
    whole, streamed, admin = lines
    assert (whole["method"], whole["route"], whole["status"]) == ("POST", "chat_completions", 200)
    assert (whole["adapter"], whole["version"], whole["request_id"]) == ("sql", 1, "req-1")
    assert (whole["prompt_tokens"], whole["completion_tokens"], whole["trace_id"]) == (7, 2, "ab" * 16)
    assert 0 < streamed["first_token_ms"] <= streamed["ms"]
    assert admin["route"] == "/admin/v1/adapters/{name}"
    for line in lines:
        assert SECRET not in json.dumps(line)
        assert "secret" not in json.dumps(line)
        assert "some-name" not in json.dumps(line)


async def test_no_access_line_where_it_is_off(metrics: Metrics, lines: list[dict[str, Any]]) -> None:
    quiet = Observed(FastAPI(), metrics, {}, access_log=False)
    await ask(quiet, path="/nothing")
    assert lines == []


async def test_an_error_line_carries_the_request_id_of_its_answer() -> None:
    app = FastAPI()

    async def fail(request: Request) -> Response:
        note_adapter("sql@1")
        raise RuntimeError("no")

    app.add_api_route("/fail", fail)
    install_error_handlers(app)
    app.add_middleware(Observed, metrics=Metrics(), endpoints={}, access_log=False)
    app.add_middleware(RequestId)
    seen: list[dict[str, Any]] = []
    handler = logging.Handler()
    handler.emit = lambda record: seen.append(json.loads(JsonLines().format(record)))  # type: ignore[method-assign]
    logging.getLogger("amalgam.api.errors").addHandler(handler)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        answer = await asyncio.create_task(client.get("/fail"))
    logging.getLogger("amalgam.api.errors").removeHandler(handler)
    assert answer.status_code == 500
    assert seen[0]["request_id"] == answer.json()["error"]["request_id"]
    assert (seen[0]["adapter"], seen[0]["version"]) == ("sql", 1)
    assert "RuntimeError" in seen[0]["exception"]
