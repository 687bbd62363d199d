"""Fronts and engines on a real Ray: where requests go, and what clients see when replicas come, go and die."""

import asyncio
import logging
import os
import signal
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from tests.cluster.fake_replica import TOKENS, WEIGHTS, digest_of
from tests.cluster.fronts import LONGEST_S, Cluster, Front, Streamed, stream, traffic
from tests.support.running_app import ADMIN_KEY, assert_error, push, write_adapter

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]
logger = logging.getLogger(__name__)
CLIENTS = 12
MODELS = [f"a{number}" for number in range(8)]


@asynccontextmanager
async def clients(server: Front) -> AsyncIterator[list[Streamed]]:
    """Twelve of them ask while the block runs, each for other adapters; filled at the end."""
    over = asyncio.Event()
    found: list[Streamed] = []
    async with server.http() as http:
        tasks = [
            asyncio.create_task(traffic(http, MODELS[number % 8 :] + MODELS[: number % 8], over))
            for number in range(CLIENTS)
        ]
        try:
            # Each is at work.
            await asyncio.sleep(0.3)
            yield found
        finally:
            over.set()
            for some in await asyncio.gather(*tasks):
                found += some
            broken = sum(not one.is_done for one in found)
            logger.info("seen requests=%d broken=%d", len(found), broken)


async def homes(server: Front) -> dict[str, int]:
    """Which process answers for each adapter while nothing else is asked."""
    async with server.http() as http:
        asked = await asyncio.gather(*(stream(http, model) for model in MODELS))
    assert all(one.is_done and len(set(one.pids)) == 1 for one in asked), asked
    return {model: one.pids[0] for model, one in zip(MODELS, asked, strict=True)}


async def test_an_adapter_has_one_home_and_whole_answers(server: Front) -> None:
    seen: defaultdict[str, set[int]] = defaultdict(set)
    async with clients(server) as found:
        for _ in range(2):
            for model, pid in (await homes(server)).items():
                seen[model].add(pid)
    assert all(len(pids) == 1 for pids in seen.values()), seen
    assert all(one.is_done and len(one.pids) == TOKENS and len(set(one.pids)) == 1 for one in found), found
    assert len({pid for pids in seen.values() for pid in pids}) == 2, "both replicas are somebody's home"


async def test_an_answer_and_what_the_front_says_of_its_engines(server: Front) -> None:
    body = {"model": "a0", "messages": [{"role": "user", "content": "x"}]}
    async with server.http() as http, server.http(ADMIN_KEY) as admin:
        whole = await http.post("/v1/chat/completions", json=body)
        base = await http.post("/v1/chat/completions", json=body | {"model": "tiny"})
        ready, metrics = await admin.get("/readyz"), await admin.get("/metrics")
        engine = await admin.get("/admin/v1/engine")
    weights = (server.folder / "sources" / "a0" / WEIGHTS).read_bytes()
    assert whole.json()["choices"][0]["message"]["content"] == digest_of(weights)
    assert whole.headers["x-amalgam-adapter"] == "a0@1"
    assert base.status_code == 200
    assert ready.json() == {"status": "ready"}
    assert "amalgam_engine_ready 1.0" in metrics.text
    built = [line for line in metrics.text.splitlines() if line.startswith('amalgam_blends_built_total{replica="')]
    assert len(set(built)) == 2, "of each engine"
    assert 'vllm:lora_adapter_loaded{model_name="tiny",engine="0",adapter_name="a0",level="gpu"' in metrics.text
    assert engine.json()["replicas"] == 2
    assert engine.json()["capacity"] == 32, "of both together"


async def test_an_error_of_a_replica_keeps_its_code(server: Front) -> None:
    async with server.http(ADMIN_KEY) as admin:
        refused = await push(admin, "refused", write_adapter(server.folder / "sources" / "refused", seed=99))
    assert_error(refused, 500, "engine_load_failed")


async def test_a_client_that_leaves_ends_the_work(server: Front) -> None:
    body = {"model": "a1", "messages": [{"role": "user", "content": "x"}], "stream": True, "max_tokens": 1000}
    async with server.http() as http, http.stream("POST", "/v1/chat/completions", json=body) as answer:
        lines = aiter(answer.aiter_lines())
        assert (await anext(lines)).startswith("data: ")
        assert sum(one.held for info in await server.infos() for one in info.engine.residents) == 1
    async with asyncio.timeout(10):  # of the twenty seconds that the stream would take
        while any(one.held for info in await server.infos() for one in info.engine.residents):
            await asyncio.sleep(0.05)


