"""Merges whose weights are searched first: what is queued, what is found, and how it ends otherwise."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from amalgam.domain.fit import FitRecord, ReadingFit
from amalgam.domain.fit_forecast import ReadingNeeds
from amalgam.domain.recipe import Recipe
from amalgam.domain.version import VersionDraft
from tests.api.test_blends import Instant
from tests.support.running_app import ADMIN_KEY, RunningApp, assert_error, push, start_app, write_adapter
from tests.support.weighing_engine import WeighingEngine

LEVELS = {"sql": (0.1, 0.25), "json": (-0.1, 0.05), "code": (-0.3, -0.1)}
PROMPTS = {name: [{"prompt": f"{name} {level}"} for level in levels] for name, levels in LEVELS.items()}
ITEMS = {name: [row | {"reference": "right"} for row in rows] for name, rows in PROMPTS.items()}
FIT = {"prompts": PROMPTS, "seed": 7, "candidates": 40}
BODY = {"name": "mix", "inputs": ["sql", "json", "code"], "fit": FIT}


@pytest.fixture(scope="module")
async def fitting(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[RunningApp, httpx.AsyncClient]]:
    folder = tmp_path_factory.mktemp("fits")
    engine = WeighingEngine()
    with pytest.MonkeyPatch.context() as monkeypatch:
        engine.blends = Instant(monkeypatch)
        async with (
            start_app(folder, engine, blends_per_minute=10_000) as running_app,
            running_app.http(ADMIN_KEY) as http,
        ):
            for seed, name in enumerate(LEVELS):
                assert (await push(http, name, write_adapter(folder / name, seed=seed))).status_code == 201
            yield running_app, http


async def submitted(http: httpx.AsyncClient, **changes: Any) -> dict[str, Any]:
    made = await http.post("/admin/v1/merges", json=BODY | changes)
    assert made.status_code == 202, made.text
    return dict(made.json()["job"])


async def settled(http: httpx.AsyncClient, job_id: str) -> dict[str, Any]:
    """The job when its weights are found, or it has ended."""
    async with asyncio.timeout(30):
        while True:
            job = (await http.get(f"/admin/v1/jobs/{job_id}")).json()
            if job["fit"]["tried"] is not None or job["state"] in ("failed", "cancelled"):
                return dict(job)
            await asyncio.sleep(0.05)


async def test_a_job_waits_for_its_weights_and_is_built_with_them(
    fitting: tuple[RunningApp, httpx.AsyncClient],
) -> None:
    running_app, http = fitting
    job = await submitted(http)
    assert (job["state"], job["fit"]["by"], job["fit"]["weights"]) == ("queued", "kept", {})
    jobs = (await running_app.stored()).jobs
    again = await submitted(http)
    assert again["id"] == job["id"]
    done = await settled(http, job["id"])
    weights = {entry["adapter"]: entry["weight"] for entry in done["recipe"]["inputs"]}
    assert weights == done["fit"]["weights"]
    assert weights["sql@1"] > weights["json@1"] > weights["code@1"]
    assert all(kept > 0.95 for kept in done["fit"]["kept"].values())
    report = (await http.get(f"/admin/v1/sweeps/{job['fit']['sweep']}")).json()
    assert done["fit"]["tried"] == len(report["candidates"])
    assert {f"weight:{name}": weight for name, weight in weights.items()}.items() <= next(
        one["point"] for one in report["candidates"] if one["target"] == report["winner"]
    ).items()
    claimed = await jobs.claim("worker", lease_s=30, max_attempts=1)
    assert claimed is not None
    assert (claimed.id, claimed.recipe_digest) == (job["id"], done["recipe_digest"])
    assert claimed.probe is not None
    assert [len(items) for items in claimed.probe["prompts"].values()] == [2, 2, 2]
    await published(running_app, claimed.id, claimed.fencing_token)
    graph = (await http.get("/admin/v1/adapters/mix/versions/1/lineage")).json()
    assert graph["nodes"][0]["fit"] == done["fit"]


async def published(
    running_app: RunningApp, job_id: str, token: int, *, name: str = "mix", fit: FitRecord | None = None
) -> None:
    """The claimed job as the worker and the server would end it."""
    jobs = (await running_app.stored()).jobs
    digest = running_app.services.catalog.snapshot.versions["sql@1"].digest
    draft = VersionDraft(
        name=name, digest=digest, rank=2, size_bytes=1, module_count=1, base_fingerprint="", source="merge",
        lineage={"recipe": {}}, recipe_digest=(await jobs.get(job_id)).recipe_digest,
    )  # fmt: skip
    await jobs.finish_built(job_id, token, draft, {}, fit)
    held = await jobs.claim_built("server", lease_s=30)
    if held is not None:
        await jobs.publish(held.id, held.fencing_token, {})
    async with asyncio.timeout(20):
        while (await jobs.get(job_id)).state != "published":
            await asyncio.sleep(0.05)
    await running_app.services.catalog.refresh()


async def test_prompts_are_read_by_the_worker_unless_weights_are_asked_for(
    fitting: tuple[RunningApp, httpx.AsyncClient],
) -> None:
    running_app, http = fitting
    job = await submitted(http, name="read", fit={"prompts": PROMPTS})
    fit = job["fit"]
    assert (fit["method"], fit["by"], fit["sweep"], fit["candidates"], fit["tokens"]) == (
        "iteris", "kept", None, None, None,
    )  # fmt: skip
    assert (await submitted(http, name="read", fit={"prompts": PROMPTS}))["id"] == job["id"]
    jobs = (await running_app.stored()).jobs
    claimed = await jobs.claim("worker", lease_s=30, max_attempts=1)
    assert claimed is not None
    assert claimed.id == job["id"]
    reading = ReadingFit.model_validate(claimed.reading)
    assert {ref: [item.prompt for item in items] for ref, items in reading.items.items()} == {
        f"{name}@1": [row["prompt"] for row in rows] for name, rows in PROMPTS.items()
    }
    assert (reading.labelled, reading.max_tokens) == (False, 64)
    record = FitRecord.model_validate(claimed.fit).model_copy(update={"tokens": 321, "unread": 2})
    await published(running_app, claimed.id, claimed.fencing_token, name="read", fit=record)
    graph = (await http.get("/admin/v1/adapters/read/versions/1/lineage")).json()
    assert graph["nodes"][0]["fit"] == fit | {"tokens": 321, "unread": 2}
    others = await submitted(http, name="read", fit={"prompts": PROMPTS | {"sql": [{"prompt": "another"}]}})
    assert others["id"] != job["id"]
    await http.post(f"/admin/v1/jobs/{others['id']}:cancel")


async def test_references_are_read_where_items_have_them(fitting: tuple[RunningApp, httpx.AsyncClient]) -> None:
    running_app, http = fitting
    job = await submitted(http, name="labelled", fit={"by": "items", "items": ITEMS})
    assert (job["fit"]["method"], job["fit"]["by"]) == ("iteris", "items")
    stored = await (await running_app.stored()).jobs.get(job["id"])
    reading = ReadingFit.model_validate(stored.reading)
    assert reading.labelled
    assert {item.reference for items in reading.items.values() for item in items} == {"right"}
    await http.post(f"/admin/v1/jobs/{job['id']}:cancel")
    patterns = {name: [{"prompt": "x", "pattern": "y"}] for name in ITEMS}
    body = BODY | {"name": "bare", "fit": {"method": "iteris", "by": "items", "items": patterns}}
    error = assert_error(await http.post("/admin/v1/merges", json=body), 400, "fit_refused")
    assert "has no reference" in error["message"]


async def test_scored_items_find_weights_too(fitting: tuple[RunningApp, httpx.AsyncClient]) -> None:
    _, http = fitting
    fit = {"by": "items", "items": ITEMS, "metrics": {"json": "contains"}, "seed": 7, "candidates": 40}
    job = await submitted(http, name="scored", fit=fit)
    done = await settled(http, job["id"])
    assert all(kept > 0.95 for kept in done["fit"]["kept"].values()), done
    sweep = (await http.get(f"/admin/v1/evaluations/{job['fit']['sweep']}")).json()["evaluation"]
    assert sweep["metrics"] == ["exact_match", "contains", "kept"]
    await http.post(f"/admin/v1/jobs/{job['id']}:cancel")


async def test_an_evaluation_lends_its_items(fitting: tuple[RunningApp, httpx.AsyncClient]) -> None:
    _, http = fitting
    items = [{"task": name, **row} for name, rows in ITEMS.items() for row in rows]
    made = await http.post(
        "/admin/v1/evaluations", json={"targets": ["sql"], "metrics": ["exact_match"], "items": items}
    )
    for by in ("kept", "items"):
        fit = {"by": by, "evaluation": made.json()["id"], "candidates": 6}
        job = await submitted(http, name=f"lent-{by}", fit=fit)
        done = await settled(http, job["id"])
        assert set(done["fit"]["weights"]) == {"sql@1", "json@1", "code@1"}
        await http.post(f"/admin/v1/jobs/{job['id']}:cancel")


async def test_a_cancelled_job_ends_its_search(fitting: tuple[RunningApp, httpx.AsyncClient]) -> None:
    running_app, http = fitting
    running_app.engine.chunk_pause_s = 0.05
    job = await submitted(http, name="unwanted")
    await http.post(f"/admin/v1/jobs/{job['id']}:cancel")
    async with asyncio.timeout(20):
        while (await http.get(f"/admin/v1/evaluations/{job['fit']['sweep']}")).json()["evaluation"][
            "state"
        ] != "cancelled":
            await asyncio.sleep(0.05)
    running_app.engine.chunk_pause_s = 0.0
    fits = (await running_app.stored()).fits
    async with asyncio.timeout(20):
        while await fits.waiting():
            await asyncio.sleep(0.05)
    assert (await (await running_app.stored()).jobs.get(job["id"])).state == "cancelled"


@pytest.mark.parametrize("way", ["cancelled", "deleted", "over"])
async def test_a_search_without_a_result_fails_the_job(fitting: tuple[RunningApp, httpx.AsyncClient], way: str) -> None:
    running_app, http = fitting
    running_app.engine.chunk_pause_s = 0.05
    fit = FIT | {"budget_s": 1e-6} if way == "over" else FIT
    job = await submitted(http, name=f"lost-{way}", fit=fit)
    sweep = job["fit"]["sweep"]
    if way != "over":
        await http.post(f"/admin/v1/evaluations/{sweep}:cancel")
    if way == "deleted":
        await http.delete(f"/admin/v1/evaluations/{sweep}")
    done = await settled(http, job["id"])
    running_app.engine.chunk_pause_s = 0.0
    code = "fit_unfinished" if way == "over" else "fit_stopped"
    assert (done["state"], done["error"]["code"]) == ("failed", code)


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"fit": None}, 400, "invalid_value"),
        ({"inputs": ["sql"]}, 400, "invalid_value"),
        ({"inputs": ["sql", "sql"]}, 400, "duplicate_input"),
        ({"inputs": None}, 400, "invalid_value"),
        ({"expression": "sql + json"}, 400, "invalid_value"),
        ({"inputs": ["sql", "nosuch", "code"]}, 404, "adapter_not_found"),
        ({"inputs": ["sql", "json"]}, 400, "fit_refused"),
        ({"fit": {}}, 400, "invalid_value"),
        ({"fit": FIT | {"candidates": 0}}, 400, "invalid_value"),
        ({"fit": FIT | {"budget_s": 0}}, 400, "invalid_value"),
        ({"fit": FIT | {"by": "items"}}, 400, "invalid_value"),
        ({"fit": FIT | {"method": "iteris"}}, 400, "invalid_value"),
        ({"fit": {"by": "items", "items": ITEMS, "metrics": {}, "method": "iteris"}}, 400, "invalid_value"),
        ({"fit": FIT | {"items": ITEMS}}, 400, "invalid_value"),
        ({"fit": {"by": "items", "items": PROMPTS}}, 400, "metric_not_applicable"),
        ({"fit": {"by": "items", "items": ITEMS, "metrics": {"poem": "contains"}}}, 400, "fit_refused"),
        ({"fit": {"evaluation": "nosuch"}}, 404, "evaluation_not_found"),
        ({"fit": FIT | {"prompts": {"sql": ["x"]}}}, 400, "fit_refused"),
        ({"inputs": None, "expression": "sql + json - 0.5*code"}, 400, "fit_refused"),
        ({"inputs": None, "expression": "iso_c(sql, json, code; rank=900)"}, 400, "invalid_expression"),
        ({"inputs": None, "expression": "della(sql, json, code)"}, 400, "blend_method_refused"),
        ({"name": "a b"}, 400, "invalid_value"),
    ],
)  # fmt: skip
async def test_what_is_refused_before_anything_is_queued(
    fitting: tuple[RunningApp, httpx.AsyncClient], change: dict[str, Any], status: int, code: str
) -> None:
    _, http = fitting
    before = [len((await http.get(f"/admin/v1/{kind}")).json()["data"]) for kind in ("jobs", "evaluations")]
    assert_error(await http.post("/admin/v1/merges", json=BODY | change), status, code)
    assert before == [len((await http.get(f"/admin/v1/{kind}")).json()["data"]) for kind in ("jobs", "evaluations")]


async def planned(http: httpx.AsyncClient, **changes: Any) -> httpx.Response:
    return await http.post("/admin/v1/merges:plan", params={"diagnostics": "false"}, json=BODY | changes)


async def test_a_plan_says_what_a_fit_will_take_and_begins_nothing(
    fitting: tuple[RunningApp, httpx.AsyncClient],
) -> None:
    _, http = fitting
    before = [len((await http.get(f"/admin/v1/{kind}")).json()["data"]) for kind in ("jobs", "evaluations")]
    searched = (await planned(http, name="planned")).json()
    assert searched["fit"] == {
        "method": "weights", "by": "kept", "prompts": {"sql@1": 2, "json@1": 2, "code@1": 2}, "answers": 6,
        "max_tokens": 64, "candidates": 40, "budget_s": 300.0, "reading": None,
    }  # fmt: skip
    read = (await planned(http, name="planned", fit={"prompts": PROMPTS, "max_tokens": 9})).json()
    assert (read["fit"]["method"], read["fit"]["candidates"], read["fit"]["max_tokens"]) == ("iteris", None, 9)
    wanted = (await planned(http, name="planned", fit={"by": "items", "items": ITEMS})).json()
    assert (wanted["fit"]["by"], wanted["fit"]["answers"]) == ("items", 0)
    assert len({one["recipe_digest"] for one in (searched, read, wanted)}) == 3
    assert [entry["adapter"] for entry in read["recipe"]["inputs"]] == ["code@1", "json@1", "sql@1"]
    assert searched["warnings"] == read["warnings"] == []
    assert before == [len((await http.get(f"/admin/v1/{kind}")).json()["data"]) for kind in ("jobs", "evaluations")]
    job = await submitted(http, name="planned", fit={"prompts": PROMPTS, "max_tokens": 9})
    assert job["recipe_digest"] == read["recipe_digest"]


async def test_a_plan_warns_where_the_worker_has_no_room(
    fitting: tuple[RunningApp, httpx.AsyncClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    running_app, http = fitting
    needs = ReadingNeeds(memory_bytes=3 << 30, free_bytes=1 << 30, device="cpu", dtype="bfloat16", threads=2)

    async def answered() -> ReadingNeeds:
        return needs

    async def forecast(recipe: Recipe, budget_s: float) -> None:
        return None

    monkeypatch.setattr(running_app.services.merges, "reading_needs", answered)
    monkeypatch.setattr(running_app.services.merges, "forecast", forecast)
    order = BODY | {"name": "large", "fit": {"prompts": PROMPTS}}
    plan = (await http.post("/admin/v1/merges:plan", json=order)).json()
    assert plan["fit"]["reading"] == needs.model_dump(mode="json")
    assert plan["warnings"][0].startswith("fit_unread: the base model takes about 3.0 GiB here, and 1.0 GiB are free")


async def test_a_plan_refuses_what_the_merge_would(fitting: tuple[RunningApp, httpx.AsyncClient]) -> None:
    _, http = fitting
    assert_error(await planned(http, fit=FIT | {"prompts": {"sql": ["x"]}}), 400, "fit_refused")
    bare = {name: [{"prompt": "x", "pattern": "y"}] for name in LEVELS}
    assert_error(await planned(http, fit={"by": "items", "items": bare, "method": "iteris"}), 400, "fit_refused")
