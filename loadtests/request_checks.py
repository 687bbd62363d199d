"""What the checks of a request's fields cost: by the tables, and by strict Pydantic models with the same bounds.

Each side runs in a process of its own, and they take turns. The models are those of the OpenAPI document; beside them
the second side does what models cannot: it counts nesting and automata, sorts out what has no effect, and compares the
fields with each other, with the functions of the first side. A row of its own says what limits and the ledger of usage
add to a request: under six limits, and without any. ``--before`` names another checkout, whose checks are a
third side: what they cost before a change.

    python loadtests/request_checks.py [--rounds 7] [--before FOLDER] [--out request_checks]      # two minutes
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY)]
if "PYTHONPATH" not in os.environ:
    sys.path[:0] = [str(REPOSITORY / "server")]

from fastapi import APIRouter, Depends, Request  # noqa: E402
from fastapi.routing import APIRoute  # noqa: E402
from starlette.responses import Response  # noqa: E402
from starlette.types import Message  # noqa: E402

from amalgam.api.access import OPEN  # noqa: E402
from amalgam.api.fields.by_endpoint import FIELDS, check_fields  # noqa: E402
from amalgam.api.inference import openai  # noqa: E402
from amalgam.engine.protocol import Endpoint  # noqa: E402
from loadtests.report import Row, write_report  # noqa: E402

CHAT: Final[Endpoint] = "chat_completions"
VOCABULARY, CONTEXT = 49_152, 8192
BATCHES: Final = 15
BATCH_S: Final = 0.02
"""Processor time that one batch of calls takes about."""
MARK_US: Final = 120
"""Processor time that a request may cost in front of the engine."""


def small_chat() -> dict[str, Any]:
    """What most requests are."""
    messages = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "How many rows has the table users?"},
    ]
    return {"model": "sql", "messages": messages, "temperature": 0.7, "max_tokens": 256, "stream": True}


def tool(number: int) -> dict[str, Any]:
    """A function with ten arguments, two of which are objects of their own."""
    properties: dict[str, Any] = {
        f"argument_{i}": {"type": "string", "description": f"The argument of number {i}, as it is written."}
        for i in range(6)
    }
    properties["count"] = {"type": "integer", "minimum": 0, "maximum": 100}
    properties["kind"] = {"type": "string", "enum": ["one", "two", "three"]}
    inner = {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "number"}}, "required": ["a"]}
    properties |= {"options": inner, "entries": {"type": "array", "items": inner, "maxItems": 16}}
    parameters = {"type": "object", "properties": properties, "required": ["argument_0"], "additionalProperties": False}
    about = "Does what its name says, and tells what came of it."
    return {"type": "function", "function": {"name": f"tool_{number}", "description": about, "parameters": parameters}}


def tools_chat() -> dict[str, Any]:
    """An agent's turn: twelve functions, a call and its answer."""
    call = {"id": "c1", "type": "function", "function": {"name": "tool_1", "arguments": '{"argument_0": "x"}'}}
    messages = [
        *small_chat()["messages"],
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "done"},
    ]
    return small_chat() | {"messages": messages, "tools": [tool(number) for number in range(12)], "tool_choice": "auto"}


def long_chat() -> dict[str, Any]:
    """Fifty messages, every fifth in parts."""
    messages: list[dict[str, Any]] = []
    for number in range(50):
        text = f"Message {number}, which has some words in it."
        content: Any = text if number % 5 else [{"type": "text", "text": text}, {"type": "text", "text": "And more."}]
        messages.append({"role": "assistant" if number % 2 else "user", "content": content})
    return small_chat() | {"messages": messages}


ROUTE: Final = "a route with nothing to do"
LIMITS: Final = "limits and the ledger of usage"
LIMITS_MARK_US: Final = 60
"""Processor time that limits and the ledger may add to a request."""
SIDES: Final = {ROUTE: "ours / FastAPI's", LIMITS: "under six limits / without limits"}
CASES: Final[dict[str, Callable[[], dict[str, Any]]]] = {
    "a small chat": small_chat,
    "a chat with 12 tools": tools_chat,
    "a chat of 50 messages": long_chat,
}


def by_tables(body: dict[str, Any]) -> object:
    """What the server does."""
    return check_fields(CHAT, body, VOCABULARY, CONTEXT)


def by_models() -> Callable[[dict[str, Any]], object]:
    """The same by a strict model, and by functions for what a model cannot hold."""
    from amalgam.api.fields.checks import shallow
    from amalgam.api.fields.constraints import response_format, shown_schema_within
    from amalgam.api.fields.request_budget import check_together
    from amalgam.api.fields.rewrites import rewrite
    from amalgam.api.inference.request_models import request_model

    validate = request_model(CHAT).model_validate
    table = FIELDS[CHAT]

    def check(body: dict[str, Any]) -> object:
        validate(body)
        kept, ignored = {}, []
        for name, value in body.items():
            if name in table and table[name].rule == "honoured":
                kept[name] = value
            else:
                ignored.append(name)
        for message in body["messages"]:
            shallow("messages", message)
        for given in body.get("tools", ()):
            shallow("tools", given)
            shown_schema_within("tools", given["function"]["parameters"])
        if "response_format" in body:
            response_format("response_format", body["response_format"])
        ignored += rewrite(CHAT, kept)
        check_together(CHAT, kept, CONTEXT)
        return kept, ignored

    return check


