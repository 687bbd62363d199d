"""The real merge process under the real application, killed, starved and poisoned in the middle of a merge.

Beside the faults of the list: it stands still, its merge is cancelled, and what is heard of it meanwhile.

| fault | what happens | test |
|---|---|---|
| F26 | out of memory in a merge | `test_a_merge_without_memory_says_so` |
| F27 | the result holds NaN | `test_nan_is_never_published` |
| F28 | the worker is killed at 10, 50 and 90 % | `test_killed_at_10_50_and_90_percent` |
"""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from amalgam.domain.clock import utc_now
from amalgam.services import worker_link
from amalgam.services.retention import Retention
from tests.support.running_app import ADMIN_KEY, RunningApp, assert_error, push, start_app, write_adapter

pytestmark = pytest.mark.alone

VICTIM = Path(__file__).with_name("merge_victim.py")
MODULES = 14
"""Of the tiny base: seven in each of two layers."""


class SteeredApp:
    """An application whose worker does what it is told, and how to tell it."""

    def __init__(self, running_app: RunningApp, http: httpx.AsyncClient, plan: Path) -> None:
        self.running_app, self.http, self._plan = running_app, http, plan
        self.paused = plan.with_suffix(".paused")

    def tell(self, **plan: Any) -> None:
        self.paused.unlink(missing_ok=True)
        self._plan.write_text(json.dumps(plan))

    def go_on(self) -> None:
        self._plan.unlink(missing_ok=True)

    async def until_paused(self) -> None:
        async with asyncio.timeout(60):
            while not self.paused.exists():
                await asyncio.sleep(0.01)

    async def submit(self, name: str, expression: str = "one + 0.5*two") -> str:
        answer = await self.http.post("/admin/v1/merges", json={"name": name, "expression": expression})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["job"]["id"])

    async def job(self, job_id: str) -> dict[str, Any]:
        return dict((await self.http.get(f"/admin/v1/jobs/{job_id}")).json())

    async def ended(self, job_id: str) -> dict[str, Any]:
        await self.running_app.services.merges.wait(job_id, 60)
        return await self.job(job_id)

    def signal(self, number: signal.Signals) -> None:
        """Only ever to the worker that this very application started."""
        pid = self.running_app.services.worker.pid
        assert pid is not None
        os.kill(pid, number)

    async def die_while_asked(self) -> None:
        """Kill the worker under a question: it is answered at once, and plans that need no worker go on."""
        asked = asyncio.create_task(self.http.post("/admin/v1/merges:plan", json=PLAN))
        while not self.running_app.services.worker.unanswered:
            await asyncio.sleep(0)
        self.signal(signal.SIGKILL)
        refused = await asked
        assert_error(refused, 503, "worker_unavailable")
        assert refused.headers["retry-after"] == "1"
        plain = await self.http.post("/admin/v1/merges:plan", params={"diagnostics": "false"}, json=PLAN)
        assert (plain.status_code, plain.json()["forecast"]) == (200, None)

    async def assert_whole(self) -> None:
        """Rows and files agree, nothing is staged, no lease is held."""
        stored = await self.running_app.stored()
        await Retention(stored.versions, stored.files, utc_now).sweep(grace_s=0)
        assert stored.files.digests() == await stored.versions.digests_in_use()
        assert self.running_app.staged() == []
        assert set((await stored.jobs.count_live()).values()) == {0}
        for version in (await stored.versions.load_catalog()).versions:
            stored.files.verify(version.digest)


PLAN = {"name": "planned", "expression": "one - 0.5*two"}


