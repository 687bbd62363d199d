"""Searches for weights over HTTP: each round follows from what was measured, on an engine that weights decide."""

import asyncio
from collections.abc import AsyncIterator
from random import Random
from typing import Any

import httpx
import pytest

from tests.api.test_blends import Instant
from tests.api.test_sweeps import ended
from tests.support.running_app import ADMIN_KEY, RunningApp, assert_error, push, start_app, write_adapter
from tests.support.weighing_engine import WeighingEngine

NAMES = ("sql", "json", "code")
LEVELS = {"sql": (0.1, 0.25), "json": (-0.1, 0.05), "code": (-0.3, -0.1)}
ITEMS = [{"task": task, "prompt": f"{task} {level}", "reference": "right"} for task in NAMES for level in LEVELS[task]]
TASKS = {name: {"adapter": name, "metric": "kept"} for name in NAMES}
SEARCH = {"kind": "weights", "trials": 40, "seed": 7}


@pytest.fixture(scope="module")
async def weighing(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[RunningApp, httpx.AsyncClient]]:
    folder = tmp_path_factory.mktemp("weights")
    engine = WeighingEngine()
    with pytest.MonkeyPatch.context() as monkeypatch:
        engine.blends = Instant(monkeypatch)
        async with (
            start_app(folder, engine, blends_per_minute=10_000) as running_app,
            running_app.http(ADMIN_KEY) as http,
        ):
            for seed, name in enumerate(NAMES):
                assert (await push(http, name, write_adapter(folder / name, seed=seed))).status_code == 201
            yield running_app, http


async def searched(http: httpx.AsyncClient, **changes: Any) -> dict[str, Any]:
    body = {"tasks": TASKS, "items": ITEMS, "search": SEARCH} | changes
    made = await http.post("/admin/v1/sweeps", json=body)
    assert made.status_code == 202, made.text
    report = await ended(http, made.json()["id"])
    assert report["evaluation"]["state"] == "done", report["evaluation"]
    return report


