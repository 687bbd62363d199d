"""The ledger of usage: what was answered, streamed, left and refused adds up; and who may see what of it."""

import asyncio
import csv
import io
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types.admin.organization.usage_completions_response import (
    DataResultOrganizationUsageCompletionsResult,
    UsageCompletionsResponse,
)

from amalgam.errors.engine import EngineRefused
from tests.api.fake_engine import FakeEngine
from tests.support.keys import key_id, make_key
from tests.support.running_app import (
    ADMIN_KEY,
    RunningApp,
    assert_error,
    push,
    served,
    start_app,
    write_adapter,
)

CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 20}
COUNTS = ("requests", "prompt_tokens", "completion_tokens")


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[RunningApp]:
    async with start_app(tmp_path, FakeEngine(prompt_tokens=7, answer_tokens=None)) as running_app:
        yield running_app


async def usage(running_app: RunningApp, key: str = ADMIN_KEY, **query: Any) -> list[dict[str, Any]]:
    async with running_app.http(key) as http:
        answer = await http.get("/admin/v1/usage", params=query)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["data"]
    return found


def told(lines: list[dict[str, Any]]) -> tuple[int, ...]:
    return tuple(sum(line[name] for line in lines) for name in COUNTS)


class Mixed:
    """A thousand requests of all kinds, and what each was told that it took."""

    def __init__(self, seed: int) -> None:
        self.drawn = random.Random(seed)
        self.requests = self.prompt = self.completion = self.left = 0

    async def one(self, http: httpx.AsyncClient) -> None:
        kind = self.drawn.choice(["whole", "choices", "stream", "leaves", "refused", "unknown"])
        if kind in ("whole", "choices"):
            n = self.drawn.randint(2, 4) if kind == "choices" else 1
            answer = await http.post(
                "/v1/chat/completions", json=CHAT | {"max_tokens": self.drawn.randint(1, 50), "n": n}
            )
            assert answer.status_code == 200, answer.text
            told_usage = answer.json()["usage"]
            self.count(told_usage["prompt_tokens"], told_usage["completion_tokens"])
        elif kind == "stream":
            answer = await http.post("/v1/chat/completions", json=CHAT | {"stream": True})
            self.count(7, answer.text.count('"content"'))
        elif kind == "leaves":
            async with http.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}) as answer:
                async for _ in answer.aiter_lines():
                    break
            self.left += 1
        elif kind == "refused":
            assert (await http.post("/v1/chat/completions", json=CHAT | {"n": 0})).status_code == 400
        else:
            assert (await http.post("/v1/chat/completions", json=CHAT | {"model": "nobody"})).status_code == 404

    def count(self, prompt: int, completion: int) -> None:
        self.requests += 1
        self.prompt += prompt
        self.completion += completion


async def test_the_ledger_is_the_sum_of_what_a_thousand_mixed_requests_were_told(running: RunningApp) -> None:
    keys = [await make_key(running), await make_key(running), await make_key(running, tenant="beta")]
    mixed = Mixed(11)
    async with served(running.app) as url:
        clients = [
            httpx.AsyncClient(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=60) for key in keys
        ]
        for begin in range(0, 1000, 20):
            await asyncio.gather(*(mixed.one(clients[(begin + n) % 3]) for n in range(20)))
        for http in clients:
            await http.aclose()
    # A client that left: its prompt, and what was generated until then, which the engine alone knows.
    async with asyncio.timeout(30):
        while told(await usage(running))[0] < mixed.requests + mixed.left:
            await asyncio.sleep(0.05)
    lines = await usage(running, by="tenant,key,endpoint,version")
    assert told(lines)[:2] == (mixed.requests + mixed.left, mixed.prompt + 7 * mixed.left)
    counted = sum(tokens.completion for tokens in running.engine.counted)
    assert told(lines)[2] == counted
    assert mixed.completion < counted <= mixed.completion + 3 * mixed.left
    assert {(line["tenant"], line["key"]) for line in lines} == {
        (tenant, key_id(key)) for tenant, key in zip(("acme", "acme", "beta"), keys, strict=True)
    }


async def test_a_request_that_the_engine_refuses_is_a_request_without_tokens(running: RunningApp) -> None:
    running.engine.failure = EngineRefused(400, "no")
    key = await make_key(running)
    async with running.http(key) as http:
        assert (await http.post("/v1/chat/completions", json=CHAT)).status_code == 400
    assert told(await usage(running)) == (1, 0, 0)


