"""What the merge process decides by itself: which error a failure is, and when it gives up on its own build."""

import asyncio
import os
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from amalgam import worker
from amalgam.domain.clock import utc_now
from amalgam.domain.job import Job
from amalgam.errors.jobs import LeaseLost
from amalgam.errors.merging import NonFinite
from amalgam.errors.registry import RegistryUnavailable
from amalgam.worker import MergeWorker, Watch, is_out_of_memory

JOB = Job(
    id="job-1",
    kind="merge",
    name="mix",
    recipe={},
    recipe_digest="a" * 64,
    set_default=True,
    state="running",
    attempts=1,
    fencing_token=1,
    created_at=utc_now(),
    updated_at=utc_now(),
)


class Jobs:
    """Answers heartbeats with what it was given, the last for ever."""

    def __init__(self, *answers: Exception | None) -> None:
        self._answers = list(answers)
        self.beats: list[Any] = []

    async def heartbeat(self, job_id: str, token: int, **said: Any) -> None:
        self.beats.append(said["progress"])
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if answer is not None:
            raise answer


class Ended(BaseException):
    """Stands for the end of the process."""


async def keep(jobs: Jobs, watch: Watch, until: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: Any = SimpleNamespace(job_lease_s=0.03, job_stall_s=0.5)
    unused: Any = None
    keeper = MergeWorker("w", settings, unused, jobs, unused)  # type: ignore[arg-type]

    def leave(code: int) -> None:
        raise Ended(code)

    monkeypatch.setattr(os, "_exit", leave)
    task = asyncio.create_task(keeper._keep_lease(JOB, watch))
    try:
        async with asyncio.timeout(5):
            while not until() and not task.done():
                await asyncio.sleep(0.005)
        if task.done():
            task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_build_that_stands_still_ends_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for stopped in (False, True):
        watch = Watch()
        if stopped:
            watch.stop.set()  # cancelled, and deaf to it
        began = time.monotonic()
        with pytest.raises(Ended, match=str(worker._STALLED)):
            await keep(Jobs(None), watch, lambda: False, monkeypatch)
        assert time.monotonic() - began >= 0.5


async def test_a_build_that_asks_whether_to_stop_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    watch, jobs, began = Watch(), Jobs(None), time.monotonic()
    watch.done, watch.total = 3, 14

    def much_later() -> bool:
        assert not watch.stopped()
        return time.monotonic() - began > 0.8

    await keep(jobs, watch, much_later, monkeypatch)
    assert jobs.beats[-1] == {"modules_done": 3, "modules_total": 14}


async def test_an_outage_of_the_registry_stops_no_build_and_a_lost_lease_does(monkeypatch: pytest.MonkeyPatch) -> None:
    watch, jobs = Watch(), Jobs(RegistryUnavailable("locked"), RegistryUnavailable("locked"), LeaseLost("job-1"))
    await keep(jobs, watch, watch.stop.is_set, monkeypatch)
    assert len(jobs.beats) == 3
    assert watch.stopped()


def test_memory_that_ran_out_has_a_code_of_its_own() -> None:
    with pytest.raises(RuntimeError) as on_cpu:
        torch.empty(1 << 60, dtype=torch.uint8)
    for error in (on_cpu.value, MemoryError(), torch.OutOfMemoryError("CUDA")):
        assert worker._failure(error).code == "out_of_memory"
    assert not is_out_of_memory(RuntimeError("shape"))
    assert worker._failure(RuntimeError("secret")).code == "internal_error"
    assert worker._failure(NonFinite("The result", "q")).code == "non_finite"
