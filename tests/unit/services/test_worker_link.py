import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from amalgam.domain.expression import parse_expression
from amalgam.domain.messages import JobNews
from amalgam.errors.jobs import WorkerUnavailable
from amalgam.services import worker_link
from amalgam.services.background_loops import BackgroundLoops
from amalgam.services.worker_link import WorkerLink
from amalgam.telemetry import metric_table as table
from amalgam.telemetry.metrics import Metrics

ECHO = """
import json, sys, os
news = {"type": "job", "kind": "merge", "timings": {}}
print(json.dumps({**news, "job_id": "start", "state": str(os.getpid()), "timings": {"sync": 1}}), flush=True)
for line in sys.stdin:
    print("not json " + "x" * 200_000, flush=True)
    print(json.dumps(["a list"]), flush=True)
    print(json.dumps({"type": "job", "job_id": "woken"}), flush=True)
    print(json.dumps({**news, "job_id": "woken", "state": "x", "more": 1}), flush=True)
    print(json.dumps({**news, "type": "gossip", "job_id": "woken", "state": "x"}), flush=True)
    print(json.dumps({"type": "built", "id": 1, "size_bytes": 1, "rank": 1, "seconds": {}}), flush=True)
    print(json.dumps({**news, "job_id": "woken", "state": os.environ["WORD"]}), flush=True)
"""
WOKEN = JobNews("woken", "merge", "hello", {})
DEAF = (
    "import json, time; "
    "print(json.dumps({'type': 'job', 'job_id': 'start', 'kind': 'merge', 'state': ''}), flush=True); time.sleep(60)"
)


UNREADABLE = 6
"""Lines of `ECHO` for each time it is woken that are no message of the worker's."""
RECIPE = parse_expression("a@1")


def linked(
    command: tuple[str, ...], on_news: Callable[[JobNews], None] = lambda news: None, metrics: Metrics | None = None
) -> WorkerLink:
    given = metrics or Metrics()
    return WorkerLink(
        command,
        {"WORD": "hello"},
        BackgroundLoops(given),
        given,
        on_news=on_news,
        on_progress=lambda *_: None,
        on_end=lambda _: None,
    )


@asynccontextmanager
async def link(program: str, metrics: Metrics | None = None) -> AsyncIterator[tuple[WorkerLink, list[JobNews]]]:
    heard: list[JobNews] = []
    made = linked((sys.executable, "-c", program), heard.append, metrics)
    await made.start()
    try:
        yield made, heard
    finally:
        await made.stop()
        assert not made.alive


async def until(holds: Callable[[], bool], timeout_s: float = 10) -> None:
    async with asyncio.timeout(timeout_s):
        while not holds():
            await asyncio.sleep(0.01)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_link, "RESTART_PAUSE_S", 0.05)
    monkeypatch.setattr(worker_link, "STOP_S", 0.3)
    monkeypatch.setattr(worker_link, "GRACE_S", 0.1)


async def test_a_byte_wakes_the_worker_and_its_words_are_heard() -> None:
    async with link(ECHO) as (worker, heard):
        await until(lambda: bool(heard))
        assert heard == [JobNews("start", "merge", str(worker.pid), {"sync": 1.0})]
        worker.wake()
        await until(lambda: len(heard) == 2)
        assert heard[1] == WOKEN
        worker.wake()
        await until(lambda: len(heard) == 3)


async def test_what_is_no_message_is_left_out_logged_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    metrics = Metrics()
    unknown = metrics.values(table.MESSAGES_UNKNOWN)
    async with link(ECHO, metrics) as (worker, heard):
        await until(lambda: bool(heard))
        assert unknown.get(("merge_worker",)) == 0.0
        worker.wake()
        await until(lambda: len(heard) == 2)
        assert heard[1] == WOKEN
        assert unknown.get(("merge_worker",)) == UNREADABLE
    logged = [record.getMessage() for record in caplog.records if "message_unknown" in record.getMessage()]
    assert len(logged) == UNREADABLE
    assert all("process=merge_worker" in line and "hello" not in line for line in logged)


async def test_a_worker_that_is_killed_is_started_again_and_can_be_woken() -> None:
    async with link(ECHO) as (worker, heard):
        await until(lambda: bool(heard))
        first = worker.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await until(lambda: len(heard) == 2)
        assert worker.restarts == 1
        assert worker.alive
        assert worker.pid not in (first, None)
        worker.wake()
        await until(lambda: len(heard) == 3)
        assert heard[2] == WOKEN


