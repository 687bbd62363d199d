"""What the application tells its metrics: loads, evictions, waits, and how merge jobs end."""

import asyncio
import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from amalgam.domain.messages import JobNews
from amalgam.engine.protocol import LoadableVersion
from amalgam.engine.residency import Residency
from amalgam.engine.token_usage import usage_in_answer, usage_left_on
from amalgam.errors.engine import EngineLoadFailed, SlotsBusy
from amalgam.errors.registry import RegistryUnavailable
from amalgam.services.live_jobs import LiveJobs, live_jobs
from amalgam.services.merges import MergeService
from amalgam.services.worker_reports import WorkerReports
from amalgam.settings import Settings
from amalgam.telemetry import metric_table as table
from amalgam.telemetry.context import RequestContext, enter
from amalgam.telemetry.metrics import Metrics, TokenUsage


def version(number: int) -> LoadableVersion:
    return LoadableVersion(f"a@{number}", number, Path("/nowhere"))


async def nothing(target: LoadableVersion) -> None:
    if target.lora_id == 13:
        raise EngineLoadFailed(target.engine_name)


async def test_loads_evictions_and_refusals_are_counted() -> None:
    metrics = Metrics()
    running_app = Residency(1, nothing, nothing, 1.0, metrics=metrics)
    for number in (1, 2, 2, 1):
        async with running_app.hold(version(number)):
            pass
    with pytest.raises(EngineLoadFailed):
        await _use(running_app, 13)
    assert metrics.distribution(table.ADAPTER_LOAD).count() == 3
    assert metrics.values(table.EVICTIONS).get() == 3
    assert metrics.values(table.LOAD_FAILURES).get() == 1


async def test_waits_are_shown_and_end_also_when_nothing_comes_free() -> None:
    metrics = Metrics()
    running_app = Residency(1, nothing, nothing, 0.1, metrics=metrics)
    async with running_app.hold(version(1)):
        waiter = asyncio.create_task(_use(running_app, 2))
        await asyncio.sleep(0.02)
        assert metrics.values(table.ADAPTER_WAITING).get() == 1
        with pytest.raises(SlotsBusy):
            await waiter
    assert metrics.values(table.ADAPTER_WAITING).get() == 0


async def test_a_request_without_a_place_is_its_adapters() -> None:
    running_app = Residency(1, nothing, nothing, 0.01)
    context = RequestContext("r")

    async def refused() -> None:
        enter(context)
        with pytest.raises(SlotsBusy):
            await _use(running_app, 2)

    async with running_app.hold(version(1)):
        await asyncio.create_task(refused())
    assert context.adapter == "a@2"


async def _use(running_app: Residency, number: int) -> None:
    async with running_app.hold(version(number)):
        return


class Jobs:
    """Stands for the registry of jobs."""

    def __init__(self, states: list[str], down: bool = False) -> None:
        self._states = states
        self._down = down

    async def count_live(self) -> dict[tuple[str, str], int]:
        if self._down:
            raise RegistryUnavailable("select")
        return {("merge", state): self._states.count(state) for state in ("queued", "running", "built")}

    async def cancel(self, job_id: str) -> Any:
        return SimpleNamespace(id=job_id, kind="export")


def merges(jobs: Jobs, metrics: Metrics) -> MergeService:
    unused: Any = None
    return MergeService(unused, jobs, unused, unused, unused, unused, reports(metrics), metrics=metrics)  # type: ignore[arg-type]


def reports(metrics: Metrics) -> WorkerReports:
    feed: Any = SimpleNamespace(changed=lambda job_id: None, look=lambda: None)
    return WorkerReports(feed, metrics)


async def test_live_jobs_of_every_kind_are_counted_and_unknown_without_a_registry() -> None:
    async def sweeps() -> dict[tuple[str, str], int]:
        return {("sweep", "queued"): 3}

    some = merges(Jobs(["queued", "queued", "running"]), Metrics())
    assert await live_jobs(some.count_live, sweeps) == {
        ("merge", "queued"): 2, ("merge", "running"): 1, ("merge", "built"): 0, ("sweep", "queued"): 3,
    }  # fmt: skip
    assert await live_jobs(sweeps, merges(Jobs([], down=True), Metrics()).count_live) is None


async def test_the_last_counts_stay_while_the_registry_is_silent() -> None:
    answers: list[dict[tuple[str, str], int] | None] = [{("sweep", "queued"): 3}, None, {("sweep", "queued"): 0}]

    async def sweeps() -> dict[tuple[str, str], int]:
        answer = answers.pop(0)
        if answer is None:
            raise RegistryUnavailable("it does not answer")
        return answer

    live = LiveJobs(sweeps)
    assert (live.counts, live.is_answered) == (None, False)
    seen = []
    for _ in range(3):
        await live.look()
        seen.append((live.counts, live.is_answered))
    assert seen == [
        ({("sweep", "queued"): 3}, True), ({("sweep", "queued"): 3}, False), ({("sweep", "queued"): 0}, True),
    ]  # fmt: skip


async def test_failed_and_cancelled_jobs_are_counted_once() -> None:
    metrics = Metrics()
    service, worker = merges(Jobs([]), metrics), reports(metrics)
    for state in ("running", "built", "failed", "cancelled"):
        worker.job_changed(JobNews("job", "merge", state, {}))
    worker.job_changed(JobNews("other", "export", "published", {"export": 2.0, "sync": 0.5}))
    await service.cancel("another")
    finished = metrics.values(table.JOBS_FINISHED)
    ends = {
        key: finished.get(key) for key in itertools.product(("merge", "export"), ("published", "failed", "cancelled"))
    }
    assert {key for key, count in ends.items() if count == 1} == {
        ("merge", "failed"), ("export", "published"), ("export", "cancelled"),
    }  # fmt: skip
    assert sum(ends.values()) == 3
    steps = metrics.distribution(table.JOB_STEP)
    assert [steps.count(("export", step)) for step in ("export", "sync", "merge")] == [1, 1, 0]


def test_usage_is_read_where_vllm_leaves_it() -> None:
    left = SimpleNamespace(final_usage_info=SimpleNamespace(prompt_tokens=3, completion_tokens=None))
    assert usage_left_on({"request_metadata": left}) == TokenUsage(3, 0)
    assert usage_left_on({"request_metadata": SimpleNamespace(final_usage_info=None)}) is None
    assert usage_left_on({}) is None
    assert usage_in_answer(b'{"data": [], "usage": {"prompt_tokens": 4, "total_tokens": 4}}') == TokenUsage(4, 0)
    event = b'event: response.completed\ndata: {"response": {"usage": {"input_tokens": 1, "output_tokens": 2}}}\n\n'
    assert usage_in_answer(event) == TokenUsage(1, 2)


@pytest.mark.parametrize(
    "part", [b"", b"{", b"[1]", b'{"usage": null}', b'{"usage": {"prompt_tokens": "x"}}', b"{} {}"]
)
def test_an_answer_without_usage_has_none(part: bytes) -> None:
    assert usage_in_answer(part) is None


@pytest.mark.parametrize(
    ("log_format", "given", "on"),
    [("text", None, False), ("json", None, True), ("text", True, True), ("json", False, False)],
)
def test_the_access_log_follows_the_format_unless_told(log_format: Any, given: bool | None, on: bool) -> None:
    assert Settings(log_format=log_format, access_log=given).logs.access_log_enabled is on