async def test_aliases_and_versions_are_told_apart(running: RunningApp, tmp_path: Path) -> None:
    async with running.http(ADMIN_KEY) as admin:
        for seed in (1, 2):
            assert (await push(admin, "sql", write_adapter(tmp_path / str(seed), seed=seed))).status_code == 201
        await admin.put("/admin/v1/aliases/support", json={"targets": [{"model": "sql@1"}]})
        for model in ("sql@1", "sql", "support", "tiny"):
            assert (await admin.post("/v1/chat/completions", json=CHAT | {"model": model})).status_code == 200
    lines = await usage(running, by="alias,version,endpoint")
    inference = {(line["alias"], line["version"]): line["requests"] for line in lines if line["endpoint"] != "probe"}
    assert inference == {("", "sql@1"): 1, ("", "sql@2"): 1, ("support", "sql@1"): 1, ("", "tiny"): 1}
    models = {line["model"]: line["requests"] for line in await usage(running, by="model")}
    assert models["sql"] == 3


def results_of(page: UsageCompletionsResponse) -> list[DataResultOrganizationUsageCompletionsResult]:
    found = [result for bucket in page.data for result in bucket.results]
    return [result for result in found if isinstance(result, DataResultOrganizationUsageCompletionsResult)]


class TestOpenAI:
    """The shape that OpenAI's own client reads."""

    async def test_their_client_reads_it_and_pages_through_it(self, running: RunningApp) -> None:
        key = await make_key(running)
        async with running.http(key) as http:
            for _ in range(3):
                await http.post("/v1/chat/completions", json=CHAT)
        async with served(running.app) as url:
            client = openai.AsyncOpenAI(api_key="none", admin_api_key=ADMIN_KEY, base_url=f"{url}/v1")
            found = await client.admin.organization.usage.completions(
                start_time=int(time.time()) - 600, bucket_width="1m", group_by=["model", "project_id", "api_key_id"]
            )
            [result] = results_of(found)
            assert (result.model, result.project_id, result.api_key_id) == ("tiny", "acme", key_id(key))
            assert (result.num_model_requests, result.input_tokens, result.output_tokens) == (3, 21, 60)
            assert found.has_more is False
            pages, page, seen = 0, "", 0
            while pages == 0 or page:
                more: dict[str, Any] = {"page": page} if page else {}
                part = await client.admin.organization.usage.completions(
                    start_time=int(time.time()) - 600, bucket_width="1m", limit=2, **more
                )
                pages, page = pages + 1, part.next_page or ""
                seen += sum(result.num_model_requests for result in results_of(part))
                assert part.has_more == bool(page)
            assert pages >= 5
            assert seen == 3
            await client.close()

    @pytest.mark.parametrize(
        ("query", "param"),
        [
            ({}, "start_time"),
            ({"start_time": "x"}, "start_time"),
            ({"start_time": 0, "bucket_width": "2m"}, "bucket_width"),
            ({"start_time": 0, "limit": 32}, "limit"),
            ({"start_time": 0, "group_by": "colour"}, "group_by"),
            ({"start_time": 0, "page": "page_x"}, "page"),
        ],
    )
    async def test_what_cannot_be_asked_is_a_coded_400(
        self, running: RunningApp, query: dict[str, Any], param: str
    ) -> None:
        async with running.http(ADMIN_KEY) as http:
            answer = await http.get("/v1/organization/usage/completions", params=query)
        assert assert_error(answer, 400, "invalid_value")["param"] == param


