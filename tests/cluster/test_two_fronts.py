"""Two fronts as programs, on PostgreSQL and engines on Ray: one stands still while the other deletes, and one dies.

| what happens | what must be seen |
|---|---|
| the second front is stopped, an adapter is deleted at the first, the second goes on | what had reached it, cold, queued or blended, is answered rightly or is 404; nothing of what is gone is pinned or in memory |
| the second front is killed while it answers | the engines drop what it asked for, and the first front goes on |
"""  # noqa: E501  (a table)

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.cluster.fake_replica import WEIGHTS, digest_of
from tests.cluster.test_command_line import free_port, is_ready, program, until
from tests.support.postgres import Cluster, cluster
from tests.support.running_app import ADMIN_KEY, API_KEY, assert_error, push, write_adapter, write_base

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
logger = logging.getLogger(__name__)
BLEND = "0.5*gone + 0.5*kept"


@dataclass
class Program:
    """One front."""

    pid: int
    url: str

    def http(self, key: str) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.url, headers={"Authorization": f"Bearer {key}"}, timeout=120)


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("cluster") / "postgres") as running:
        yield running


@contextmanager
def environment(variables: dict[str, str]) -> Iterator[None]:
    """Of every program that is started meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        yield


@pytest.fixture
async def fronts(postgres: Cluster, tmp_path: Path) -> AsyncIterator[tuple[Program, Program]]:
    """Both, before two engines; each test has its own."""
    pytest.importorskip("ray", reason="Ray is not installed; make test-cluster installs it.")
    base, store, log, port = write_base(tmp_path / "base"), tmp_path / "store", tmp_path / "engines.log", free_port()
    said = {"AMALGAM_DATABASE_URL": postgres.url, "AMALGAM_ADMIN_KEY": ADMIN_KEY, "AMALGAM_API_KEYS": API_KEY}
    with ExitStack() as stack:
        stack.enter_context(environment(said))
        engine = ("engine", str(base), "--replicas", "2", "--port", str(port), "--store", str(store))
        engines = stack.enter_context(program(log, *engine, "--served-model-name", "tiny"))
        await asyncio.to_thread(until, lambda: "Ready" in log.read_text() or engines.poll() is not None, log)
        started = []
        for name in ("first", "second"):
            url, of_front = f"http://127.0.0.1:{free_port()}", tmp_path / f"{name}.log"
            where = ("--engine", f"ray://127.0.0.1:{port}", "--store", str(store), "--port", url.rpartition(":")[2])
            process = stack.enter_context(program(of_front, "serve", str(base), *where))
            await asyncio.to_thread(until, partial(is_ready, url), of_front)
            started.append(Program(process.pid, url))
        yield started[0], started[1]
        async with started[0].http(ADMIN_KEY) as admin:
            for entry in (await admin.get("/admin/v1/adapters")).json()["data"]:
                await admin.delete(f"/admin/v1/adapters/{entry['name']}")


async def seen(holds: Callable[[], Awaitable[bool]], longest_s: float = 60.0) -> None:
    async with asyncio.timeout(longest_s):
        while not await holds():
            await asyncio.sleep(0.1)


async def say(http: httpx.AsyncClient, model: str) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "x"}]}
    return await http.post("/v1/chat/completions", json=body)


async def residents(admin: httpx.AsyncClient) -> dict[str, Any]:
    """What the engines have in memory, by name."""
    shown = (await admin.get("/admin/v1/engine")).json()
    return {one["model"]: one for one in shown["residents"]}


async def test_a_front_that_stood_still_during_a_deletion_answers_rightly_or_with_404(
    fronts: tuple[Program, Program], tmp_path: Path
) -> None:
    first, second = fronts
    async with first.http(ADMIN_KEY) as admin, second.http(API_KEY) as client:
        right = {}
        for seed, name in enumerate(("gone", "cold", "kept")):
            folder = write_adapter(tmp_path / name, seed=seed)
            right[name] = digest_of((folder / WEIGHTS).read_bytes())
            assert (await push(admin, name, folder)).status_code == 201
        for model in ("gone", BLEND):
            answer = await say(client, model)
            assert answer.status_code == 200, answer.text
            right[model] = answer.json()["choices"][0]["message"]["content"]
        assert (await admin.post("/admin/v1/adapters/gone:pin")).status_code == 200

        asked = [model for model in ("gone", "cold", BLEND, "kept") for _ in range(3)]
        os.kill(second.pid, signal.SIGSTOP)
        waiting = [asyncio.create_task(say(client, model)) for model in asked]
        await asyncio.sleep(1.0)
        for name in ("gone", "cold"):
            assert (await admin.delete(f"/admin/v1/adapters/{name}")).status_code < 300
        os.kill(second.pid, signal.SIGCONT)
        answers = await asyncio.gather(*waiting)
        logger.info("seen %s", [(model, one.status_code) for model, one in zip(asked, answers, strict=True)])
        for model, answer in zip(asked, answers, strict=True):
            if answer.status_code == 200:
                assert answer.json()["choices"][0]["message"]["content"] == right[model]
            else:
                assert model != "kept"
                assert_error(answer, 404, "model_not_found")

        async def is_gone() -> bool:
            return {(await say(client, model)).status_code for model in ("gone", "cold", BLEND)} == {404}

        async def is_out_of_memory() -> bool:
            left = await residents(admin)
            return not any(name.startswith(("gone@", "cold@", "blend@")) for name in left)

        await seen(is_gone)
        await seen(is_out_of_memory)
        assert not any(one["pinned"] for one in (await residents(admin)).values())
        page = (await admin.get("/metrics")).text
        assert "amalgam_artifacts_damaged_total 0" in page, "what was deleted is not damaged"


async def test_what_a_front_asked_for_ends_with_it_and_the_other_goes_on(
    fronts: tuple[Program, Program], tmp_path: Path
) -> None:
    first, second = fronts
    body = {"model": "sql", "messages": [{"role": "user", "content": "x"}], "stream": True, "max_tokens": 5000}
    async with first.http(ADMIN_KEY) as admin, first.http(API_KEY) as client, second.http(API_KEY) as doomed:
        assert (await push(admin, "sql", write_adapter(tmp_path / "sql", seed=1))).status_code == 201

        async def held() -> int:
            """Requests of both fronts that use it, as far as the engine has told by now."""
            return int((await residents(admin)).get("sql@1", {}).get("held", 0))

        async def killed_meanwhile() -> None:
            async with doomed.stream("POST", "/v1/chat/completions", json=body) as answer:
                async for line in answer.aiter_lines():
                    if line.startswith("data: ") and await held():
                        os.kill(second.pid, signal.SIGKILL)

        with pytest.raises(httpx.HTTPError):
            await killed_meanwhile()

        async def is_let_go() -> bool:
            return "sql@1" in await residents(admin) and await held() == 0

        # Of the hundred seconds that the stream would take.
        await seen(is_let_go, 30.0)
        assert (await say(client, "sql")).status_code == 200
