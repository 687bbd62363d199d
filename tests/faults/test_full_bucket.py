"""The bucket has no room: nothing is named that is not there, what is served goes on, and what was sent is sent again.

Stores say it in two ways: 507 (MinIO), and 403 with a code of its own (Ceph), as they do to credentials that may not.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from amalgam.errors.registry import ObjectStoreUnavailable
from tests.support.full_bucket import FullBucket, may_be_full
from tests.support.object_store import ADDRESS, give_credentials, names_in, s3_server
from tests.support.running_app import ADMIN_KEY, API_KEY, RunningApp, assert_error, push, start_app, write_adapter

CHAT = {"messages": [{"role": "user", "content": "x"}]}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as address:
        yield address


@dataclass
class Scene:
    app: RunningApp
    line: FullBucket
    s3: str


@pytest.fixture
async def scene(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    give_credentials(monkeypatch)
    async with may_be_full(server) as line:
        settings: dict[str, Any] = {"store": tmp_path / "copies", "bucket": ADDRESS, "object_endpoint": line.endpoint}
        async with start_app(tmp_path, worker=True, **settings) as app:
            yield Scene(app, line, server)


@pytest.mark.parametrize("status", [507, 403])
async def test_uploads_and_merges_are_refused_and_done_when_they_are_sent_again(
    status: int, scene: Scene, tmp_path: Path
) -> None:
    order = {"name": "made", "expression": "0.5*old"}
    async with scene.app.http(ADMIN_KEY) as admin, scene.app.http(API_KEY) as client:
        assert (await push(admin, "old", write_adapter(tmp_path / "old", seed=status))).status_code == 201
        before, folder = names_in(scene.s3), write_adapter(tmp_path / "new", seed=status + 1)
        scene.line.refused_status = status
        admin.headers["Idempotency-Key"] = f"upload-{status}"
        refused = await push(admin, "new", folder)
        assert "room" in assert_error(refused, 503, "object_store_unavailable")["message"]
        assert refused.headers["retry-after"]
        admin.headers["Idempotency-Key"] = f"merge-{status}"
        job = (await admin.post("/admin/v1/merges", json=order)).json()["job"]
        async with asyncio.timeout(240):
            while job["state"] != "failed":
                await asyncio.sleep(0.1)
                job = (await admin.get(f"/admin/v1/jobs/{job['id']}")).json()
        assert job["error"]["code"] == "object_store_unavailable", job
        assert scene.line.refused, "it was the store that refused"
        assert names_in(scene.s3) == before
        for model in ("new", "made"):
            assert_error(
                await client.post("/v1/chat/completions", json=CHAT | {"model": model}), 404, "model_not_found"
            )
        assert (await client.post("/v1/chat/completions", json=CHAT | {"model": "old"})).status_code == 200

        scene.line.refused_status = 0
        admin.headers["Idempotency-Key"] = f"upload-{status}"
        assert (await push(admin, "new", folder)).status_code == 201
        del admin.headers["Idempotency-Key"]
        async with asyncio.timeout(240):
            while (await admin.post("/admin/v1/merges?wait_s=30", json=order, timeout=90)).status_code not in (
                200,
                201,
            ):
                await asyncio.sleep(0.1)
        for model in ("new", "made"):
            assert (await client.post("/v1/chat/completions", json=CHAT | {"model": model})).status_code == 200


async def test_deletions_make_room_while_the_bucket_is_full(scene: Scene, tmp_path: Path) -> None:
    async with scene.app.http(ADMIN_KEY) as admin:
        assert (await push(admin, "large", write_adapter(tmp_path / "large", seed=7))).status_code == 201
        scene.line.refused_status = 507
        assert (await admin.delete("/admin/v1/adapters/large")).status_code == 200


async def test_a_server_that_starts_before_a_full_bucket_says_so(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_credentials(monkeypatch)
    async with may_be_full(server) as line:
        line.refused_status = 507
        settings: dict[str, Any] = {"store": tmp_path / "copies", "bucket": ADDRESS, "object_endpoint": line.endpoint}
        with pytest.raises(ObjectStoreUnavailable, match="room"):
            async with start_app(tmp_path, **settings):
                pytest.fail("it could not have shown that the second of two writers is refused")