class TestWhoSeesWhat:
    async def test_a_key_sees_its_own_tenant_and_an_administrator_all(self, running: RunningApp) -> None:
        acme, beta = await make_key(running, "publisher"), await make_key(running, "publisher", tenant="beta")
        for key in (acme, beta):
            async with running.http(key) as http:
                await http.post("/v1/chat/completions", json=CHAT)
        query: dict[str, Any] = {"start_time": int(time.time()) - 60, "group_by": "project_id"}

        async def projects(key: str, **more: Any) -> set[str]:
            async with running.http(key) as http:
                answer = await http.get("/v1/organization/usage/completions", params=query | more)
            assert answer.status_code == 200
            return {result["project_id"] for bucket in answer.json()["data"] for result in bucket["results"]}

        assert await projects(acme) == {"acme"}
        assert await projects(beta) == {"beta"}
        assert await projects(beta, project_ids="acme") == set()
        assert await projects(ADMIN_KEY) == {"acme", "beta"}
        async with running.http() as nobody:
            assert (await nobody.get("/v1/organization/usage/completions", params=query)).status_code == 401
            assert (await nobody.get("/admin/v1/usage")).status_code == 401

    async def test_what_an_alias_means_is_not_told_to_who_may_not_know_it(
        self, running: RunningApp, tmp_path: Path
    ) -> None:
        async with running.http(ADMIN_KEY) as admin:
            assert (await push(admin, "secret", write_adapter(tmp_path / "a"))).status_code == 201
            await admin.put("/admin/v1/aliases/support", json={"targets": [{"model": "secret@1"}]})
        key = await make_key(running, "publisher", "support")
        async with running.http(key) as http:
            assert (await http.post("/v1/chat/completions", json=CHAT | {"model": "support"})).status_code == 200
            query: dict[str, Any] = {"start_time": int(time.time()) - 60, "group_by": "model"}
            wanted: list[dict[str, Any]] = [{}, {"models": "secret@1"}, {"models": "secret@2"}]
            for more in wanted:
                answer = await http.get("/v1/organization/usage/completions", params=query | more)
                assert "secret" not in answer.text
                counted = [result["num_model_requests"] for b in answer.json()["data"] for result in b["results"]]
                assert counted == ([] if more else [1])


async def test_a_table_has_a_line_for_each_and_nothing_that_a_spreadsheet_runs(running: RunningApp) -> None:
    async with running.http(ADMIN_KEY) as admin:
        await admin.post("/v1/chat/completions", json=CHAT)
        answer = await admin.get("/admin/v1/usage", params={"by": "tenant,version", "format": "csv"})
    assert answer.headers["content-type"].startswith("text/csv")
    [row] = list(csv.DictReader(io.StringIO(answer.text)))
    assert (row["tenant"], row["version"], row["requests"], row["completion_tokens"]) == ("default", "tiny", "1", "20")


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"by": "colour"}, "by"),
        ({"start_time": 0, "bucket_width": "1m"}, "start_time"),
        ({"start_time": -1}, "start_time"),
        ({"start_time": 10**30}, "start_time"),
        ({"format": "xml"}, "format"),
    ],
)
async def test_what_cannot_be_summed_up_is_a_coded_400(running: RunningApp, query: dict[str, Any], param: str) -> None:
    async with running.http(ADMIN_KEY) as http:
        answer = await http.get("/admin/v1/usage", params=query)
    assert assert_error(answer, 400, "invalid_value")["param"] == param


async def test_what_was_used_is_there_after_a_restart(tmp_path: Path) -> None:
    for expected in (2, 4):
        async with start_app(tmp_path, FakeEngine()) as running_app:
            async with running_app.http(ADMIN_KEY) as admin:
                for _ in range(2):
                    await admin.post("/v1/chat/completions", json=CHAT)
            assert told(await usage(running_app))[0] == expected


async def evaluated(running_app: RunningApp, key: str, items: int = 3) -> dict[str, Any]:
    """An evaluation of the base model, once it is over."""
    body = {
        "targets": ["tiny"],
        "items": [{"task": "t", "prompt": f"question {n}", "reference": "words"} for n in range(items)],
        "metrics": ["exact_match"],
        "max_tokens": 4,
    }
    async with running_app.http(key) as http:
        made = await http.post("/admin/v1/evaluations", json=body)
        assert made.status_code == 202, made.text
        async with asyncio.timeout(60):
            while True:
                answer = await http.get(f"/admin/v1/evaluations/{made.json()['id']}")
                found: dict[str, Any] = answer.json()["evaluation"]
                if found["state"] not in ("queued", "running"):
                    return found
                await asyncio.sleep(0.05)


async def test_evaluations_are_charged_to_who_asked_for_them(running: RunningApp) -> None:
    key = await make_key(running, "publisher")
    await evaluated(running, key)
    [line] = await usage(running, by="tenant,key,endpoint")
    assert (line["tenant"], line["key"], line["endpoint"]) == ("acme", key_id(key), "evaluation")
    assert told([line]) == (3, 21, 12)


async def test_evaluations_stop_at_the_limits_of_who_asked_for_them(running: RunningApp) -> None:
    key = await make_key(running, "publisher", limits={"tokens_per_day": 600})
    found = await evaluated(running, key)
    assert (found["state"], found["done"]) == ("done", 3)
    assert running.engine.calls == []
    assert await usage(running) == []
