import ast
import asyncio
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter
from starlette.requests import Request
from starlette.responses import JSONResponse

from amalgam.engine.stripped_request import SHOWN_HEADERS, stripped_request

STEERING = {
    "X-Vllm-Priority": "1180591620717411303424",
    "X-Session-ID": "somebody else's",
    "X-data-parallel-rank": "7",
    "endpoint-load-metrics-format": "JSON",
    "X-Request-Id": "twice",
    "Authorization": "Bearer secret",
    "x-vllm-anything-new": "1",
    "Content-Type": "application/json",
    "X-Forwarded-For": "10.0.0.1",
}


def asked(**headers: str) -> Request:
    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    sent = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    scope = {
        "type": "http", "app": object(), "method": "POST", "path": "/v1/completions", "query_string": b"priority=1",
        "headers": sent, "client": ("10.0.0.1", 1), "server": ("10.0.0.2", 80), "scheme": "http",
    }  # fmt: skip
    return Request(scope, receive)


def test_of_all_headers_only_the_trace_is_shown() -> None:
    shown = stripped_request(asked(**STEERING, traceparent="00-1-2-01", Tracestate="a=b"))
    assert dict(shown.headers) == {"traceparent": "00-1-2-01", "tracestate": "a=b"}
    assert not shown.query_params
    assert shown.client is None


async def _received(request: Request) -> Any:
    return await request.receive()


def test_what_vllm_leaves_on_the_request_is_found_and_a_client_that_left_is_seen() -> None:
    given = asked()
    shown = stripped_request(given)
    shown.state.request_metadata = "usage"
    assert given.scope["state"]["request_metadata"] == "usage"
    assert shown.app is given.scope["app"]
    assert asyncio.run(_received(shown))["type"] == "http.disconnect"


def test_every_handler_gets_such_a_request() -> None:
    pytest.importorskip("vllm")
    from amalgam.engine.vllm_endpoints import EndpointSpec, answer
    from amalgam.engine.written_answers import AnswerThreads

    seen: list[Request] = []

    async def handler(body: Any, raw_request: Request) -> JSONResponse:
        seen.append(raw_request)
        return JSONResponse({})

    spec = EndpointSpec(TypeAdapter(dict[str, Any]), handler, "any")
    asyncio.run(answer(spec, {}, asked(**STEERING), AnswerThreads()))
    assert dict(seen[0].headers) == {}


def test_the_headers_that_vllm_reads_are_known() -> None:
    """A release that reads another header off requests shows here, so that somebody decides about it."""
    vllm = pytest.importorskip("vllm")
    root = Path(vllm.__file__).parent / "entrypoints"
    served = ("openai", "anthropic", "generate", "serve/tokenize", "serve/engine", "pooling/base", "pooling/embed")
    read: set[str] = set()
    for part in served:
        for path in (root / part).rglob("*.py"):
            read |= _read_headers(ast.parse(path.read_text()))
    known = {
        "'X-data-parallel-rank'", "SESSION_ID_HEADER", "PRIORITY_HEADER", "ENDPOINT_LOAD_METRICS_FORMAT_HEADER_LABEL",
        "'X-Request-Id'",
    }  # fmt: skip
    assert read == known
    assert {b"traceparent", b"tracestate"} == SHOWN_HEADERS


def _read_headers(tree: ast.AST) -> set[str]:
    """The arguments of every ``….headers.get(…)``, as they are written."""
    return {
        ast.unparse(call.args[0])
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr == "get"
        and isinstance(call.func.value, ast.Attribute)
        and call.func.value.attr == "headers"
        and call.args
    }
