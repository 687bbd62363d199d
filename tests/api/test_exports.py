"""Orders of exports: what is refused before anything is queued, and what becomes one job."""

import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from amalgam.domain.job import JobRequest
from amalgam.domain.messages import JobNews
from tests.adapter_factory import encode_safetensors
from tests.support.running_app import ADMIN_KEY, API_KEY, RunningApp, assert_error, push, start_app, write_adapter


@pytest.fixture(scope="module")
async def prepared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningApp]:
    folder = tmp_path_factory.mktemp("exports")
    async with start_app(folder, export_root=folder / "exports") as running_app, running_app.http(ADMIN_KEY) as http:
        for seed, name in enumerate(("one", "two")):
            assert (await push(http, name, write_adapter(folder / name, seed=seed))).status_code == 201
        yield running_app


@pytest.fixture
async def http(prepared: RunningApp) -> AsyncIterator[httpx.AsyncClient]:
    async with prepared.http(ADMIN_KEY) as session:
        yield session
        for job in (await session.get("/admin/v1/jobs")).json()["data"]:
            await session.post(f"/admin/v1/jobs/{job['id']}:cancel")


async def submit(http: httpx.AsyncClient, name: str = "out", expression: str = "one", **more: Any) -> httpx.Response:
    return await http.post("/admin/v1/exports", json={"name": name, "expression": expression} | more)


async def test_the_same_export_is_one_job_and_another_of_its_name_is_refused(http: httpx.AsyncClient) -> None:
    first = await submit(http, expression="one + 0.5*two")
    assert first.status_code == 202
    job = first.json()["job"]
    assert (job["kind"], job["state"], job["name"]) == ("export", "queued", "out")
    assert first.headers["location"] == f"/admin/v1/jobs/{job['id']}"
    assert [entry["adapter"] for entry in job["recipe"]["recipe"]["inputs"]] == ["one@1", "two@1"]
    same = await submit(http, expression="0.5*two@1 + 1.0*one")
    assert same.json()["job"]["id"] == job["id"]
    for change in ({"dtype": "float16"}, {"max_shard_bytes": 1 << 20}, {"expression": "one"}, {"dequantize": True}):
        assert_error(await submit(http, **({"expression": "one + 0.5*two"} | change)), 409, "name_taken")
    assert (await submit(http, "elsewhere")).status_code == 202


async def test_what_will_be_cut_is_said_before_it_is(http: httpx.AsyncClient) -> None:
    whole = (await submit(http, "whole", "ties(one, two; space=delta)")).json()
    assert (whole["rank"], whole["exact_rank"]) == (16, 16)
    assert not any("cut" in warning for warning in whole["warnings"])
    cut = (await submit(http, "cut", "ties(one, two; space=delta, rank=3)")).json()
    assert (cut["rank"], cut["exact_rank"]) == (3, 16)
    assert any("planned rank 3" in warning for warning in cut["warnings"])


async def test_the_name_of_an_export_is_no_adapters(http: httpx.AsyncClient) -> None:
    """It is a folder's: an adapter, an alias and an export may share it."""
    assert (await submit(http, "shared")).status_code == 202
    alias = await http.put("/admin/v1/aliases/shared", json={"targets": [{"model": "one", "weight": 1}]})
    assert alias.status_code in (200, 201), alias.text
    assert (await submit(http, "one")).status_code == 202
    assert (await http.delete("/admin/v1/aliases/shared")).status_code == 200


