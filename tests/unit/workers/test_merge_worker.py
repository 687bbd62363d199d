"""What the merge process makes of trouble: a registry that is away, a lease that is lost, a build that stands still.

Registry, store and merges are real. Faults come in where a build begins and where the registry answers.
"""

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from amalgam.domain.adapter import AdapterVersion
from amalgam.domain.expression import parse_expression
from amalgam.domain.fit_forecast import ReadingNeeds
from amalgam.domain.job import Job, JobRequest
from amalgam.domain.messages import FROM_WORKER, EnergyAnswer, EnergyQuestion, NeedsAnswer, NeedsQuestion, Refusal
from amalgam.domain.version import VersionDraft
from amalgam.errors.jobs import LeaseLost
from amalgam.errors.merge_run import MergeCancelled
from amalgam.errors.merging import NonFinite
from amalgam.errors.registry import RegistryUnavailable
from amalgam.merge.build import build_adapter
from amalgam.merge.methods import complete
from amalgam.registry.adapters import AdapterRegistry
from amalgam.registry.database import Database, sqlite_url
from amalgam.registry.jobs import JobRegistry
from amalgam.settings import Settings
from amalgam.store.adapter_store import AdapterStore
from amalgam.workers import merge_build
from amalgam.workers.lease import STALLED, Leases
from amalgam.workers.merge_build import MergeBuilder
from amalgam.workers.merge_worker import MergeWorker
from tests.registry_fixtures import FakeClock, draft
from tests.support.running_app import write_adapter

LEASE_S = 1.2
"""A lease is renewed three times while it lasts."""
AWAY = RegistryUnavailable("it does not answer")


class Jobs(JobRegistry):
    """The real registry of jobs, and what stands before its answers.

    Attributes:
        heartbeats: raised by renewals, one after another, the last for ever.
    """

    heartbeats: list[Exception | None]

    def __init__(self, database: Database, clock: FakeClock) -> None:
        ids = itertools.count(1)
        super().__init__(database, clock, lambda: f"job-{next(ids)}")
        self.heartbeats = [None]
        self.progress: list[Any] = []

    async def heartbeat(self, job_id: str, token: int, **said: Any) -> Job:
        self.progress.append(said.get("progress"))
        trouble = self.heartbeats.pop(0) if len(self.heartbeats) > 1 else self.heartbeats[0]
        if trouble is not None:
            raise trouble
        return await super().heartbeat(job_id, token, **said)


@dataclass
class Queue:
    """One queued merge of two adapters, and the worker that is to build it."""

    jobs: Jobs
    worker: MergeWorker
    clock: FakeClock
    exits: list[int] = field(default_factory=list)
    """How the process would have ended."""

    async def run(self) -> Job:
        assert await asyncio.wait_for(self.worker.run_one(), 30)
        return await self.jobs.get("job-1")


@pytest.fixture
def settings(request: pytest.FixtureRequest) -> Settings:
    return Settings(job_lease_s=LEASE_S, base_model=getattr(request, "param", None))


@pytest.fixture
async def queue(tmp_path: Path, settings: Settings) -> AsyncIterator[Queue]:
    store, clock = AdapterStore.open(tmp_path / "store"), FakeClock()
    recipe = complete(parse_expression("one@1 + 0.5*two@1"))
    async with Database.open(sqlite_url(tmp_path / "registry.db")) as database:
        registry, jobs = AdapterRegistry(database, clock), Jobs(database, clock)
        for seed, name in enumerate(("one", "two")):
            source = write_adapter(tmp_path / name, seed=seed)
            with store.stage() as staging:
                for path in source.iterdir():
                    staging.receive(path.name, [path.read_bytes()])
                digest = store.publish(staging).digest
            await registry.create_version(draft(name, digest=digest, rank=2))
        await jobs.submit(JobRequest("merge", "mix", recipe.model_dump(mode="json"), recipe.digest()))
        exits: list[int] = []
        leases = Leases(jobs, LEASE_S, 1.5, exits.append)
        worker = MergeWorker("w", settings, registry, jobs, MergeBuilder(settings, store), leases)
        yield Queue(jobs, worker, clock, exits)