def cost_us(work: Callable[[], object]) -> float:
    """Microseconds of processor time a call: the median of batches."""
    began = time.process_time()
    for _ in range(20):
        work()
    calls = max(20, int(BATCH_S / max((time.process_time() - began) / 20, 1e-7)))
    samples = []
    for _ in range(BATCHES):
        began = time.process_time()
        for _ in range(calls):
            work()
        samples.append((time.process_time() - began) / calls * 1e6)
    return statistics.median(samples)


def route_us(kind: type[APIRoute]) -> float:
    """What a route of ``kind`` costs whose function does nothing."""
    empty = Response()

    async def alone(request: Request) -> Response:
        return empty

    async def with_body(request: Request, body: dict[str, Any]) -> Response:
        return empty

    path, times = "/v1/chat/completions", 200
    routes = APIRouter(dependencies=[Depends(OPEN)])
    # FastAPI would read a body that is in the signature; without one it is what this server had.
    function = alone if kind is APIRoute else with_body
    routes.add_api_route(path, function, methods=["POST"], route_class_override=kind)
    headers = [(b"host", b"x"), (b"content-type", b"application/json"), (b"user-agent", b"x")]
    scope = {"type": "http", "method": "POST", "path": path, "headers": headers, "query_string": b"", "root_path": ""}

    async def receive() -> Message:
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def send(message: Message) -> None:
        """Stands for the network."""

    async def requests() -> None:
        for _ in range(times):
            async with AsyncExitStack() as stack:
                await routes(scope | {"fastapi_middleware_astack": stack}, receive, send)

    with asyncio.Runner() as runner:
        return cost_us(lambda: runner.run(requests())) / times


def limits_us(*, is_limited: bool) -> float:
    """What limits of a tenant and a key, and the ledger, add to a request; the database is asked once a second."""
    from loadtests.limited_request import LimitedRequest

    request, times = LimitedRequest(small_chat(), is_limited=is_limited), 200

    async def requests() -> None:
        for _ in range(times):
            await request.once()

    with asyncio.Runner() as runner:
        return cost_us(lambda: runner.run(requests())) / times


def run_side(side: str) -> dict[str, float]:
    """Every case on this process' side."""
    check = by_models() if side == "models" else by_tables
    bodies = {name: json.loads(json.dumps(make())) for name, make in CASES.items()}
    found = {name: cost_us(partial(check, body)) for name, body in bodies.items()}
    found[ROUTE] = route_us(openai.BodyInDocument if side == "tables" else APIRoute)
    return found if side == "before" else found | {LIMITS: limits_us(is_limited=side == "tables")}


def ask(side: str, checkout: Path) -> dict[str, float]:
    """The same in a process of its own, with the package of ``checkout``."""
    environment = os.environ | {"PYTHONPATH": str(checkout / "server"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).resolve()), "--side", side]
    found = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return dict(json.loads(found.stdout))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--out", default="")
    parser.add_argument(
        "--side", choices=("tables", "models", "before"), help="print one side's figures; for the program itself"
    )
    options = parser.parse_args()
    if options.side:
        print(json.dumps(run_side(options.side)))
        return
    sides = {"tables": REPOSITORY, "models": REPOSITORY} | ({"before": options.before} if options.before else {})
    seen: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for number in range(options.rounds):
        for side in list(sides) if number % 2 else list(sides)[::-1]:
            seen[side].append(ask(side, sides[side]))
        print(f"round {number + 1}", file=sys.stderr)
    rows = []
    for case in (*CASES, ROUTE, LIMITS):
        ours = [figures[case] for figures in seen["tables"]]
        mark_us = LIMITS_MARK_US if case == LIMITS else MARK_US
        extra: dict[str, Any] = {f"of the mark of {mark_us} µs": f"{statistics.median(ours) / mark_us:.0%}"}
        sides_shown = SIDES.get(case, "by the tables / by models")
        rows.append(Row(f"{case}: {sides_shown}", "µs of CPU", ours, [f[case] for f in seen["models"]], extra))
        if options.before and case in CASES:
            rows.append(Row(f"{case}: now / before", "µs of CPU", ours, [f[case] for f in seen["before"]], {}))
    write_report(
        "What checking a request costs", rows, rounds=options.rounds, out=options.out, notes={}, theirs="the other side"
    )


if __name__ == "__main__":
    main()