async def test_answers_come_by_channels_and_a_channel_that_breaks_is_told_and_opened_again(server: Front) -> None:
    names = {info.replica for info in await server.infos()}

    async def opened() -> None:
        async with asyncio.timeout(LONGEST_S):
            while not all(server.engine.channels.has(name) for name in names):
                await asyncio.sleep(0.05)

    await opened()
    async with server.http() as http:
        asked = [asyncio.create_task(stream(http, model, 100)) for model in MODELS]
        await asyncio.sleep(0.6)
        await server.engine.channels.close()
        found = await asyncio.gather(*asked)
        assert {one.status for one in found} == {200}
        broken = [one for one in found if not one.is_done]
        assert broken, "some had begun; others waited for a turn"
        assert all(one.pids and one.error is not None and one.error["code"] == "engine_not_ready" for one in broken)
        assert (await stream(http, "a0")).is_done, "by Ray, or by a channel that is there again"
        await opened()
        assert all(one.is_done for one in await asyncio.gather(*(stream(http, model) for model in MODELS)))
    assert not any(one.held for info in await server.infos() for one in info.engine.residents)


async def test_what_is_deleted_leaves_every_replica(server: Front) -> None:
    await server.register("gone", 50)
    async with server.http() as http, server.http(ADMIN_KEY) as admin:
        assert (await stream(http, "gone")).is_done
        assert (await admin.delete("/admin/v1/adapters/gone")).status_code < 300
        async with asyncio.timeout(LONGEST_S):
            while any(one.engine_name == "gone@1" for info in await server.infos() for one in info.engine.residents):
                await asyncio.sleep(0.1)
        assert (await stream(http, "gone")).status == 404


async def test_a_replica_is_killed_under_twelve_clients(server: Front) -> None:
    victim, known = (await homes(server))["a0"], frozenset(info.replica for info in await server.infos())
    async with clients(server) as found, server.http() as http:
        body = {"model": "a0", "messages": [{"role": "user", "content": "x"}]}
        whole = [asyncio.create_task(http.post("/v1/chat/completions", json=body)) for _ in range(4)]
        await asyncio.sleep(0.05)
        os.kill(victim, signal.SIGKILL)
        answers = await asyncio.gather(*whole)
        infos = await server.until_replicas(2, without=known)
    assert [answer.status_code for answer in answers] == [200] * 4
    assert {one.status for one in found} == {200}, "no error before the first byte"
    broken = [one for one in found if not one.is_done]
    assert all(one.error is not None and one.error["code"] == "engine_not_ready" for one in broken), broken
    assert 0 < len(broken) <= CLIENTS
    assert len(known & {info.replica for info in infos}) == 1


async def test_a_replica_that_stands_still_is_replaced_and_its_requests_are_answered(server: Front) -> None:
    victim, known = (await homes(server))["a0"], frozenset(info.replica for info in await server.infos())
    body = {"model": "a0", "messages": [{"role": "user", "content": "x"}]}
    os.kill(victim, signal.SIGSTOP)
    try:
        async with server.http() as http:
            asked = (http.post("/v1/chat/completions", json=body, timeout=200) for _ in range(4))
            answers = await asyncio.gather(*asked)
    finally:
        with suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
    assert [answer.status_code for answer in answers] == [200] * 4
    await server.until_replicas(2, without=known)


async def test_a_third_replica_takes_its_share_and_goes_again(server: Front, cluster: Cluster) -> None:
    before = await homes(server)
    async with clients(server) as found:
        await asyncio.to_thread(cluster.deploy, 3)
        await server.until_replicas(3)
    assert all(one.status == 200 and one.is_done for one in found), [one for one in found if not one.is_done]
    after = await homes(server)
    assert set(before.values()) < set(after.values()), "those that were there stay"
    moved = {model for model in MODELS if before[model] != after[model]}
    assert {after[model] for model in moved} <= set(after.values()) - set(before.values()), "to the new one alone"
    async with clients(server) as found:
        await asyncio.to_thread(cluster.deploy, 2)
        await server.until_replicas(2)
    assert all(one.status == 200 and one.is_done for one in found), [one for one in found if not one.is_done]
    assert set((await homes(server)).values()) < set(after.values()), "and nobody came in place of who went"


async def test_all_replicas_are_replaced_under_twelve_clients(server: Front, cluster: Cluster) -> None:
    before = set((await homes(server)).values())
    async with clients(server) as found:
        await asyncio.to_thread(cluster.deploy, 2, "next")
        await server.until_replicas(2)
    assert all(one.status == 200 and one.is_done for one in found), [one for one in found if not one.is_done]
    assert not before & set((await homes(server)).values())