def builds(monkeypatch: pytest.MonkeyPatch, how: Callable[[Callable[[], bool]], None]) -> None:
    """Have a build do ``how`` first, which is given what tells it to stop."""

    def build(*args: Any, is_cancelled: Callable[[], bool], **named: Any) -> Any:
        how(is_cancelled)
        return build_adapter(*args, is_cancelled=is_cancelled, **named)

    monkeypatch.setattr(merge_build, "build_adapter", build)


async def test_an_undisturbed_merge_is_built_and_its_modules_are_told(
    queue: Queue, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (await queue.run()).state == "built"
    assert said_states(capsys) == ["running", "built"]
    assert not await queue.worker.run_one(), "there was one job"


@pytest.mark.parametrize("is_cancelled", [False, True], ids=["", "cancelled, and deaf to it"])
async def test_a_build_that_stands_still_ends_its_process(
    is_cancelled: bool, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    stood_s: list[float] = []

    def stand_still(stopped: Callable[[], bool]) -> None:
        began = time.monotonic()
        while not queue.exits and time.monotonic() - began < 20:
            time.sleep(0.01)
        stood_s.append(time.monotonic() - began)

    builds(monkeypatch, stand_still)
    if is_cancelled:
        queue.jobs.heartbeats = [LeaseLost("job-1")]
    await queue.run()
    assert queue.exits[0] == STALLED
    assert stood_s[0] >= 1.5 - 0.1


async def test_a_build_that_asks_whether_to_stop_is_alive(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    def work_for_long(stopped: Callable[[], bool]) -> None:
        began = time.monotonic()
        while time.monotonic() - began < 2.5:
            assert not stopped()
            time.sleep(0.01)

    builds(monkeypatch, work_for_long)
    assert (await queue.run()).state == "built"
    assert queue.exits == []
    assert queue.jobs.progress[0] == {"modules_done": 0, "modules_total": 0}


async def test_an_outage_of_the_registry_stops_no_build_and_a_lost_lease_does(
    queue: Queue, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def until_stopped(stopped: Callable[[], bool]) -> None:
        began = time.monotonic()
        while time.monotonic() - began < 20:
            if stopped():
                raise MergeCancelled
            time.sleep(0.01)

    builds(monkeypatch, until_stopped)
    queue.jobs.heartbeats = [AWAY, AWAY, LeaseLost("job-1")]
    job = await queue.run()
    assert len(queue.jobs.progress) == 3
    assert job.state == "running", "whoever has it now decides"
    assert said_states(capsys) == ["running", "cancelled"]


def without_memory(stopped: Callable[[], bool]) -> None:
    torch.empty(1 << 60, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("trouble", "code"),
    [
        (MemoryError(), "out_of_memory"),
        (torch.OutOfMemoryError("CUDA"), "out_of_memory"),
        (RuntimeError("shape"), "internal_error"),
        (NonFinite("The result", "q"), "non_finite"),
        (without_memory, "out_of_memory"),
    ],
    ids=["Python", "the device", "a fault of ours", "NaN", "torch"],
)
async def test_a_failure_has_the_code_of_its_reason_and_keeps_words_of_ours(
    trouble: Any, code: str, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(stopped: Callable[[], bool]) -> None:
        if callable(trouble):
            trouble(stopped)
        raise trouble

    builds(monkeypatch, fail)
    job = await queue.run()
    assert job.state == "failed"
    assert job.error is not None
    assert job.error.code == code
    assert "shape" not in job.error.message


@dataclass
class Outage:
    """The registry is away each time that a result is told to it, in one of four ways."""

    queue: Queue
    way: str
    told: int = 0

    async def finish_built(self, *args: Any) -> AdapterVersion:
        self.told += 1
        jobs = self.queue.jobs
        if self.way == "recorded and not heard of" and self.told == 1:
            await JobRegistry.finish_built(jobs, *args)
            raise RegistryUnavailable.in_doubt("cut")
        if self.way == "away for longer than the lease" or self.told == 1:
            raise AWAY
        if self.way == "taken by another":
            self.queue.clock.advance(60)
            assert await jobs.claim("another", lease_s=30, max_attempts=3) is not None
        return await JobRegistry.finish_built(jobs, *args)


@pytest.mark.parametrize(
    ("way", "state", "says"),
    [
        ("back in time", "built", ["built"]),
        ("recorded and not heard of", "built", ["built"]),
        ("taken by another", "running", []),
        ("away for longer than the lease", "running", []),
    ],
)
async def test_a_result_that_is_ready_while_the_registry_is_away_is_told_until_the_lease_ends(
    way: str,
    state: str,
    says: list[str],
    queue: Queue,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    outage = Outage(queue, way)
    monkeypatch.setattr(queue.jobs, "finish_built", outage.finish_built)
    queue.jobs.heartbeats = [AWAY]  # nothing renews the lease either
    assert (await queue.run()).state == state, "an outage fails no job"
    assert outage.told >= 2
    assert said_states(capsys) == ["running", *says]


def said_states(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What the server heard of the job's states."""
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return [line["state"] for line in lines if "state" in line]


@pytest.mark.parametrize("asked", [None, "probe", "fit"])
async def test_a_merge_that_nothing_measures_says_so(queue: Queue, asked: str | None) -> None:
    job = (await queue.jobs.get("job-1")).model_copy(update={} if asked is None else {asked: {}})
    found = merge_build.notes(job, parse_expression("one@1 + 0.5*two@1"))
    assert [text.partition(":")[0] for text in found] == ([] if asked else ["kept_unmeasured"])


async def test_what_is_said_of_a_merge_is_in_its_version_and_in_its_lineage(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    drafts: list[VersionDraft] = []
    finish = queue.jobs.finish_built

    async def noted(job_id: str, token: int, made: VersionDraft, *rest: Any) -> Any:
        drafts.append(made)
        return await finish(job_id, token, made, *rest)

    monkeypatch.setattr(queue.jobs, "finish_built", noted)
    assert (await queue.run()).state == "built"
    (made,) = drafts
    assert [text.partition(":")[0] for text in made.warnings] == ["kept_unmeasured"]
    assert made.lineage is not None
    assert made.lineage["warnings"] == list(made.warnings)


@pytest.mark.parametrize("settings", [Path("/base")], indirect=True)
async def test_the_worker_says_what_it_needs_to_read_prompts(
    queue: Queue, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Any] = []
    needs = ReadingNeeds(memory_bytes=9, free_bytes=5, device="cpu", dtype="float32", threads=2)

    def found(*given: Any) -> ReadingNeeds:
        asked.append(given)
        return needs

    monkeypatch.setattr(merge_build, "reading_needs", found)
    await queue.worker.answer(NeedsQuestion(id=4, budget_s=5))
    assert FROM_WORKER.read(capsys.readouterr().out.encode()) == NeedsAnswer(id=4, needs=needs)
    assert asked == [(Path("/base"), "cpu")]


ASKED = EnergyQuestion(id=8, adapters=("two@1", "one@1"), prompts=("a", "b"), budget_s=5)


@pytest.mark.parametrize("settings", [Settings(base_model=Path("/base"))])
async def test_a_question_of_energies_reads_the_prompts_with_the_base_model_and_the_stored_factors(
    queue: Queue, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Any] = []

    def energies(reading: Any, factors: Any, prompts: Any, is_over: Callable[[], bool]) -> list[list[float]]:
        asked.append((reading, {name: sorted(modules) for name, modules in factors.items()}, prompts, is_over()))
        return [[1.0, 2.0], [3.0, 4.0]]

    monkeypatch.setattr(merge_build, "BaseReading", lambda folder: folder)
    monkeypatch.setattr(merge_build, "energies", energies)
    await queue.worker.answer(ASKED)
    ((reading, modules, prompts, is_over),) = asked
    assert (reading, prompts, is_over) == (Path("/base"), ("a", "b"), False)
    assert list(modules) == ["two@1", "one@1"], "columns are in the order of the question"
    assert modules["one@1"] == modules["two@1"] != []
    answer = FROM_WORKER.read(capsys.readouterr().out.encode())
    assert answer == EnergyAnswer(id=8, energies=((1.0, 2.0), (3.0, 4.0)))
    await queue.worker.answer(ASKED.model_copy(update={"budget_s": -1.0}))
    assert asked[1][3], "the time that is allowed is over"


async def test_without_a_base_model_energies_are_refused(queue: Queue, capsys: pytest.CaptureFixture[str]) -> None:
    await queue.worker.answer(ASKED)
    answer = FROM_WORKER.read(capsys.readouterr().out.encode())
    assert isinstance(answer, Refusal)
    assert (answer.id, answer.error.code, answer.error.status) == (8, "prompts_unread", 422)
    assert "no folder of the base model" in answer.error.message
