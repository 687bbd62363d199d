"""A job's events: what stands first, what follows, when it ends, and what a listener that leaves leaves behind."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from amalgam.domain.job import Job, JobProgress, JobRequest
from amalgam.domain.messages import JobNews
from amalgam.errors.registry import RegistryUnavailable
from amalgam.registry.jobs import JobRegistry
from amalgam.services import job_feed
from tests.support.running_app import ADMIN_KEY, RunningApp, assert_error, served, start_app

Event = dict[str, Any]


@pytest.fixture(scope="module")
async def prepared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[RunningApp, str]]:
    async with start_app(tmp_path_factory.mktemp("events")) as running_app, served(running_app.app) as url:
        yield running_app, url


async def jobs_of(running_app: RunningApp) -> JobRegistry:
    return (await running_app.stored()).jobs


async def queued(running_app: RunningApp, name: str) -> Job:
    job = (
        await (await jobs_of(running_app)).submit(JobRequest("merge", name, {"inputs": []}, f"digest of {name}"))
    ).job
    assert job is not None
    return job


async def running(running_app: RunningApp, name: str) -> Job:
    await queued(running_app, name)
    job = await (await jobs_of(running_app)).claim("worker", lease_s=60, max_attempts=3)
    assert job is not None
    assert job.name == name
    return job


async def events(lines: AsyncIterator[str]) -> AsyncIterator[Event]:
    """Events as a browser reads them; a comment is an event of kind ``comment``."""
    fields: Event = {}
    async for line in lines:
        if line.startswith(":"):
            yield {"event": "comment"}
        elif line:
            name, _, value = line.partition(": ")
            fields[name] = json.loads(value) if name == "data" else value
        elif "event" in fields:
            yield fields
            fields = {}


@asynccontextmanager
async def stream(url: str, job: Job, **headers: str) -> AsyncIterator[httpx.Response]:
    authorized = {"Authorization": f"Bearer {ADMIN_KEY}"} | headers
    async with (
        httpx.AsyncClient(base_url=url, headers=authorized, timeout=10) as session,
        session.stream("GET", f"/admin/v1/jobs/{job.id}/events") as answer,
    ):
        yield answer


async def until(holds: Any) -> None:
    async with asyncio.timeout(5):
        while not holds():
            await asyncio.sleep(0.005)


async def test_the_present_state_then_every_change_then_the_end(prepared: tuple[RunningApp, str]) -> None:
    running_app, url = prepared
    merges, jobs = running_app.services.merges, await jobs_of(running_app)
    reports = merges.reports
    job = await queued(running_app, "followed")
    async with stream(url, job) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-store"
        told = events(answer.aiter_lines())
        first = await anext(told)
        assert (first["event"], first["data"]["state"], first["data"]["id"]) == ("state", "queued", job.id)
        claimed = await jobs.claim("worker", lease_s=60, max_attempts=3)
        assert claimed is not None
        reports.job_changed(JobNews(job.id, "merge", "running", {}))
        assert (await anext(told))["data"]["state"] == "running"
        reports.job_progressed(job.id, JobProgress(1, 5, 14))
        progress = await anext(told)
        assert progress["event"] == "progress"
        assert progress["data"] == {"attempt": 1, "modules_done": 5, "modules_total": 14}
        # An older word, and one of another start of the job, say nothing new.
        reports.job_progressed(job.id, JobProgress(1, 4, 14))
        reports.job_progressed(job.id, JobProgress(2, 9, 14))
        # What another replica's worker wrote is found in the row.
        await jobs.heartbeat(
            job.id, claimed.fencing_token, lease_s=60, progress={"modules_done": 7, "modules_total": 14}
        )
        assert (await anext(told))["data"]["modules_done"] == 7
        await jobs.fail(job.id, code="non_finite", status=422, message="no", token=claimed.fencing_token)
        reports.job_changed(JobNews(job.id, "merge", "failed", {}))
        last = await anext(told)
        assert (last["event"], last["data"]["state"], last["data"]["error"]["code"]) == (
            "state",
            "failed",
            "non_finite",
        )
        assert last["data"]["timings_s"].keys() == {"queue"}
        assert [event async for event in told] == []
    assert merges.feed.listeners == 0
    async with stream(url, job, **{"Last-Event-ID": last["id"]}) as answer:
        assert answer.status_code == 204
    async with stream(url, job, **{"Last-Event-ID": first["id"]}) as answer:
        assert [event["data"]["state"] async for event in events(answer.aiter_lines())] == ["failed"]


async def test_who_comes_back_is_told_only_what_is_new(prepared: tuple[RunningApp, str]) -> None:
    running_app, url = prepared
    merges = running_app.services.merges
    job = await running(running_app, "left")
    async with stream(url, job) as answer:
        seen = await anext(events(answer.aiter_lines()))
    # The client left in the middle: nothing of it stays.
    await until(lambda: merges.feed.listeners == 0)
    async with stream(url, job, **{"Last-Event-ID": seen["id"]}) as answer:
        told = events(answer.aiter_lines())
        await until(lambda: merges.feed.listeners == 1)
        await merges.cancel(job.id)
        assert (await anext(told))["data"]["state"] == "cancelled"
    await until(lambda: merges.feed.listeners == 0)


async def test_what_a_worker_said_is_forgotten_with_the_last_who_listened(prepared: tuple[RunningApp, str]) -> None:
    running_app, url = prepared
    feed, reports = running_app.services.merges.feed, running_app.services.merges.reports
    job = await running(running_app, "forgotten")
    async with stream(url, job) as answer:
        told = events(answer.aiter_lines())
        await anext(told)
        reports.job_progressed(job.id, JobProgress(1, 5, 14))
        assert (await anext(told))["id"] == "1.running.5"
    await until(lambda: feed.listeners == 0)
    async with stream(url, job) as answer:
        # The row says nothing of progress yet.
        assert (await anext(events(answer.aiter_lines())))["id"] == "1.running.0"
    await running_app.services.merges.cancel(job.id)


async def test_silence_is_filled_and_an_outage_outlived(
    prepared: tuple[RunningApp, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    running_app, url = prepared
    monkeypatch.setattr(job_feed, "HEARTBEAT_S", 0.05)
    monkeypatch.setattr(job_feed, "LOOK_S", 0.02)
    job = await running(running_app, "silent")
    async with stream(url, job) as answer:
        told = events(answer.aiter_lines())
        await anext(told)
        assert (await anext(told)) == {"event": "comment"}

        async def down(_: JobRegistry, job_id: str) -> Job:
            raise RegistryUnavailable("it is locked")

        with monkeypatch.context() as outage:
            outage.setattr(JobRegistry, "get", down)
            for _ in range(3):
                assert (await anext(told)) == {"event": "comment"}
        await (await jobs_of(running_app)).cancel(job.id)
        # Nobody said a word to this server: it looked by itself.
        ends = [event["data"]["state"] async for event in told if event["event"] == "state"]
        assert ends == ["cancelled"]


async def test_the_end_of_the_server_ends_every_feed(tmp_path: Path) -> None:
    async with start_app(tmp_path) as running_app:
        feed = running_app.services.merges.feed
        job = await queued(running_app, "long")
        listening = [asyncio.create_task(_all(feed, job)) for _ in range(20)]
        await until(lambda: feed.listeners == 20)
        feed.close()
        assert [len(each) for each in await asyncio.gather(*listening)] == [1] * 20
        assert feed.listeners == 0


async def _all(feed: job_feed.JobFeed, job: Job) -> list[Any]:
    return [event async for event in feed.follow(job.id)]


async def test_no_job_no_stream(prepared: tuple[RunningApp, str]) -> None:
    running_app, _ = prepared
    async with running_app.http(ADMIN_KEY) as http:
        assert_error(await http.get("/admin/v1/jobs/nope/events"), 404, "job_not_found")
