"""Sweeps over HTTP: an engine whose answers depend on weights, and blends that are there at once."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from starlette.responses import JSONResponse

from amalgam.domain.blend import blend_name
from tests.api.fake_engine import FakeEngine
from tests.api.test_blends import Instant
from tests.support.running_app import ADMIN_KEY, RunningApp, assert_error, push, start_app, write_adapter

LEVELS = (0.25, 0.5, 0.75, 1.0)
ITEMS = [
    {"task": task, "prompt": f"{task} {level}", "reference": "right"} for task in ("sql", "json") for level in LEVELS
]
TASKS = {"sql": {"adapter": "sql"}, "json": {"adapter": "json", "metric": "contains"}}
SEARCH = {"kind": "grid", "weights": {"sql": [0.5, 1.0, 1.5], "json": [1.0]}}


class Weighing(FakeEngine):
    """A question of some level is answered where the task's own weight, less half of the others', is no less."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.blends: Instant | None = None

    async def call(self, endpoint: Any, body: dict[str, Any], raw_request: Any, profile: Any = None) -> Any:
        await super().call(endpoint, body, raw_request)
        task, level = body["prompt"].split()
        weights = self.weights(body["model"])
        own = weights.pop(task, 0.0)
        right = own - 0.5 * sum(weights.values()) >= float(level)
        return JSONResponse({"choices": [{"text": "right" if right else "wrong"}]})

    def weights(self, model: str) -> dict[str, float]:
        assert self.blends is not None
        for order in self.blends.orders:
            if blend_name(order.recipe.digest()) == model:
                return {entry.adapter.partition("@")[0]: float(entry.weight) for entry in order.recipe.inputs}  # type: ignore[arg-type]
        return {model.partition("@")[0]: 1.0}


@pytest.fixture(scope="module")
async def prepared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[RunningApp, httpx.AsyncClient]]:
    folder = tmp_path_factory.mktemp("sweeps")
    engine = Weighing()
    with pytest.MonkeyPatch.context() as monkeypatch:
        engine.blends = Instant(monkeypatch)
        async with start_app(folder, engine) as running_app, running_app.http(ADMIN_KEY) as http:
            for seed, name in enumerate(("sql", "json")):
                assert (await push(http, name, write_adapter(folder / name, seed=seed))).status_code == 201
            yield running_app, http


def order(**changes: Any) -> dict[str, Any]:
    return {"tasks": TASKS, "items": ITEMS, "search": SEARCH} | changes


async def ended(http: httpx.AsyncClient, sweep_id: str) -> dict[str, Any]:
    async with asyncio.timeout(20):
        while True:
            report = (await http.get(f"/admin/v1/sweeps/{sweep_id}")).json()
            if report["evaluation"]["state"] not in ("queued", "running"):
                return dict(report)
            await asyncio.sleep(0.02)


async def test_a_grid_has_a_front_and_a_winner_which_becomes_an_adapter(
    prepared: tuple[RunningApp, httpx.AsyncClient],
) -> None:
    running_app, http = prepared
    assert isinstance(running_app.engine, Weighing)
    assert running_app.engine.blends is not None
    running_app.engine.blends.gate.clear()
    made = await http.post("/admin/v1/sweeps", json=order(label="mix"))
    assert made.status_code == 202, made.text
    url = f"/admin/v1/sweeps/{made.json()['id']}"
    await running_app.services.live_jobs.look()
    page = (await http.get("/metrics")).text
    waiting = [f'amalgam_jobs{{kind="sweep",state="{state}"}} 1.0' in page for state in ("queued", "running")]
    assert waiting.count(True) == 1
    early = await http.post(f"{url}:promote", json={"name": "mix"})
    assert_error(early, 409, "evaluation_state_conflict")
    assert [c["worst"] for c in (await http.get(url)).json()["candidates"]] == [None] * 3
    running_app.engine.blends.gate.set()
    report = await ended(http, made.json()["id"])
    page = (await http.get("/metrics")).text
    assert 'amalgam_jobs_finished_total{kind="sweep",state="done"} 1' in page
    assert 'amalgam_evaluation_calls_total{kind="sweep",outcome="measured"} 40' in page
    assert (report["evaluation"]["kind"], report["evaluation"]["state"]) == ("sweep", "done")
    found = [(c["model"], c["retention"], c["worst"], c["mean"], c["on_front"]) for c in report["candidates"]]
    assert found == [
        ("json@1 + sql@1", {"sql": 0.5, "json": 0.5}, 0.5, 0.5, True),
        ("json@1 + 1.5*sql@1", {"sql": 1.0, "json": 0.25}, 0.25, 0.625, True),
        ("json@1 + 0.5*sql@1", {"sql": 0.0, "json": 0.75}, 0.0, 0.375, False),
    ]
    assert report["winner"] == report["candidates"][0]["target"] == 3
    assert report["candidates"][1]["point"] == {"method": "task_arithmetic", "weight:sql": 1.5, "weight:json": 1.0}
    assert report["search"]["weights"] == SEARCH["weights"]
    singles = {c["model"]: c["mean"] for c in report["table"] if c["target"] < 2 and c["task"] == c["model"]
               and c["metric"] == TASKS[c["task"]].get("metric", "exact_match")}  # fmt: skip
    assert singles == {"sql": 1.0, "json": 1.0}
    job = (await http.post(f"{url}:promote", json={"name": "mix"})).json()["job"]
    weights = {entry["adapter"]: entry["weight"] for entry in job["recipe"]["inputs"]}
    assert (job["name"], weights) == ("mix", {"sql@1": 1.0, "json@1": 1.0})
    other = await http.post(f"{url}:promote", json={"name": "mix", "candidate": "json@1 + 1.5*sql@1"})
    weights = {entry["adapter"]: entry["weight"] for entry in other.json()["job"]["recipe"]["inputs"]}
    assert (other.status_code, weights) == (202, {"sql@1": 1.5, "json@1": 1.0})
    assert other.headers["location"] == f"/admin/v1/jobs/{other.json()['job']['id']}"
    single = await http.post(f"{url}:promote", json={"name": "mix", "candidate": "sql"})
    assert_error(single, 404, "target_not_evaluated")