@pytest.fixture(scope="module")
async def steered(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[SteeredApp]:
    folder = tmp_path_factory.mktemp("steered")
    plan = folder / "plan.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker_link, "RESTART_PAUSE_S", 0.01)
        # The worker reads what it inherits.
        patch.setenv("AMALGAM_JOB_LEASE_S", "3")
        patch.setenv("AMALGAM_JOB_MAX_ATTEMPTS", "4")
        async with (
            start_app(folder, worker=(sys.executable, str(VICTIM), str(plan))) as running_app,
            running_app.http(ADMIN_KEY) as http,
        ):
            for seed, name in enumerate(("one", "two")):
                made = await push(http, name, write_adapter(folder / name, seed=seed))
                assert made.status_code == 201, made.text
            yield SteeredApp(running_app, http, plan)


@pytest.fixture(autouse=True)
async def left_whole(steered: SteeredApp) -> AsyncIterator[None]:
    yield
    steered.go_on()
    await steered.assert_whole()


@pytest.mark.slow
async def test_killed_at_10_50_and_90_percent(steered: SteeredApp) -> None:
    """One job, killed three times: each time it is taken up at once, and the fourth start makes one version."""
    restarts = steered.running_app.services.worker.restarts
    job_id = None
    for attempt, done in enumerate((1, 7, 13), start=1):
        steered.tell(pause_at=done)
        if job_id is None:
            job_id = await steered.submit("killed")
        await steered.until_paused()
        running = await steered.job(job_id)
        assert (running["state"], running["attempts"]) == ("running", attempt)
        assert steered.running_app.staged() != []
        assert (await steered.http.get("/admin/v1/adapters/killed")).status_code == 404
        if attempt == 1:
            await steered.die_while_asked()
        else:
            steered.signal(signal.SIGKILL)
    steered.go_on()
    done_job = await steered.ended(job_id or "")
    assert (done_job["state"], done_job["version"], done_job["attempts"]) == ("published", "killed@1", 4)
    assert steered.running_app.services.worker.restarts == restarts + 3
    assert {"queue", "read", "merge", "write", "register", "probe"} <= done_job["timings_s"].keys()
    versions = (await steered.http.get("/admin/v1/adapters/killed")).json()["versions"]
    assert [version["model"] for version in versions] == ["killed@1"]


async def test_a_worker_that_stands_still_is_replaced(steered: SteeredApp) -> None:
    """Its lease runs out, the server ends it, and the next one finishes the job."""
    steered.tell(pause_at=5)
    job_id = await steered.submit("stopped")
    await steered.until_paused()
    first = steered.running_app.services.worker.pid
    steered.signal(signal.SIGSTOP)
    steered.go_on()
    done = await steered.ended(job_id)
    assert (done["state"], done["attempts"]) == ("published", 2)
    assert steered.running_app.services.worker.pid not in (first, None)


async def test_progress_comes_while_it_is_made(steered: SteeredApp) -> None:
    """What the events say of a merge that is under way, and of its end."""
    steered.tell(pause_at=9)
    job_id = await steered.submit("watched", "0.25*one + two")
    seen: list[tuple[str, dict[str, Any]]] = []
    feed = steered.running_app.services.merges.feed
    async with asyncio.timeout(60):
        async for event in feed.follow(job_id):
            if event is None:
                continue
            seen.append((event.kind, {"state": event.job.state, "progress": event.progress}))
            if event.progress is not None and event.progress.modules_done == 9:
                steered.go_on()
    states = [said["state"] for kind, said in seen if kind == "state"]
    assert states[-1] == "published"
    assert states == sorted(states, key=["queued", "running", "built", "publishing", "published"].index)
    counts = [said["progress"].modules_done for kind, said in seen if kind == "progress"]
    assert 9 in counts
    assert counts == sorted(set(counts))
    assert {said["progress"].modules_total for kind, said in seen if kind == "progress"} == {MODULES}
    assert feed.listeners == 0


async def test_a_plan_says_everything_and_writes_nothing_while_a_merge_is_at_work(steered: SteeredApp) -> None:
    steered.tell(pause_at=2)
    job_id = await steered.submit("busy")
    await steered.until_paused()
    files = (await steered.running_app.stored()).files
    staged, digests = steered.running_app.staged(), files.digests()
    asked = [steered.http.post("/admin/v1/merges:plan", json=PLAN) for _ in range(3)]
    plans = [answer.json() for answer in await asyncio.gather(*asked)]
    assert (steered.running_app.staged(), files.digests()) == (staged, digests)
    assert (await steered.job(job_id))["state"] == "running"
    plan = plans[0]
    forecast = plan["forecast"]
    assert (plan["rank"], plan["modules"], forecast["modules_seen"], forecast["is_complete"]) == (4, 14, MODULES, True)
    assert forecast["memory_bytes"] > plan["output_bytes"]
    assert forecast["compute_s"] > 0
    assert forecast["energy_kept"] == pytest.approx(1.0)
    assert forecast["overall"]["inputs"] == ["one@1", "two@1"]
    # Two unrelated inputs: what is left of each is about its own weight.
    assert forecast["overall"]["retention"] == pytest.approx([1.0, -0.5], abs=0.25)
    given, result = forecast["modules"][0]["given"], forecast["modules"][0]["result"]
    assert given["cosine"][0][0] == pytest.approx(1.0)
    assert given["sign_conflict"][0][0] == 0
    assert 0.2 < given["sign_conflict"][0][1] < 0.8
    assert {"retention", "inside", "energy_kept", "spectrum"} <= result.keys()
    steered.go_on()
    assert (await steered.ended(job_id))["state"] == "published"
    assert (await steered.http.get("/admin/v1/adapters/planned")).status_code == 404


async def test_lineage_goes_through_merges_and_deletions_and_can_be_proved(steered: SteeredApp) -> None:
    made = await steered.ended(await steered.submit("inner", "one + 0.625*two"))
    assert made["version"] == "inner@1"
    made = await steered.ended(await steered.submit("outer", "ties(inner, two, 0.25*one; density=0.5)"))
    assert made["version"] == "outer@1"
    path = "/admin/v1/adapters/outer/versions/1"
    rebuilt = (await steered.http.post(f"{path}:rebuild")).json()
    stored = (await steered.http.get(path)).json()["digest"]
    assert (rebuilt["identical"], rebuilt["digest"], rebuilt["rebuilt_digest"]) == (True, stored, stored)
    assert (await steered.http.delete("/admin/v1/adapters/inner")).status_code == 200
    graph = (await steered.http.get(f"{path}/lineage")).json()
    assert [(node["model"], node["deleted"]) for node in graph["nodes"]] == [
        ("outer@1", False),
        ("inner@1", True),
        ("one@1", False),
        ("two@1", False),
    ]
    assert {(edge["input"], edge["output"], edge["weight"]) for edge in graph["edges"]} == {
        ("inner@1", "outer@1", 1.0),
        ("two@1", "outer@1", 1.0),
        ("one@1", "outer@1", 0.25),
        ("one@1", "inner@1", 1.0),
        ("two@1", "inner@1", 0.625),
    }
    assert graph["nodes"][0]["recipe"]["parameters"]["density"] == 0.5
    assert graph["nodes"][2]["recipe"] is None
    stored = await steered.running_app.stored()
    # Of a deleted input the files stay until they are swept; then nothing can be proved any more.
    await Retention(stored.versions, stored.files, utc_now).sweep(grace_s=0)
    assert_error(await steered.http.post(f"{path}:rebuild"), 409, "not_rebuildable")
    assert_error(await steered.http.post("/admin/v1/adapters/one/versions/1:rebuild"), 409, "not_rebuildable")
    assert (await steered.http.get(f"{path}/lineage")).json() == graph
    assert_error(await steered.http.get("/admin/v1/adapters/one/versions/9/lineage"), 404, "version_not_found")


async def test_a_merge_without_memory_says_so(steered: SteeredApp) -> None:
    pid = steered.running_app.services.worker.pid
    steered.tell(exhaust=True)
    job = await steered.ended(await steered.submit("huge"))
    assert (job["state"], job["error"]["code"], job["version"]) == ("failed", "out_of_memory", None)
    assert steered.running_app.services.worker.pid == pid


async def test_a_cancelled_merge_frees_the_worker(steered: SteeredApp) -> None:
    steered.tell(pause_at=3)
    job_id = await steered.submit("unwanted")
    await steered.until_paused()
    answer = await steered.http.post(f"/admin/v1/jobs/{job_id}:cancel")
    assert answer.json()["state"] == "cancelled"
    began = time.monotonic()
    # The same file would stop the next one too, if this one did not leave.
    next_id = await steered.submit("wanted")
    steered.paused.unlink()
    await steered.until_paused()
    assert time.monotonic() - began < 10
    steered.go_on()
    assert (await steered.ended(next_id))["state"] == "published"
    assert (await steered.job(job_id))["state"] == "cancelled"
    assert (await steered.http.get("/admin/v1/adapters/unwanted")).status_code == 404


@pytest.mark.parametrize("poison", [True, "file"], ids=["seen in the result", "seen in the file"])
async def test_nan_is_never_published(steered: SteeredApp, poison: Any) -> None:
    steered.tell(poison=poison)
    job = await steered.ended(await steered.submit("nan"))
    assert (job["state"], job["error"]["code"], job["version"]) == ("failed", "non_finite", None)
    assert (await steered.http.get("/admin/v1/adapters/nan")).status_code == 404