async def test_waking_a_dead_worker_harms_nobody() -> None:
    async with link("import sys; sys.exit(3)") as (worker, heard):
        await until(lambda: worker.restarts >= 2)
        for _ in range(100):
            worker.wake()
            await asyncio.sleep(0.001)
    assert heard == []


async def test_stopping_closes_the_line_and_the_worker_ends_by_itself(tmp_path: Path) -> None:
    said = tmp_path / "said"
    program = ECHO + f"open({str(said)!r}, 'w').write('goodbye')"
    async with link(program) as (worker, heard):
        await until(lambda: bool(heard))
        pid = worker.pid
    assert said.read_text() == "goodbye"
    assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert worker.restarts == 0


async def test_a_worker_that_does_not_listen_is_ended() -> None:
    async with link(DEAF) as (worker, heard):
        await until(lambda: bool(heard))
        pid = worker.pid
    assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize("is_told", [False, True])
async def test_a_worker_that_is_still_loading_is_not_waited_for(is_told: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_link, "STOP_S", 1.0 if is_told else 60.0)
    async with link("import time; time.sleep(90)") as (worker, _):
        await until(lambda: worker.alive)
        if is_told:
            worker.wake()
        began = asyncio.get_running_loop().time()
    took_s = asyncio.get_running_loop().time() - began
    assert 1.0 <= took_s < 30 if is_told else took_s < 30


async def test_stopping_before_anything_started_is_quiet() -> None:
    worker = linked(("true",))
    worker.wake()
    assert not worker.alive
    assert worker.pid is None
    await worker.stop()


async def test_a_listener_that_fails_does_not_lose_the_worker() -> None:
    calls: list[str] = []

    def listener(news: JobNews) -> None:
        calls.append(news.job_id)
        if len(calls) == 1:
            raise RuntimeError("of the listener")

    worker = linked((sys.executable, "-c", ECHO), listener)
    await worker.start()
    try:
        await until(lambda: bool(calls))
        worker.wake()
        await until(lambda: "woken" in calls, 3)
        assert worker.alive
        assert worker.restarts == 0
    finally:
        await worker.stop()


async def test_a_command_that_cannot_be_started_is_tried_again() -> None:
    worker = linked(("/does/not/exist",))
    await worker.start()
    try:
        await until(lambda: worker.restarts >= 2, 3)
        assert not worker.alive
    finally:
        await worker.stop()


async def test_the_first_start_waits_for_its_time() -> None:
    time_has_come = asyncio.Event()
    worker = linked((sys.executable, "-c", ECHO))
    await worker.start(after=time_has_come.wait())
    try:
        await asyncio.sleep(0.2)
        assert not worker.alive
        time_has_come.set()
        await until(lambda: worker.alive, 3)
    finally:
        await worker.stop()


@pytest.mark.parametrize("how", ["wake", "ask"])
async def test_who_wants_the_worker_does_not_wait_for_its_time(how: str) -> None:
    heard: list[JobNews] = []
    never = asyncio.Event()
    worker = linked((sys.executable, "-c", ECHO), heard.append)
    await worker.start(after=never.wait())
    try:
        if how == "wake":
            worker.wake()
        else:
            # It is asked once it runs: what it does not answer in time is the same refusal as ever.
            with pytest.raises(WorkerUnavailable):
                await worker.forecast(RECIPE, 0.5)
        await until(lambda: bool(heard), 3)
    finally:
        await worker.stop()


async def test_a_start_whose_time_fails_to_come_is_made_all_the_same() -> None:
    async def fails() -> None:
        raise OSError("the engine is gone")

    worker = linked((sys.executable, "-c", ECHO))
    await worker.start(after=fails())
    try:
        await until(lambda: worker.alive, 3)
        assert worker.restarts == 0
    finally:
        await worker.stop()


async def test_stopping_a_worker_whose_time_has_not_come() -> None:
    worker = linked((sys.executable, "-c", ECHO))
    await worker.start(after=asyncio.Event().wait())
    await worker.stop()
    assert not worker.alive
    with pytest.raises(WorkerUnavailable):
        async with asyncio.timeout(3):
            await worker.forecast(RECIPE, 1)