def tried(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The candidates in the order in which they were drawn.

    Their places in the report are no matter of the seed: how much of one was measured before it was given up depends on
    how far others had come.
    """
    return [one["point"] for one in sorted(report["candidates"], key=lambda one: int(one["target"]))]


async def test_a_search_keeps_every_input_and_gives_up_what_cannot(
    weighing: tuple[RunningApp, httpx.AsyncClient],
) -> None:
    _, http = weighing
    report = await searched(http)
    winner = next(one for one in report["candidates"] if one["target"] == report["winner"])
    assert winner["retention"] == dict.fromkeys(NAMES, 1.0)
    assert winner["point"]["weight:sql@1"] > winner["point"]["weight:json@1"] > winner["point"]["weight:code@1"]
    plain = await searched(http, search={"kind": "grid"}, label="plain")
    assert plain["candidates"][0]["worst"] == 0.0
    evaluation = report["evaluation"]
    count = len(report["candidates"])
    assert evaluation["done"] == evaluation["total"] < 6 + 6 * count
    # How many are given up before they are asked everything is a matter of how far the others have come by then.
    given_up = [one["retention"]["sql"] is None for one in report["candidates"]]
    assert 0 < sum(given_up) <= count - 3, "three are measured whole before one cannot come among them"
    assert not given_up[report["candidates"].index(winner)]
    job = (await http.post(f"/admin/v1/sweeps/{evaluation['id']}:promote", json={"name": "kept"})).json()["job"]
    weights = {entry["adapter"]: entry["weight"] for entry in job["recipe"]["inputs"]}
    assert weights == {name: winner["point"][f"weight:{name}"] for name in weights}


async def test_the_same_seed_tries_the_same_in_whatever_order_calls_end(
    weighing: tuple[RunningApp, httpx.AsyncClient],
) -> None:
    running_app, http = weighing
    assert isinstance(running_app.engine, WeighingEngine)
    few = SEARCH | {"trials": 20}
    first = tried(await searched(http, search=few))
    running_app.engine.slow = Random(1)
    second = tried(await searched(http, search=few))
    running_app.engine.slow = None
    other = tried(await searched(http, search=few | {"seed": 8}))
    assert first == second != other


async def test_an_adapter_answers_each_of_its_own_items_once(weighing: tuple[RunningApp, httpx.AsyncClient]) -> None:
    running_app, http = weighing
    assert isinstance(running_app.engine, WeighingEngine)
    running_app.engine.asked = []
    report = await searched(http, search=SEARCH | {"trials": 6})
    asked = [name.partition("@")[0] for name in running_app.engine.asked]
    assert {name: asked.count(name) for name in NAMES} == dict.fromkeys(NAMES, 2)
    own = [cell for cell in report["table"] if cell["target"] < 3]
    assert {(cell["model"], cell["task"], cell["mean"]) for cell in own} == {(name, name, 1.0) for name in NAMES}


async def test_scored_items_are_searched_by_too(weighing: tuple[RunningApp, httpx.AsyncClient]) -> None:
    _, http = weighing
    report = await searched(http, tasks={name: {"adapter": name} for name in NAMES})
    winner = next(one for one in report["candidates"] if one["target"] == report["winner"])
    assert winner["worst"] == 1.0
    assert {cell["metric"] for cell in report["table"]} == {"exact_match", "kept", "kept_likelihood"}


async def test_a_search_ends_when_its_time_is_over(weighing: tuple[RunningApp, httpx.AsyncClient]) -> None:
    _, http = weighing
    report = await searched(http, search=SEARCH | {"budget_s": 1e-6})
    assert (report["winner"], len(report["candidates"])) == (None, 6)
    refused = await http.post(f"/admin/v1/sweeps/{report['evaluation']['id']}:promote", json={"name": "none"})
    assert_error(refused, 409, "evaluation_state_conflict")


async def test_another_run_goes_on_where_one_was_stopped(weighing: tuple[RunningApp, httpx.AsyncClient]) -> None:
    running_app, http = weighing
    whole = await searched(http)
    assert isinstance(running_app.engine, WeighingEngine)
    running_app.engine.chunk_pause_s = 0.01
    body = {"tasks": TASKS, "items": ITEMS, "search": SEARCH}
    sweep_id = (await http.post("/admin/v1/sweeps", json=body)).json()["id"]
    async with asyncio.timeout(20):
        while (await http.get(f"/admin/v1/evaluations/{sweep_id}")).json()["evaluation"]["done"] < 40:
            await asyncio.sleep(0.01)
    running_app.engine.chunk_pause_s = 0.0
    # As a server that stops: it gives back what it holds, and the next look takes it up.
    given_back = "UPDATE evaluations SET state = 'queued', holder = NULL, lease_expires_at = NULL"
    async with (await running_app.stored()).database.write() as connection:
        await connection.exec_driver_sql(f"{given_back} WHERE id = '{sweep_id}'")
    report = await ended(http, sweep_id)
    assert tried(report) == tried(whole)
    assert report["winner"] == whole["winner"]


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"search": SEARCH | {"weights": {"sql": [1.0]}}}, 400, "invalid_value"),
        ({"search": SEARCH | {"methods": ["ties", "linear"]}}, 400, "invalid_value"),
        ({"search": SEARCH | {"budget_s": 0}}, 400, "invalid_value"),
        ({"search": SEARCH | {"trials": 62}}, 400, "invalid_sweep"),
        ({"search": SEARCH | {"methods": ["nosuch"]}}, 400, "unknown_method"),
        ({"search": SEARCH | {"methods": ["della"]}}, 400, "blend_method_refused"),
        ({"tasks": TASKS | {"json": {"adapter": "json", "metric": "log_likelihood"}}}, 400, "invalid_sweep"),
        ({"tasks": TASKS | {"poem": {"adapter": "sql", "metric": "regex"}}}, 400, "metric_not_applicable"),
        ({"items": ITEMS[:4]}, 400, "metric_not_applicable"),
        ({"items": [*ITEMS, {"task": "poem", "prompt": "poem 1"}]}, 400, "invalid_sweep"),
        ({"tasks": {"sql": TASKS["sql"]}, "items": ITEMS[:2]}, 400, "invalid_sweep"),
        ({"tasks": TASKS | {"sql": {"adapter": "nosuch"}}}, 404, "model_not_found"),
    ],
)
async def test_what_is_refused_before_anything_is_queued(
    weighing: tuple[RunningApp, httpx.AsyncClient], change: dict[str, Any], status: int, code: str
) -> None:
    _, http = weighing
    body = {"tasks": TASKS, "items": ITEMS, "search": SEARCH} | change
    assert_error(await http.post("/admin/v1/sweeps", json=body), status, code)
