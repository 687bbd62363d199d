"""Stored files that are not what was published: refused by code, counted, and served again after the stated step."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api.fake_engine import FakeEngine
from tests.support.running_app import ADMIN_KEY, RunningApp, assert_error, push, start_app, write_adapter

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
async def running_app(tmp_path: Path) -> AsyncIterator[RunningApp]:
    async with start_app(tmp_path, FakeEngine(), blender=True) as opened:
        yield opened


@pytest.fixture
async def http(running_app: RunningApp, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with running_app.http(ADMIN_KEY) as session:
        for seed, name in enumerate(("sql", "json")):
            assert (await push(session, name, write_adapter(tmp_path / name, seed=seed))).status_code == 201
        yield session


async def ask(http: httpx.AsyncClient, model: str) -> httpx.Response:
    return await http.post("/v1/chat/completions", json=CHAT | {"model": model})


def weights(running_app: RunningApp) -> Path:
    version = running_app.services.catalog.resolve("sql").version
    assert version is not None
    return running_app.folder / "store" / "objects" / version.digest[:2] / version.digest / "adapter_model.safetensors"


def flip(path: Path) -> None:
    os.chmod(path, 0o644)
    content = bytearray(path.read_bytes())
    content[-3] ^= 16
    path.write_bytes(content)


async def counted(http: httpx.AsyncClient) -> float:
    [line] = [
        line
        for line in (await http.get("/metrics")).text.splitlines()
        if line.startswith("amalgam_artifacts_damaged_total ")
    ]
    return float(line.split()[1])


async def test_a_damaged_version_is_named_refused_counted_and_served_again_once_it_is_whole(
    running_app: RunningApp, http: httpx.AsyncClient
) -> None:
    path = weights(running_app)
    whole = path.read_bytes()
    assert await counted(http) == 0
    flip(path)
    assert (await http.post("/admin/v1/adapters/sql:verify")).json() == {"versions": {"sql@1": False}}
    await running_app.services.adapters.settle()
    assert "sql@1" in running_app.engine.freed, "what the engine maps of it must not be used either"
    for _ in range(2):
        error = assert_error(await ask(http, "sql"), 500, "artifact_damaged")
        assert ":verify" in error["message"]
    assert (await ask(http, "json")).status_code == 200
    assert await counted(http) == 1
    path.write_bytes(whole)
    assert_error(await ask(http, "sql"), 500, "artifact_damaged")
    assert (await http.post("/admin/v1/adapters/sql:verify")).json() == {"versions": {"sql@1": True}}
    assert (await ask(http, "sql")).status_code == 200


async def test_a_blend_is_not_built_of_a_damaged_input(running_app: RunningApp, http: httpx.AsyncClient) -> None:
    path = weights(running_app)
    whole = path.read_bytes()
    flip(path)
    assert_error(await ask(http, "sql + 0.5*json"), 500, "artifact_damaged")
    assert await counted(http) == 1
    path.write_bytes(whole)
    assert (await http.post("/admin/v1/adapters/sql:verify")).json() == {"versions": {"sql@1": True}}
    assert (await ask(http, "sql + 0.5*json")).status_code == 200


async def test_the_same_files_uploaded_again_are_served(
    running_app: RunningApp, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    flip(weights(running_app))
    await http.post("/admin/v1/adapters/sql:verify")
    assert_error(await ask(http, "sql"), 500, "artifact_damaged")
    assert (await push(http, "sql", tmp_path / "sql")).status_code == 200
    assert (await ask(http, "sql")).status_code == 200


async def test_missing_files_are_damage_too(running_app: RunningApp, http: httpx.AsyncClient) -> None:
    await asyncio.to_thread(weights(running_app).unlink)
    assert (await http.post("/admin/v1/adapters/sql:verify")).json() == {"versions": {"sql@1": False}}
    assert_error(await ask(http, "sql"), 500, "artifact_damaged")
    assert await counted(http) == 1


async def test_an_engine_that_is_down_makes_the_process_not_live(
    running_app: RunningApp, http: httpx.AsyncClient
) -> None:
    assert (await http.get("/livez")).status_code == 200
    for state, live in (("starting", 200), ("restarting", 200), ("down", 503)):
        running_app.engine.current = state  # type: ignore[assignment]
        assert (await http.get("/livez")).status_code == live
        assert (await http.get("/readyz")).status_code == 503
    assert_error(await ask(http, "sql"), 503, "engine_not_ready")
