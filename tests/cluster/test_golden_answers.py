"""One set of answers, whichever front is asked and whichever engine answers: what was loaded is told by its bytes.

Twenty adapters and ten blends of them, by two fronts, before and after an engine is killed.
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator

import httpx
import pytest

from amalgam.domain.expression import parse_expression
from amalgam.merge.methods import complete
from tests.cluster.fake_replica import WEIGHTS, blended, digest_of
from tests.cluster.fronts import Cluster, Front, front
from tests.support.running_app import ADMIN_KEY, assert_error

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]
ADAPTERS = [f"g{number}" for number in range(20)]
BLENDS = [f"0.{number + 1}*g{number} + 0.5*g{number + 10}" for number in range(9)] + ["ties(g1, g2, g3; density=0.5)"]


@pytest.fixture(scope="module")
async def fronts(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Front, Front]]:
    """Two, on one store and one registry."""
    first_folder, second_folder = tmp_path_factory.mktemp("first"), tmp_path_factory.mktemp("second")
    many = {"blends_per_minute": 10_000}
    async with front(cluster, first_folder, **many) as first, front(cluster, second_folder, **many) as second:
        for seed, name in enumerate(ADAPTERS):
            await first.register(name, seed)
        yield first, second


async def say(http: httpx.AsyncClient, model: str) -> str:
    body = {"model": model, "messages": [{"role": "user", "content": "x"}]}
    answer = await http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, (model, answer.text)
    return str(answer.json()["choices"][0]["message"]["content"])


async def answers_of(server: Front) -> dict[str, str]:
    """Of every adapter and blend, asked together."""
    async with server.http() as http:
        said = await asyncio.gather(*(say(http, model) for model in [*ADAPTERS, *BLENDS]))
    return dict(zip([*ADAPTERS, *BLENDS], said, strict=True))


async def test_two_fronts_give_the_same_answers_and_the_right_ones(fronts: tuple[Front, Front]) -> None:
    first, second = fronts
    said, elsewhere = await asyncio.gather(answers_of(first), answers_of(second))
    assert said == elsewhere
    folder = first.folder / "sources"
    weights = {name: (folder / name / WEIGHTS).read_bytes() for name in ADAPTERS}
    assert {name: said[name] for name in ADAPTERS} == {name: digest_of(data) for name, data in weights.items()}
    assert len(set(said.values())) == len(said), "each of them has weights of its own"


async def test_a_blend_is_built_once_by_its_home_and_answers_under_its_name(fronts: tuple[Front, Front]) -> None:
    model, body = "0.3*g4 + 0.3*g5", {"messages": [{"role": "user", "content": "x"}]}
    names = set()
    for server in fronts:
        async with server.http() as http:
            answer = await http.post("/v1/chat/completions", json=body | {"model": model})
            assert answer.status_code == 200, answer.text
            names.add(answer.headers["x-amalgam-adapter"])
    (name,) = names
    infos = await fronts[0].infos()
    holders = [info.replica for info in infos if any(one.engine_name == name for one in info.engine.residents)]
    assert len(holders) == 1, "both fronts asked one engine"
    async with fronts[1].http() as http:
        by_name = await http.post("/v1/chat/completions", json=body | {"model": name})
    assert by_name.status_code == 200, by_name.text


async def test_what_goes_into_a_blend_is_what_the_registry_names(fronts: tuple[Front, Front]) -> None:
    body = {"model": "0.25*g6 + 0.75*g7", "messages": [{"role": "user", "content": "x"}]}
    async with fronts[1].http() as http:
        answer = await http.post("/v1/chat/completions", json=body)
    folder = fronts[0].folder / "sources"
    inputs = {f"{name}@1": (folder / name / WEIGHTS).read_bytes() for name in ("g6", "g7")}
    recipe = complete(parse_expression(answer.headers["x-amalgam-recipe"]))
    assert answer.json()["choices"][0]["message"]["content"] == digest_of(blended(recipe.digest(), inputs))


async def test_the_answers_are_the_same_after_an_engine_was_killed(fronts: tuple[Front, Front]) -> None:
    first, second = fronts
    before = await answers_of(first)
    known = frozenset(info.replica for info in await first.infos())
    async with first.http() as http:
        pieces = await http.post(
            "/v1/chat/completions",
            json={"model": "g0", "messages": [{"role": "user", "content": "x"}], "stream": True, "max_tokens": 1},
        )
        victim = int(pieces.text.partition('"content": "')[2].partition(":")[0])
    os.kill(victim, signal.SIGKILL)
    assert await answers_of(second) == before
    await first.until_replicas(2, without=known)
    assert await answers_of(first) == before


async def test_a_deleted_input_takes_its_blends_with_it(fronts: tuple[Front, Front]) -> None:
    first, second = fronts
    await first.register("gone", 77)
    async with second.http() as http, first.http(ADMIN_KEY) as admin:
        await say(http, "0.5*gone + 0.5*g1")
        name = second.app.state.amalgam.inference.resolve("0.5*gone + 0.5*g1").engine_name
        assert (await admin.delete("/admin/v1/adapters/gone")).status_code < 300
        async with asyncio.timeout(60):
            while any(one.engine_name == name for info in await first.infos() for one in info.engine.residents):
                await asyncio.sleep(0.1)
        body = {"model": "0.5*gone + 0.5*g1", "messages": [{"role": "user", "content": "x"}]}
        async with asyncio.timeout(60):
            while (refused := await http.post("/v1/chat/completions", json=body)).status_code == 200:
                await asyncio.sleep(0.1)
        assert_error(refused, 404, "model_not_found")