async def test_a_random_search_is_the_same_for_a_seed_and_knows_what_methods_take(
    prepared: tuple[RunningApp, httpx.AsyncClient],
) -> None:
    _, http = prepared
    search = {
        "kind": "random",
        "trials": 6,
        "seed": 3,
        "methods": ["cat", "ties", "dare_linear"],
        "spaces": ["knots"],
        "weights": {"sql": {"low": 0.25, "high": 1.0}},
        "density": [0.2, 0.5],
        "lambda": [0.5, 1.0],
        "rank": ["auto", 4],
    }
    reports = []
    for _ in range(2):
        made = await http.post("/admin/v1/sweeps", json=order(search=search))
        assert made.status_code == 202, made.text
        cancelled = 'amalgam_jobs_finished_total{kind="sweep",state="cancelled"} '
        before = float((await http.get("/metrics")).text.partition(cancelled)[2].split()[0])
        await http.post(f"/admin/v1/evaluations/{made.json()['id']}:cancel")
        assert f"{cancelled}{before + 1}" in (await http.get("/metrics")).text
        reports.append((await http.get(f"/admin/v1/sweeps/{made.json()['id']}")).json())
    first, second = ([(c["model"], c["point"]) for c in report["candidates"]] for report in reports)
    assert first == second
    assert len({model for model, _ in first}) == 6
    for model, point in first:
        assert ("density" in point) is (point["method"] != "cat")
        assert point.get("space") == (None if point["method"] == "cat" else "knots")
        assert ("space=knots" in model) is (point["method"] == "dare_linear")
        assert ("lambda" in point) is (point["method"] == "ties")
        assert ("seed=3" in model) is (point["method"] == "dare_linear")
        assert ("rank=4" in model) is (point["rank"] == 4)


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"search": SEARCH | {"weights": {"nosuch": [1.0]}}}, 400, "invalid_sweep"),
        ({"search": SEARCH | {"weights": {"sql": {"low": 0, "high": 1}}}}, 400, "invalid_sweep"),
        ({"search": SEARCH | {"weights": {"sql": [n / 64 for n in range(64)], "json": [1, 2]}}}, 400, "invalid_sweep"),
        ({"search": SEARCH | {"weights": {n: list(range(64)) for n in ("sql", "json")}, "density": [0.1, 0.2]}}, 400,
         "invalid_sweep"),
        ({"search": SEARCH | {"spaces": ["nosuch"]}}, 400, "invalid_sweep"),
        ({"search": SEARCH | {"methods": ["nosuch"]}}, 400, "unknown_method"),
        ({"search": SEARCH | {"methods": ["della"]}}, 400, "blend_method_refused"),
        ({"items": [*ITEMS, {"prompt": "a", "reference": "b"}]}, 400, "invalid_sweep"),
        ({"items": ITEMS[:4]}, 400, "metric_not_applicable"),
        ({"tasks": {"sql": {"adapter": "nosuch"}, "json": {"adapter": "json"}}}, 404, "model_not_found"),
    ],
)  # fmt: skip
async def test_what_is_refused_before_anything_is_queued(
    prepared: tuple[RunningApp, httpx.AsyncClient], change: dict[str, Any], status: int, code: str
) -> None:
    _, http = prepared
    assert_error(await http.post("/admin/v1/sweeps", json=order(**change)), status, code)


async def test_an_evaluation_is_no_sweep(prepared: tuple[RunningApp, httpx.AsyncClient]) -> None:
    _, http = prepared
    body = {"targets": ["sql"], "metrics": ["exact_match"], "items": [{"prompt": "sql 1", "reference": "right"}]}
    made = (await http.post("/admin/v1/evaluations", json=body)).json()["id"]
    assert_error(await http.get(f"/admin/v1/sweeps/{made}"), 404, "evaluation_not_found")
    assert_error(await http.get("/admin/v1/sweeps/nosuch"), 404, "evaluation_not_found")
