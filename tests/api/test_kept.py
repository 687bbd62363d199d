"""Skill probes over HTTP: what a plan says is kept, what a lineage shows, and what is refused before it is built."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from amalgam.domain.job import JobRequest
from amalgam.domain.skill_probe import KeptRecord
from amalgam.domain.version import VersionDraft
from tests.api.test_blends import Instant
from tests.support.reading_engine import ReadingEngine
from tests.support.running_app import ADMIN_KEY, RunningApp, assert_error, push, start_app, write_adapter

PROBE = {"prompts": {"sql": ["how many?"], "json": [{"prompt": "a"}, {"messages": [{"role": "user", "content": "b"}]}]}}


@pytest.fixture(scope="module")
async def reading(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[RunningApp, httpx.AsyncClient]]:
    folder = tmp_path_factory.mktemp("kept")
    with pytest.MonkeyPatch.context() as monkeypatch:
        Instant(monkeypatch)
        async with start_app(folder, ReadingEngine()) as running_app, running_app.http(ADMIN_KEY) as http:
            for seed, name in enumerate(("sql", "json")):
                assert (await push(http, name, write_adapter(folder / name, seed=seed))).status_code == 201
            yield running_app, http


async def planned(http: httpx.AsyncClient, **changes: Any) -> httpx.Response:
    body = {"name": "mix", "expression": "sql + 0.5*json", "probe": PROBE} | changes
    return await http.post("/admin/v1/merges:plan", params={"diagnostics": "false"}, json=body)


async def test_a_plan_tries_the_merge_as_a_blend(reading: tuple[RunningApp, httpx.AsyncClient]) -> None:
    running_app, http = reading
    assert isinstance(running_app.engine, ReadingEngine)
    running_app.engine.agreed, running_app.engine.asked = 2, []
    plan = (await planned(http)).json()
    assert {name: one["agreement"] for name, one in plan["kept"]["inputs"].items()} == {"sql@1": 0.5, "json@1": 0.5}
    assert [one["prompts"] for one in plan["kept"]["inputs"].values()] == [1, 2]
    assert len(running_app.engine.asked) == 6
    assert {name.partition("@")[0] for name in running_app.engine.asked} == {"sql", "json", "blend"}
    assert [text.partition(":")[0] for text in plan["warnings"]] == ["skill_lost", "skill_lost"]
    running_app.engine.agreed = 4
    assert (await planned(http)).json()["warnings"] == []
    bare = (await planned(http, probe=None)).json()
    assert bare["kept"] is None
    assert [text.partition(":")[0] for text in bare["warnings"]] == ["kept_unmeasured"]
    assert (await planned(http, probe=None, expression="sql")).json()["warnings"] == []


async def test_a_plan_says_why_it_cannot_tell(reading: tuple[RunningApp, httpx.AsyncClient]) -> None:
    _, http = reading
    filtered = {"inputs": [{"adapter": "sql", "weight": [0.1, 0.9]}, {"adapter": "json"}]}
    plan = (await planned(http, expression=None, recipe=filtered)).json()
    assert plan["kept"]["inputs"] == {}
    assert "module to module" in plan["kept"]["failure"]
    assert plan["warnings"][0].startswith("kept_unknown: ")


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"require": {"kept": 0.9}, "probe": None}, 400, "invalid_value"),
        ({"require": {"kept": 1.5}}, 400, "invalid_value"),
        ({"probe": {}}, 400, "invalid_value"),
        ({"probe": {"prompts": {"sql": []}}}, 400, "invalid_value"),
        ({"probe": {"prompts": {"sql": ["x"] * 33}}}, 400, "invalid_value"),
        ({"probe": {"prompts": {"sql": [""]}}}, 400, "invalid_value"),
        ({"probe": {"prompts": {"sql": [{}]}}}, 400, "invalid_value"),
        ({"probe": {"prompts": {"sql": [{"prompt": "a", "messages": []}]}}}, 400, "invalid_value"),
        ({"probe": {"prompts": {"sql": [{"messages": []}]}}}, 400, "invalid_value"),
        ({"probe": {"prompts": {"code": ["x"]}}}, 400, "probe_refused"),
        ({"probe": {"prompts": {"sql": ["x"], "sql@1": ["x"]}}}, 400, "probe_refused"),
        ({"probe": {"prompts": {"sql": ["x"]}}, "require": {"kept": 0.9}}, 400, "probe_refused"),
        ({"probe": {"evaluation": "nosuch"}}, 404, "evaluation_not_found"),
        ({"probe": PROBE | {"max_tokens": 0}}, 400, "invalid_value"),
        ({"probe": PROBE | {"answers": 3}}, 400, "invalid_value"),
    ],
)
@pytest.mark.parametrize("path", ["/admin/v1/merges", "/admin/v1/merges:plan"])
async def test_a_probe_that_cannot_be_used_is_refused_before_anything_is_asked(
    reading: tuple[RunningApp, httpx.AsyncClient], path: str, changes: dict[str, Any], status: int, code: str
) -> None:
    running_app, http = reading
    assert isinstance(running_app.engine, ReadingEngine)
    running_app.engine.asked = []
    body = {"name": "mix", "expression": "sql + 0.5*json", "probe": PROBE} | changes
    assert_error(await http.post(path, json=body), status, code)
    assert running_app.engine.asked == []
    assert (await http.get("/admin/v1/jobs")).json()["data"] == []


async def test_an_evaluation_lends_its_items_by_task(reading: tuple[RunningApp, httpx.AsyncClient]) -> None:
    running_app, http = reading
    running_app.engine.agreed = 4  # type: ignore[attr-defined]
    items = [{"task": task, "prompt": task, "reference": "x"} for task in ("sql", "json", "code")]
    made = await http.post(
        "/admin/v1/evaluations", json={"targets": ["sql"], "metrics": ["log_likelihood"], "items": items}
    )
    evaluation = made.json()["id"]
    plan = (await planned(http, probe={"evaluation": evaluation})).json()
    assert {name: one["prompts"] for name, one in plan["kept"]["inputs"].items()} == {"sql@1": 1, "json@1": 1}
    added = (await planned(http, probe={"evaluation": evaluation, "prompts": {"sql": ["a", "b"]}})).json()
    assert added["kept"]["inputs"]["sql@1"]["prompts"] == 2
    lonely = [{"task": "poems", "prompt": "p", "reference": "x"}]
    other = await http.post(
        "/admin/v1/evaluations", json={"targets": ["sql"], "metrics": ["log_likelihood"], "items": lonely}
    )
    refused = await planned(http, probe={"evaluation": other.json()["id"]})
    assert "poems" in assert_error(refused, 400, "probe_refused")["message"]


async def test_a_job_carries_the_probe_for_exact_versions(reading: tuple[RunningApp, httpx.AsyncClient]) -> None:
    running_app, http = reading
    body = {"name": "mixed", "expression": "sql + 0.5*json", "probe": PROBE, "require": {"kept": 0.9}}
    made = await http.post("/admin/v1/merges", json=body)
    assert made.status_code == 202, made.text
    job = await running_app.services.merges.get(made.json()["job"]["id"])
    assert job.probe is not None
    assert (sorted(job.probe["prompts"]), job.probe["required"]) == (["json@1", "sql@1"], 0.9)
    assert job.probe["prompts"]["sql@1"][0]["messages"] == [{"role": "user", "content": "how many?"}]
    await http.post(f"/admin/v1/jobs/{job.id}:cancel")


async def test_the_lineage_graph_shows_what_is_kept(reading: tuple[RunningApp, httpx.AsyncClient]) -> None:
    running_app, http = reading
    jobs = (await running_app.stored()).jobs
    version = running_app.services.catalog.snapshot.versions["sql@1"]
    await jobs.submit(JobRequest("merge", "shown", {}, "digest", True, (version.digest,)))
    claimed = await jobs.claim("worker", lease_s=30, max_attempts=1)
    assert claimed is not None
    draft = VersionDraft(
        name="shown", digest=version.digest, rank=2, size_bytes=1, module_count=1, base_fingerprint="", source="merge",
        lineage={"recipe": {}},
    )  # fmt: skip
    await jobs.finish_built(claimed.id, claimed.fencing_token, draft, {})
    held = await jobs.claim_built("server", lease_s=30)
    assert held is not None
    await jobs.publish(held.id, held.fencing_token, {}, KeptRecord(probe_digest="d", inputs={}, failure="why."))
    graph = (await http.get("/admin/v1/adapters/shown/versions/1/lineage")).json()
    assert graph["nodes"][0]["kept"]["failure"] == "why."
    plain = (await http.get("/admin/v1/adapters/sql/versions/1/lineage")).json()
    assert plain["nodes"][0]["kept"] is None