@pytest.mark.parametrize(("body", "status", "code"), [
    ({"name": "../up", "expression": "one"}, 400, "invalid_value"),
    ({"name": ".hidden", "expression": "one"}, 400, "invalid_value"),
    ({"name": "out", "expression": "one", "recipe": {"inputs": [{"adapter": "one"}]}}, 400, "invalid_value"),
    ({"name": "out"}, 400, "invalid_value"),
    ({"name": "out", "expression": "one", "dtype": "int8"}, 400, "invalid_value"),
    ({"name": "out", "expression": "one", "max_shard_bytes": 1}, 400, "invalid_value"),
    ({"name": "out", "expression": "none"}, 404, "adapter_not_found"),
    ({"name": "out", "expression": "one +"}, 400, "invalid_expression"),
])  # fmt: skip
async def test_what_cannot_be_is_refused_and_nothing_is_queued(
    http: httpx.AsyncClient, body: dict[str, Any], status: int, code: str
) -> None:
    before = (await http.get("/admin/v1/jobs")).json()["data"]
    assert_error(await http.post("/admin/v1/exports", json=body), status, code)
    assert (await http.get("/admin/v1/jobs")).json()["data"] == before


async def test_a_taken_name_a_small_disk_and_a_base_without_safetensors(
    prepared: RunningApp, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    root = prepared.settings.exports.export_root
    assert root is not None
    (root / "taken").mkdir(parents=True)
    (root / "link").symlink_to(tmp_path)
    for name in ("taken", "link"):
        assert_error(await submit(http, name), 409, "name_taken")
        assert_error(await http.get(f"/admin/v1/exports/{name}"), 404, "export_not_found")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10_000})())
        assert_error(await submit(http), 507, "disk_too_small")
    config = prepared.folder / "base" / "config.json"
    kept = config.read_text()
    config.write_text(json.dumps(json.loads(kept) | {"quantization_config": {}}))
    refused = assert_error(await submit(http, dtype="float16"), 422, "base_not_exportable")
    assert "dequantize" in refused["message"]
    config.write_text(kept)
    weights = prepared.folder / "base" / "model.safetensors"
    weights.rename(tmp_path / "away")
    assert_error(await submit(http), 422, "base_not_exportable")
    import numpy as np

    weights.write_bytes(encode_safetensors({"model.embed_tokens.weight": np.ones((32, 16), np.float32)}, "bfloat16"))
    refused = assert_error(await submit(http), 422, "unknown_modules")
    assert "q_proj" in refused["message"]
    (tmp_path / "away").replace(weights)
    assert (await submit(http)).status_code == 202


async def test_a_failed_job_answers_with_its_own_code(prepared: RunningApp, http: httpx.AsyncClient) -> None:
    jobs = (await prepared.stored()).jobs
    answer = (await submit(http, "failing")).json()
    await jobs.fail(answer["job"]["id"], code="non_finite", status=422, message="no")
    prepared.services.merges.reports.job_changed(JobNews(answer["job"]["id"], "export", "failed", {}))
    job = await prepared.services.merges.get(answer["job"]["id"])
    with pytest.raises(Exception, match="no") as failed:
        await prepared.services.exports.finished(job)
    assert failed.value.code == "non_finite"  # type: ignore[attr-defined]


async def test_off_by_default_and_never_for_clients(prepared: RunningApp, tmp_path: Path) -> None:
    async with prepared.http(API_KEY) as client:
        assert_error(await submit(client), 403, "invalid_api_key")
    async with start_app(tmp_path) as running_app, running_app.http(ADMIN_KEY) as http:
        assert (await push(http, "one", write_adapter(tmp_path / "one"))).status_code == 201
        assert_error(await submit(http), 403, "exports_off")
        assert_error(await http.get("/admin/v1/exports"), 403, "exports_off")
        assert running_app.services.worker.alive


async def test_an_export_job_is_not_published_like_a_merge(prepared: RunningApp, http: httpx.AsyncClient) -> None:
    """The same row under a worker that is not here: claimed as any job, and ended in one step."""
    jobs = (await prepared.stored()).jobs
    submitted = await jobs.submit_export(JobRequest("export", "by-hand", {}, "e" * 64))
    assert submitted.job is not None
    claimed = await jobs.claim("elsewhere", lease_s=60, max_attempts=3)
    assert claimed is not None
    done = await jobs.finish_export(claimed.id, claimed.fencing_token, {"export": 1.0})
    assert (done.state, done.version_number, done.timings["export"]) == ("published", None, 1.0)
