"""The real merge process under the real application, killed, cancelled and raced in the middle of an export."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from amalgam.services import worker_link
from tests.support.running_app import ADMIN_KEY, RunningApp, assert_error, push, start_app, write_adapter

VICTIM = Path(__file__).with_name("export_victim.py")
TENSORS = 15
"""Of the tiny base: seven in each of two layers, and the embedding."""


class SteeredApp:
    """An application with a root for exports, whose worker stops where it is told."""

    def __init__(self, running_app: RunningApp, http: httpx.AsyncClient, file: Path) -> None:
        self.running_app, self.http, self._file = running_app, http, file
        self.root = running_app.folder / "exports"
        self._paused = file.with_suffix(".paused")

    def stop_at(self, place: str) -> None:
        self._paused.unlink(missing_ok=True)
        self._file.write_text(place)

    def go_on(self) -> None:
        self._file.unlink(missing_ok=True)

    async def until_paused(self) -> None:
        async with asyncio.timeout(60):
            while not self._paused.exists():
                await asyncio.sleep(0.01)

    async def submit(self, name: str, expression: str = "one") -> str:
        answer = await self.http.post("/admin/v1/exports", json={"name": name, "expression": expression})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["job"]["id"])

    async def ended(self, job_id: str) -> dict[str, Any]:
        await self.running_app.services.merges.wait(job_id, 60)
        return dict((await self.http.get(f"/admin/v1/jobs/{job_id}")).json())

    def kill(self) -> None:
        """Only ever the worker that this very application started."""
        pid = self.running_app.services.worker.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)

    def hidden(self) -> list[str]:
        return sorted(path.name for path in self.root.iterdir() if path.name.startswith("."))


@pytest.fixture(scope="module")
async def steered(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[SteeredApp]:
    folder = tmp_path_factory.mktemp("exports")
    file = folder / "stop"
    with pytest.MonkeyPatch.context() as patch:
        command = (sys.executable, str(VICTIM), str(file))
        patch.setattr(worker_link, "RESTART_PAUSE_S", 0.01)
        async with (
            start_app(folder, worker=command, export_root=folder / "exports") as running_app,
            running_app.http(ADMIN_KEY) as http,
        ):
            for seed, name in enumerate(("one", "two")):
                assert (await push(http, name, write_adapter(folder / name, seed=seed))).status_code == 201
            yield SteeredApp(running_app, http, file)


async def test_killed_in_the_middle_nothing_is_seen_and_the_next_start_writes_it(steered: SteeredApp) -> None:
    steered.stop_at("6")
    job_id = await steered.submit("killed", "one + 0.5*two")
    await steered.until_paused()
    assert len(steered.hidden()) == 1
    assert (await steered.http.get("/admin/v1/exports")).json() == {"data": []}
    steered.kill()
    steered.go_on()
    done = await steered.ended(job_id)
    assert (done["kind"], done["state"], done["attempts"], done["version"]) == ("export", "published", 2, None)
    assert {"queue", "export", "sync"} <= done["timings_s"].keys()
    assert steered.hidden() == []
    made = (await steered.http.get("/admin/v1/exports/killed")).json()
    assert (made["tensor_count"], made["changed_modules"], made["shard_count"]) == (TENSORS, 14, 1)
    assert (steered.root / "killed" / "model.safetensors").stat().st_mode & 0o777 == 0o444
    again = await steered.http.post(
        "/admin/v1/exports", params={"wait_s": 60}, json={"name": "again", "expression": "one + 0.5*two"}
    )
    assert (again.status_code, again.json()["weights_digest"]) == (201, made["weights_digest"])


async def test_killed_between_the_name_and_its_record_it_is_found_and_not_written_twice(steered: SteeredApp) -> None:
    steered.stop_at("named")
    job_id = await steered.submit("named")
    await steered.until_paused()
    weights = steered.root / "named" / "model.safetensors"
    written = weights.stat()
    steered.kill()
    steered.go_on()
    done = await steered.ended(job_id)
    assert (done["state"], done["attempts"]) == ("published", 2)
    assert (weights.stat().st_ino, weights.stat().st_mtime_ns) == (written.st_ino, written.st_mtime_ns)
    # Asked again, it is there; and of another recipe the name is taken.
    same = await steered.http.post("/admin/v1/exports", json={"name": "named", "expression": "1.0*one@1"})
    assert (same.status_code, same.json()["name"]) == (200, "named")
    other = await steered.http.post("/admin/v1/exports", json={"name": "named", "expression": "two"})
    assert_error(other, 409, "name_taken")
    assert weights.stat().st_ino == written.st_ino


@pytest.mark.parametrize("place", ["3", "named"], ids=["while it writes", "as it gets its name"])
async def test_a_cancelled_export_leaves_nothing(steered: SteeredApp, place: str) -> None:
    steered.stop_at(place)
    name = f"unwanted-{place}"
    job_id = await steered.submit(name)
    await steered.until_paused()
    assert (await steered.http.post(f"/admin/v1/jobs/{job_id}:cancel")).json()["state"] == "cancelled"
    steered.go_on()
    async with asyncio.timeout(30):
        while steered.hidden() or (steered.root / name).exists():
            await asyncio.sleep(0.01)
    assert (await steered.http.get(f"/admin/v1/jobs/{job_id}")).json()["state"] == "cancelled"
    assert_error(await steered.http.get(f"/admin/v1/exports/{name}"), 404, "export_not_found")


async def test_a_name_that_was_taken_meanwhile_is_never_overwritten(steered: SteeredApp) -> None:
    steered.stop_at("9")
    job_id = await steered.submit("raced")
    await steered.until_paused()
    (steered.root / "raced").mkdir()
    steered.go_on()
    done = await steered.ended(job_id)
    assert (done["state"], done["error"]["code"]) == ("failed", "name_taken")
    assert list((steered.root / "raced").iterdir()) == []
    assert steered.hidden() == []


async def test_its_progress_and_its_end_are_events(steered: SteeredApp) -> None:
    steered.stop_at("4")
    job_id = await steered.submit("watched", "0.5*two")
    seen: list[tuple[str, int]] = []
    async with asyncio.timeout(60):
        async for event in steered.running_app.services.merges.feed.follow(job_id):
            if event is None:
                continue
            seen.append((event.job.state, event.progress.modules_done if event.progress else 0))
            if event.progress is not None and event.progress.modules_done == 4:
                assert event.progress.modules_total == TENSORS
                steered.go_on()
    assert ("running", 4) in seen
    assert seen[-1][0] == "published"
