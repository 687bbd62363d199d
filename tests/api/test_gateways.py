"""What gateways read of `/metrics`, scored by the rules that llm-d publishes for its two scorers of adapters.

`lora-load-state-scorer`: 1.0 with a place in the batch, 0.7 in memory beside it, 0.6 where a place is free, 0.3 where
an idle adapter that is not pinned can go, else 0.0. `lora-affinity-scorer`: 1.0 while requests run, 0.8 where another
one fits, 0.6 while they wait, else 0.0.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.api.fake_engine import FakeEngine
from tests.support.running_app import ADMIN_KEY, API_KEY, RunningApp, push, start_app, write_adapter

NAMES = ("sql", "json", "code", "law")
PLACES = 2
"""Of the fake engine's batch."""


@pytest.fixture(params=[1000, 0], ids=["all in memory", "beyond memory"])
async def running_app(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[RunningApp]:
    how = {"max_requests_per_key": 64, "catalog_versions": request.param}
    async with start_app(tmp_path, FakeEngine(capacity=3), **how) as running_app:
        async with running_app.http(ADMIN_KEY) as admin:
            for seed, name in enumerate(NAMES):
                made = await push(admin, name, write_adapter(running_app.sources / name, seed=seed, rank=seed + 1))
                assert made.status_code == 201, made.text
                await admin.post(f"/admin/v1/adapters/{name}:unload")
        yield running_app


@dataclass(frozen=True)
class Page:
    """What llm-d's router keeps of a scrape."""

    loaded: dict[str, tuple[str, bool, int]]
    """By the name that a request gives: level, whether it is pinned, rank."""
    in_batch: int
    places: int
    base: str
    running: frozenset[str]
    waiting: frozenset[str]
    max_lora: int

    def load_state(self, name: str) -> float:
        if name in self.loaded:
            return 1.0 if self.loaded[name][0] == "gpu" else 0.7
        if self.in_batch < self.places:
            return 0.6
        idle = (one for one, (level, pinned, _) in self.loaded.items() if level == "gpu" and not pinned)
        return 0.3 if any(one not in self.running for one in idle) else 0.0

    def affinity(self, name: str) -> float:
        if name in self.running:
            return 1.0
        if len(self.running) + len(self.waiting) < self.max_lora:
            return 0.8
        return 0.6 if name in self.waiting else 0.0


async def page(running_app: RunningApp) -> Page:
    async with running_app.http(ADMIN_KEY) as admin:
        text = (await admin.get("/metrics")).text
    families: dict[str, Metric] = {}
    for family in text_string_to_metric_families(text):
        assert family.name not in families, "a family stands twice"
        families[family.name] = family
    loaded = {
        one.labels["adapter_name"]: (one.labels["level"], one.labels["pinned"] == "true", int(one.labels["rank"]))
        for one in families["vllm:lora_adapter_loaded"].samples
        if one.value == 1
    }
    (count,) = families["vllm:num_gpu_loaded_lora_adapters"].samples
    (places,) = families["vllm:max_gpu_lora_adapters"].samples
    (info,) = families["vllm:lora_requests_info"].samples
    running, waiting = (
        frozenset(filter(None, info.labels[f"{state}_lora_adapters"].split(","))) for state in ("running", "waiting")
    )
    base, most = count.labels["model_name"], int(info.labels["max_lora"])
    return Page(loaded, int(count.value), int(places.value), base, running, waiting, most)


async def ask(running_app: RunningApp, model: str) -> None:
    async with running_app.http(API_KEY) as http:
        body = {"model": model, "messages": [{"role": "user", "content": "x"}]}
        assert (await http.post("/v1/chat/completions", json=body)).status_code == 200


async def test_before_anything_is_loaded_the_places_are_known(running_app: RunningApp) -> None:
    seen = await page(running_app)
    assert (seen.loaded, seen.in_batch, seen.places, seen.max_lora, seen.base) == ({}, 0, PLACES, PLACES, "tiny")
    assert (seen.load_state("sql"), seen.affinity("sql")) == (0.6, 0.8)


async def test_an_adapter_is_here_under_every_name_that_clients_send(running_app: RunningApp) -> None:
    async with running_app.http(ADMIN_KEY) as admin:
        await admin.put("/admin/v1/aliases/best", json={"targets": [{"model": "json@1", "weight": 1}]})
    await ask(running_app, "best")
    seen = await page(running_app)
    assert seen.loaded == dict.fromkeys(("json", "json@1", "best"), ("gpu", False, 2))
    assert {seen.load_state(name) for name in ("json", "json@1", "best")} == {1.0}
    assert (seen.in_batch, seen.load_state("sql")) == (1, 0.6), "one adapter, however many names it has"


async def test_an_idle_adapter_goes_before_a_pinned_one(running_app: RunningApp) -> None:
    for name in ("sql", "json"):
        await ask(running_app, name)
    seen = await page(running_app)
    assert (seen.in_batch, seen.load_state("code")) == (PLACES, 0.3)
    await ask(running_app, "code")
    seen = await page(running_app)
    assert (seen.load_state("sql"), seen.load_state("json"), seen.load_state("code")) == (0.7, 1.0, 1.0)
    async with running_app.http(ADMIN_KEY) as admin:
        for name in ("json", "code"):
            pinned = await admin.post(f"/admin/v1/adapters/{name}:pin")
            assert pinned.status_code < 300, pinned.text
    seen = await page(running_app)
    assert seen.loaded["json@1"] == ("gpu", True, 2)
    assert seen.load_state("law") == 0.0


async def test_what_was_evicted_or_deleted_is_gone(running_app: RunningApp) -> None:
    for name in NAMES:
        await ask(running_app, name)
    seen = await page(running_app)
    assert "sql" not in seen.loaded, "four do not fit into three places of the memory"
    assert "law" in seen.loaded
    async with running_app.http(ADMIN_KEY) as admin:
        assert (await admin.delete("/admin/v1/adapters/law")).status_code < 300
    async with asyncio.timeout(10):
        while {"law", "law@1"} & (await page(running_app)).loaded.keys():
            await asyncio.sleep(0.02)


async def test_requests_are_told_by_the_name_they_gave(running_app: RunningApp) -> None:
    running_app.engine.chunk_pause_s = 30.0
    asked = [asyncio.create_task(ask(running_app, name)) for name in ("sql", "json@1", "code")]
    async with asyncio.timeout(10):
        while (seen := await page(running_app)).waiting != {"code"} or len(seen.running) < PLACES:
            await asyncio.sleep(0.02)
    assert seen.running == {"sql", "json@1"}
    assert [seen.affinity(name) for name in ("sql", "json@1", "json", "code", "law")] == [1.0, 1.0, 0.0, 0.6, 0.0]
    for task in asked:
        task.cancel()
    await asyncio.gather(*asked, return_exceptions=True)
    async with asyncio.timeout(10):
        while (seen := await page(running_app)).running | seen.waiting:
            await asyncio.sleep(0.02)
    assert seen.affinity("law") == 0.8
