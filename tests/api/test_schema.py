"""Schemathesis over the whole OpenAPI document: whatever the document allows, and what it does not, is no 5xx."""

import asyncio
import json
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.core.result import Ok

from amalgam.api.fields.by_endpoint import FIELDS
from amalgam.api.inference.openai import ENDPOINT_PATHS
from tests.api.fake_engine import FakeEngine
from tests.support.running_app import ADMIN_KEY, RunningApp, assert_error, push, served, start_app, write_adapter

pytestmark = pytest.mark.slow

EXAMPLES = 8
QUIET = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
OPERATIONS = 30
"""At least so many are in the document; a walk that finds fewer tests less than it says."""


@pytest.fixture(scope="module")
def served_app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, RunningApp]]:
    """An application with one adapter, on a loop and a port of its own: schemathesis calls it from outside."""
    folder = tmp_path_factory.mktemp("schema")
    opened: Future[tuple[str, RunningApp]] = Future()
    done = threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(_live(folder, opened, done)))
    thread.start()
    try:
        yield opened.result(30)
    finally:
        done.set()
        thread.join(30)


async def _live(folder: Path, opened: "Future[tuple[str, RunningApp]]", done: threading.Event) -> None:
    try:
        async with (
            start_app(folder, FakeEngine(), max_upload_bytes=1 << 16) as running_app,
            served(running_app.app) as url,
        ):
            async with running_app.http(ADMIN_KEY) as http:
                assert (await push(http, "sql", write_adapter(folder / "sql"))).status_code == 201
            opened.set_result((url, running_app))
            await asyncio.to_thread(done.wait)
    except BaseException as error:
        opened.set_exception(error)
        raise


def document(running_app: RunningApp) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(running_app.app.openapi()))
    return found


def judge(answer: Any, what: str) -> None:
    """No 5xx; and an error is in the one shape."""
    assert answer.status_code < 500, f"{what}: {answer.status_code} {answer.text[:500]}"
    if "x-request-id" not in answer.headers:
        # What is no HTTP at all does not come as far as the application.
        assert (answer.status_code, answer.text) == (400, "Invalid HTTP request received."), what
    elif answer.status_code >= 400 and answer.request.method != "HEAD":
        error = json.loads(answer.text)["error"]
        assert error.keys() - {"findings"} == {"message", "type", "param", "code", "request_id"}, what


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=lambda mode: mode.value)
def test_no_operation_answers_5xx(served_app: tuple[str, RunningApp], mode: GenerationMode) -> None:
    url, running_app = served_app
    schema = schemathesis.openapi.from_dict(document(running_app))
    operations = [cast(Ok[Any], result).ok() for result in schema.get_all_operations()]
    assert len(operations) >= OPERATIONS
    called: set[str] = set()

    def attack(case: schemathesis.Case[Any]) -> None:
        if case.operation.label == "POST /admin/v1/merges":
            # It waits for as long as it is asked to, and nobody builds here.
            case.query = {key: value for key, value in (case.query or {}).items() if key != "wait_s"}
        if case.operation.label == "POST /admin/v1/merges:plan":
            # Nor computes diagnostics.
            case.query = (case.query or {}) | {"diagnostics": "false"}
        answer = case.call(base_url=url, headers={"Authorization": f"Bearer {ADMIN_KEY}"}, timeout=20)
        called.add(case.operation.label)
        judge(answer, case.as_curl_command())

    for operation in operations:
        try:
            QUIET(given(case=operation.as_strategy(generation_mode=mode))(attack))()
        except Unsatisfiable:
            # Nothing can be wrong about an operation without parameters.
            assert mode is GenerationMode.NEGATIVE, operation.label
    assert len(called) >= (len(operations) if mode is GenerationMode.POSITIVE else OPERATIONS // 2)


NASTY = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-(10**30), 10**30),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=20), st.sampled_from(["", "sql", "tiny", "sql@1", "x" * 5000, "\x00", "../..", "{{7*7}}"]),
)  # fmt: skip
VALUES = st.recursive(
    NASTY,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["role", "content", "type", "text", "name", "function", "schema", "json_schema", "pattern", "id"]
            )
            | st.text(max_size=5),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@pytest.mark.parametrize("path", sorted(ENDPOINT_PATHS))
def test_no_body_of_known_fields_is_a_5xx_or_reaches_the_engine_out_of_bounds(
    served_app: tuple[str, RunningApp], path: str
) -> None:
    url, running_app = served_app
    fields = sorted(FIELDS[ENDPOINT_PATHS[path]])
    bodies = st.dictionaries(st.sampled_from(fields), VALUES, max_size=4)
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {ADMIN_KEY}"}) as session:

        @settings(QUIET, max_examples=30)
        @given(body=bodies)
        def attack(body: dict[str, Any]) -> None:
            raw = json.dumps(body).encode()
            judge(session.post(path, content=raw, headers={"Content-Type": "application/json"}), raw.decode())

        attack()
    assert running_app.engine.residency.held == 0


async def test_the_server_still_answers(served_app: tuple[str, RunningApp]) -> None:
    url, running_app = served_app
    async with httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {ADMIN_KEY}"}) as session:
        answer = await session.post("/v1/completions", json={"prompt": "a"})
        assert answer.status_code == 200
        assert_error(await session.get("/redoc"), 404, "route_not_found")
    assert running_app.staged() == []
