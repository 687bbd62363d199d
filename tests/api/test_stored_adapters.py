"""A limit on stored bytes holds for adapters: uploads, sources and merges, and deletion makes room again."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from amalgam.registry.stored_bytes import StoredBytesRegistry
from amalgam.services.stored_numbers import StoredNumbers
from tests.support.keys import key_id, make_key, make_tenant
from tests.support.running_app import ADMIN_KEY, RunningApp, assert_error, push, start_app, write_adapter


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[RunningApp]:
    async with start_app(tmp_path / "app", worker=True) as running_app:
        yield running_app


@pytest.fixture
async def size(running: RunningApp, tmp_path: Path) -> int:
    """Of one adapter of these tests, as it is stored."""
    async with running.http(ADMIN_KEY) as admin:
        pushed = await push(admin, "measured", write_adapter(tmp_path / "measured"))
        assert (await admin.delete("/admin/v1/adapters/measured")).status_code == 200
    return int(pushed.json()["size_bytes"])


async def limited(running: RunningApp, stored_bytes: int, whose: str) -> httpx.AsyncClient:
    """A publisher of acme, which or whose tenant may store so much."""
    limits = {"stored_bytes": stored_bytes}
    await make_tenant(running, "acme", **({"limits": limits} if whose == "tenant" else {}))
    return running.http(await make_key(running, "publisher", **({"limits": limits} if whose == "key" else {})))


def stored_objects(running: RunningApp) -> int:
    return len(list((running.folder / "store" / "objects").glob("??/*")))


@pytest.mark.parametrize("whose", ["tenant", "key"])
async def test_what_does_not_fit_is_refused_by_name_and_leaves_nothing(
    running: RunningApp, size: int, tmp_path: Path, whose: str
) -> None:
    async with await limited(running, 2 * size + 1, whose) as publisher:
        for seed in (1, 2):
            folder = write_adapter(tmp_path / f"a{seed}", seed=seed)
            assert (await push(publisher, f"a{seed}", folder)).status_code == 201
        before, third = stored_objects(running), write_adapter(tmp_path / "a3", seed=3)
        refused = await push(publisher, "a3", third)
        error = assert_error(refused, 429, "insufficient_quota")
        assert "stored_bytes" in error["message"]
        assert whose in error["message"]
        assert refused.headers["x-should-retry"] == "false"
        assert stored_objects(running) == before, "not even for the sweep to find"
        assert running.staged() == []
        assert_error(await publisher.get("/admin/v1/adapters/a3"), 404, "adapter_not_found")
        again = await push(publisher, "a2", tmp_path / "a2")
        assert again.status_code == 200, "the same bytes again are no new version"
        assert (await publisher.delete("/admin/v1/adapters/a1")).status_code == 200
        assert (await push(publisher, "a3", third)).status_code == 201
    async with running.http(ADMIN_KEY) as admin:
        assert (await push(admin, "operators", third)).status_code == 201, "others are not limited by it"


async def test_adapters_and_files_share_one_limit(running: RunningApp, size: int, tmp_path: Path) -> None:
    async with await limited(running, size + 100, "tenant") as publisher:
        assert (await push(publisher, "sql", write_adapter(tmp_path / "a"))).status_code == 201
        form: dict[str, Any] = {"data": {"purpose": "batch"}, "files": {"file": ("a", b"x" * 101)}}
        assert_error(await publisher.post("/v1/files", **form), 429, "insufficient_quota")
        await publisher.delete("/admin/v1/adapters/sql")
        assert (await publisher.post("/v1/files", **form)).status_code == 200
        assert_error(await push(publisher, "sql", tmp_path / "a"), 429, "insufficient_quota")


async def test_uploads_at_once_store_no_more_than_the_limit(running: RunningApp, size: int, tmp_path: Path) -> None:
    async with await limited(running, 3 * size, "key") as publisher:
        folders = [write_adapter(tmp_path / f"a{seed}", seed=seed) for seed in range(6)]
        calls = [push(publisher, f"a{seed}", folder) for seed, folder in enumerate(folders)]
        answers = await asyncio.gather(*calls)
        assert sorted(answer.status_code for answer in answers) == [201] * 3 + [429] * 3
        [tenant] = (await publisher.get("/admin/v1/tenants")).json()["data"]
    assert tenant["stored"] == {"adapters": 3 * size, "files": 0}


async def test_a_merge_counts_and_is_refused_before_it_is_queued(
    running: RunningApp, size: int, tmp_path: Path
) -> None:
    async with await limited(running, 5 * size, "tenant") as publisher, running.http(ADMIN_KEY) as admin:
        for seed, name in ((1, "one"), (2, "two")):
            assert (await push(publisher, name, write_adapter(tmp_path / name, seed=seed))).status_code == 201
        merge = {"name": "mix", "expression": "one + 0.5*two"}
        made = await publisher.post("/admin/v1/merges?wait_s=60", json=merge)
        assert made.status_code == 201, made.text
        [tenant] = (await publisher.get("/admin/v1/tenants")).json()["data"]
        mixed = (await publisher.get("/admin/v1/adapters/mix/versions/1")).json()["size_bytes"]
        assert tenant["stored"]["adapters"] == 2 * size + mixed
        nearly_full = {"limits": {"stored_bytes": 2 * size + mixed + 1}}
        assert (await admin.patch("/admin/v1/tenants/acme", json=nearly_full)).status_code == 200
        jobs = (await admin.get("/admin/v1/jobs")).json()["data"]
        assert_error(await publisher.post("/admin/v1/merges", json=merge | {"name": "more"}), 429, "insufficient_quota")
        assert (await admin.get("/admin/v1/jobs")).json()["data"] == jobs
        known = await publisher.post("/admin/v1/merges", json=merge)
        assert known.status_code == 200, "what is there already takes nothing"
        assert (await admin.post("/admin/v1/merges?wait_s=60", json=merge | {"name": "more"})).status_code == 201


async def test_a_merge_that_does_not_fit_any_more_when_it_is_built_fails_as_that(
    running: RunningApp, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("amalgam.merge.plan.MergePlan.output_bytes", 0)
    async with await limited(running, 2 * size + 10, "tenant") as publisher:
        for seed, name in ((1, "one"), (2, "two")):
            assert (await push(publisher, name, write_adapter(tmp_path / name, seed=seed))).status_code == 201
        failed = await publisher.post("/admin/v1/merges?wait_s=60", json={"name": "mix", "expression": "one + 0.5*two"})
        error = assert_error(failed, 429, "insufficient_quota")
        assert "stored_bytes" in error["message"]
        [job] = (await publisher.get("/admin/v1/jobs")).json()["data"]
        assert (job["state"], job["error"]["code"]) == ("failed", "insufficient_quota")
        assert_error(await publisher.get("/admin/v1/adapters/mix"), 404, "adapter_not_found")


async def test_listings_show_what_is_stored_to_who_may_know_it(running: RunningApp, size: int, tmp_path: Path) -> None:
    await make_tenant(running, "zeta")
    token, other = await make_key(running, "publisher"), await make_key(running, "publisher", tenant="zeta")
    async with running.http(token) as mine, running.http(other) as theirs, running.http(ADMIN_KEY) as admin:
        assert (await push(mine, "sql", write_adapter(tmp_path / "a"))).status_code == 201
        assert (await theirs.post("/v1/files", data={"purpose": "batch"}, files={"file": ("a", b"12345")})).is_success
        key = (await admin.get(f"/admin/v1/keys/{key_id(token)}")).json()
        assert key["stored"] == {"adapters": size, "files": 0}
        rotated = (await admin.post(f"/admin/v1/keys/{key_id(token)}:rotate")).json()
        assert rotated["new"]["stored"] == rotated["old"]["stored"] == key["stored"]
        tenants = {one["id"]: one["stored"] for one in (await admin.get("/admin/v1/tenants")).json()["data"]}
        assert tenants["acme"] == {"adapters": size, "files": 0}
        assert tenants["zeta"] == {"adapters": 0, "files": 5}
        [seen] = (await theirs.get("/admin/v1/tenants")).json()["data"]
        assert (seen["id"], seen["stored"]) == ("zeta", {"adapters": 0, "files": 5})
        keys = {one["id"]: one["stored"] for one in (await admin.get("/admin/v1/keys?tenant=zeta")).json()["data"]}
        assert keys == {key_id(other): {"adapters": 0, "files": 5}}


async def test_the_page_of_metrics_tells_what_is_stored_of_what_may_be(
    running: RunningApp, size: int, tmp_path: Path
) -> None:
    async with await limited(running, 3 * size, "tenant") as publisher, running.http(ADMIN_KEY) as admin:
        assert (await push(publisher, "sql", write_adapter(tmp_path / "a"))).status_code == 201
        services = running.services
        stored = StoredBytesRegistry((await running.stored()).database)
        await StoredNumbers(stored, services.keys, services.metrics).look()
        page = (await admin.get("/metrics")).text
    assert f'amalgam_tenant_stored_bytes{{tenant="acme",kind="adapters"}} {float(size)!r}' in page
    assert f'amalgam_tenant_stored_bytes_limit{{tenant="acme"}} {float(3 * size)!r}' in page
