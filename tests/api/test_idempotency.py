"""`Idempotency-Key` over HTTP: on every POST of the admin plane and on no other route."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from amalgam.errors.registry import RegistryUnavailable
from amalgam.registry.idempotency import IdempotencyRegistry
from amalgam.services import idempotency
from tests.support.running_app import ADMIN_KEY, RunningApp, assert_error, push, start_app, write_adapter

MERGE = {"name": "mix", "expression": "sql + 0.5*json"}


@pytest.fixture(scope="module")
async def prepared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[RunningApp, httpx.AsyncClient]]:
    folder = tmp_path_factory.mktemp("keys")
    async with start_app(folder) as running_app, running_app.http(ADMIN_KEY) as http:
        for seed, name in enumerate(("sql", "json")):
            assert (await push(http, name, write_adapter(folder / name, seed=seed))).status_code == 201
        yield running_app, http


def key(name: str) -> dict[str, str]:
    return {"Idempotency-Key": name}


async def test_every_post_of_the_admin_plane_reads_the_key(prepared: tuple[RunningApp, httpx.AsyncClient]) -> None:
    running_app, http = prepared
    paths = running_app.app.openapi()["paths"]
    posts = [path for path, methods in paths.items() if "post" in methods]
    admin = [path for path in posts if path.startswith("/admin/")] + [
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
    ]
    assert len(admin) >= 11
    for path in posts:
        answer = await http.post(path.replace("{name}", "nosuch").replace("{job_id}", "x"), headers=key("x" * 256))
        refused = answer.json()["error"]["param"] == "Idempotency-Key"
        assert refused is (path in admin), path


async def test_a_merge_asked_for_twice_is_answered_twice(prepared: tuple[RunningApp, httpx.AsyncClient]) -> None:
    running_app, http = prepared
    first = await http.post("/admin/v1/merges", json=MERGE, headers=key("merge"))
    assert (first.status_code, first.headers.get("idempotency-replayed")) == (202, None)
    # Whatever became of it meanwhile: the answer is the first one, byte for byte.
    await running_app.services.merges.cancel(first.json()["job"]["id"])
    again = await http.post("/admin/v1/merges", json=MERGE, headers=key("merge"))
    assert (again.status_code, again.content) == (202, first.content)
    assert again.headers["location"] == first.headers["location"]
    assert again.headers["content-type"] == first.headers["content-type"]
    assert again.headers["idempotency-replayed"] == "true"
    assert again.headers["x-request-id"] != first.headers["x-request-id"]
    other = await http.post("/admin/v1/merges", json=MERGE | {"set_default": False}, headers=key("merge"))
    assert_error(other, 422, "idempotency_key_reused")
    longer = await http.post("/admin/v1/merges", params={"wait_s": 1}, json=MERGE, headers=key("merge"))
    assert_error(longer, 422, "idempotency_key_reused")
    fresh = await http.post("/admin/v1/merges", json=MERGE, headers=key("another"))
    assert fresh.json()["job"]["id"] != first.json()["job"]["id"]
    await running_app.services.merges.cancel(fresh.json()["job"]["id"])


async def test_a_refusal_is_repeated_and_a_failure_is_not(
    prepared: tuple[RunningApp, httpx.AsyncClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    running_app, http = prepared
    for replayed in (None, "true"):
        refused = await http.post("/admin/v1/merges", json={"name": "x"}, headers=key("refused"))
        assert (refused.status_code, refused.headers.get("idempotency-replayed")) == (400, replayed)

    async def failing(*_: Any, **__: Any) -> Any:
        raise RuntimeError("broken") if len(calls) % 2 else RegistryUnavailable("locked")

    calls: list[int] = []
    with monkeypatch.context() as broken:
        broken.setattr(running_app.services.merges, "submit", failing)
        for status in (503, 500):
            answer = await http.post("/admin/v1/merges", json=MERGE, headers=key("failed"))
            assert answer.status_code == status
            calls.append(status)
    answer = await http.post("/admin/v1/merges", json=MERGE, headers=key("failed"))
    assert (answer.status_code, answer.headers.get("idempotency-replayed")) == (202, None)
    await running_app.services.merges.cancel(answer.json()["job"]["id"])


async def test_while_the_first_runs_the_second_waits_or_is_told_to_come_again(
    prepared: tuple[RunningApp, httpx.AsyncClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    running_app, http = prepared
    entered, go_on = asyncio.Event(), asyncio.Event()
    pin = running_app.services.adapters.pin
    pins = 0

    async def slow(*given: Any, **more: Any) -> Any:
        nonlocal pins
        pins += 1
        entered.set()
        await go_on.wait()
        return await pin(*given, **more)

    monkeypatch.setattr(running_app.services.adapters, "pin", slow)
    monkeypatch.setattr(idempotency, "LEASE_S", 1.5)  # shorter than the work: it is renewed
    path, headers = "/admin/v1/adapters/sql:pin", key("slow")
    first = asyncio.create_task(http.post(path, headers=headers))
    await entered.wait()
    await asyncio.sleep(2.0)
    with monkeypatch.context() as impatient:
        impatient.setattr(idempotency, "WAIT_S", 0.05)
        told = await http.post(path, headers=headers)
    assert_error(told, 409, "idempotency_in_progress")
    assert told.headers["retry-after"] == "1"
    second = asyncio.create_task(http.post(path, headers=headers))
    await asyncio.sleep(0.1)
    go_on.set()
    answers = [await first, await second]
    assert [answer.headers.get("idempotency-replayed") for answer in answers] == [None, "true"]
    assert answers[0].content == answers[1].content
    assert pins == 1


async def test_without_a_registry_nothing_is_begun(
    prepared: tuple[RunningApp, httpx.AsyncClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, http = prepared

    async def down(*_: Any, **__: Any) -> Any:
        raise RegistryUnavailable("locked")

    with monkeypatch.context() as outage:
        outage.setattr(IdempotencyRegistry, "begin", down)
        assert_error(await http.post("/admin/v1/adapters/sql:load", headers=key("down")), 503, "registry_unavailable")
    with monkeypatch.context() as outage:
        outage.setattr(IdempotencyRegistry, "finish", down)
        # The effect is there, so its caller is told; a retry would begin anew.
        assert (await http.post("/admin/v1/adapters/sql:load", headers=key("down"))).status_code == 200


async def test_two_replicas_share_recipes_and_keys(tmp_path: Path, database_url: str) -> None:
    """One database, one store, two servers: one job for one recipe, whoever was asked, and then one version."""
    changes: dict[str, Any] = {"store": tmp_path / "shared", "database_url": database_url}
    async with (
        start_app(tmp_path / "a", **changes) as a,
        start_app(tmp_path / "b", **changes) as b,
        a.http(ADMIN_KEY) as to_a,
        b.http(ADMIN_KEY) as to_b,
    ):
        for seed, name in enumerate(("sql", "json")):
            assert (await push(to_a, name, write_adapter(tmp_path / name, seed=seed))).status_code == 201
        await b.services.catalog.refresh()
        asked = [to.post("/admin/v1/merges", json=MERGE) for to in (to_a, to_b) * 8]
        made = await asyncio.gather(*asked)
        assert {answer.status_code for answer in made} == {202}, [answer.text for answer in made]
        [job_id] = {answer.json()["job"]["id"] for answer in made}
        jobs = (await a.stored()).jobs
        job = await jobs.claim("worker", lease_s=60, max_attempts=1)
        assert job is not None
        assert job.id == job_id
        version = await a.services.adapters.get_version("sql", 1)
        draft = {"name": "mix", "digest": version.digest, "rank": 2, "size_bytes": 1, "module_count": 1}
        await jobs.finish_built(job.id, job.fencing_token, _draft(draft, job.recipe_digest))
        for service in (a.services, b.services):
            assert (await service.merges.wait(job.id, 10)).state == "published"
            await service.catalog.refresh()
        answers = await asyncio.gather(*(to.post("/admin/v1/merges", json=MERGE) for to in (to_a, to_b) * 4))
        assert {(answer.status_code, answer.json()["model"]) for answer in answers} == {(200, "mix@1")}
        # A key is one key, whichever replica it comes to.
        keyed = [await to.post("/admin/v1/adapters/sql:load", headers=key("both")) for to in (to_a, to_b)]
        assert [answer.headers.get("idempotency-replayed") for answer in keyed] == [None, "true"]
        assert keyed[0].content == keyed[1].content


def _draft(fields: dict[str, Any], recipe_digest: str) -> Any:
    from amalgam.domain.version import VersionDraft

    return VersionDraft(**fields, base_fingerprint="", source="merge", recipe_digest=recipe_digest)
