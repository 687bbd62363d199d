"""Every background loop of the real application, each ended once by an error that nobody expects.

The group says which loops there are, so a new one fails here until its collaborator is named in `COLLABORATORS`.
"""

import asyncio
import inspect
import logging
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from amalgam.domain.serving_profile import ServingProfile
from amalgam.registry.adapters import AdapterRegistry
from amalgam.registry.batches import BatchRegistry
from amalgam.registry.blend_names import BlendNameRegistry
from amalgam.registry.evaluations import EvaluationRegistry
from amalgam.registry.files import FileRegistry
from amalgam.registry.fit_jobs import FitJobRegistry
from amalgam.registry.idempotency import IdempotencyRegistry
from amalgam.registry.jobs import JobRegistry
from amalgam.registry.stored_bytes import StoredBytesRegistry
from amalgam.services import background_loops
from amalgam.services.answer_book import AnswerBook
from amalgam.services.catalog import Catalog
from amalgam.services.child_process import ChildProcess
from amalgam.services.experiments import ExperimentService
from amalgam.services.key_directory import KeyDirectory
from amalgam.services.limits import Limiter
from amalgam.services.pins import Pins
from amalgam.services.publish import Publisher
from amalgam.services.shadows import Shadows
from amalgam.services.usage_ledger import UsageLedger
from amalgam.telemetry.series import Distribution
from tests.support.running_app import ADMIN_KEY, API_KEY, RunningApp, start_app

COLLABORATORS: dict[str, tuple[type, str]] = {
    "publishing": (Publisher, "publish_built"),
    "retention": (AdapterRegistry, "digests_in_use"),
    "idempotency": (IdempotencyRegistry, "remove_older"),
    "evaluations": (EvaluationRegistry, "claim"),
    "batches": (BatchRegistry, "claim"),
    "files": (FileRegistry, "forget_expired"),
    "fits": (FitJobRegistry, "waiting"),
    "live_jobs": (JobRegistry, "count_live"),
    "stored_bytes": (StoredBytesRegistry, "totals"),
    "loop_watch": (Distribution, "observe"),
    "catalog": (Catalog, "refresh"),
    "pins": (Pins, "agree"),
    "blend_names": (BlendNameRegistry, "forget_older"),
    "keys": (KeyDirectory, "refresh"),
    "keys_used": (KeyDirectory, "note_used"),
    "limits": (Limiter, "beat"),
    "usage": (UsageLedger, "flush"),
    "answers": (AnswerBook, "flush"),
    "experiments": (ExperimentService, "look"),
    "shadows": (Shadows, "work"),
    "merge_worker": (ChildProcess, "listen"),
    "blend_process": (ChildProcess, "listen"),
    "template_process": (ChildProcess, "listen"),
}
"""Of each loop, a method that it calls soon after its start, if it waits for that method, or again and again."""


UNDER_TEST: ContextVar[object] = ContextVar("UNDER_TEST")
"""The fault of the application whose tasks run in this context; those of other tests' applications have none."""


class Unforeseen(Exception):
    """Not of the error tree."""


@dataclass
class Fault:
    """What ends one loop, as often as it is started, from when it is due until it is over.

    It is not due before the application is open, and not over before somebody has seen what it does.
    """

    loop: str
    due: asyncio.Event = field(default_factory=asyncio.Event)
    is_over: bool = False
    strikes: int = 0

    def before(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """``original``, which raises where ``loop`` calls it once the fault is due."""

        def is_here() -> bool:
            task = asyncio.current_task()
            is_ours = UNDER_TEST.get(None) is self
            return is_ours and not self.is_over and task is not None and task.get_name() == self.loop

        def strike() -> None:
            self.strikes += 1
            raise Unforeseen(f"in {self.loop}")

        async def awaited(*args: Any, **kwargs: Any) -> Any:
            if is_here():
                await self.due.wait()
                strike()
            return await original(*args, **kwargs)

        def called(*args: Any, **kwargs: Any) -> Any:
            if self.due.is_set() and is_here():
                strike()
            return original(*args, **kwargs)

        return awaited if inspect.iscoroutinefunction(original) else called


@asynccontextmanager
async def app_whose(
    loop: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[RunningApp, Fault]]:
    """An open application in which ``loop``'s collaborator raises whenever that loop calls it, until that is over."""
    owner, name = COLLABORATORS[loop]
    fault = Fault(loop)
    monkeypatch.setattr(owner, name, fault.before(getattr(owner, name)))
    monkeypatch.setattr(background_loops, "PAUSE_S", 0.2)
    monkeypatch.setattr(background_loops, "MAX_PAUSE_S", 0.4)
    monkeypatch.setattr(background_loops, "SETTLED_S", 1.0)
    # Every task that the application starts inherits it.
    UNDER_TEST.set(fault)
    async with start_app(tmp_path) as running_app:
        fault.due.set()
        # The process for templates is started with the first of them.
        profile = ServingProfile(chat_template="{{ messages[0].content }}")
        first = asyncio.create_task(running_app.services.profiles.check(profile))
        yield running_app, fault
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
    assert fault.strikes


async def until(holds: Callable[[], bool], timeout_s: float = 20) -> None:
    async with asyncio.timeout(timeout_s):
        while not holds():
            await asyncio.sleep(0.01)


async def test_the_loops_of_the_application_are_all_tried_here(tmp_path: Path) -> None:
    async with start_app(tmp_path) as running_app:
        assert set(running_app.services.loops.names) == set(COLLABORATORS)


def failures_of(loop: str, page: str) -> float:
    """How often the loop has ended, by a page of metrics."""
    [failures] = re.findall(rf'amalgam_loop_failures_total{{loop="{loop}"}} (\S+)', page)
    return float(failures)


@pytest.mark.parametrize("loop", COLLABORATORS)
async def test_a_loop_that_ends_by_an_error_is_told_and_comes_back(
    loop: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        async with app_whose(loop, tmp_path, monkeypatch) as (running_app, fault), running_app.http(ADMIN_KEY) as http:
            loops = running_app.services.loops
            await until(lambda: loops.down == (loop,))
            ready = await http.get("/readyz")
            assert (ready.status_code, ready.json()) == (503, {"status": "loops_down", "loops": [loop]})
            assert ready.headers["retry-after"] == "1"
            page = (await http.get("/metrics")).text
            assert f'amalgam_loop_up{{loop="{loop}"}} 0.0' in page
            assert 1 <= failures_of(loop, page) <= fault.strikes
            async with running_app.http(API_KEY) as client:
                answer = await client.post(
                    "/v1/chat/completions", json={"model": "tiny", "messages": [{"role": "user", "content": "x"}]}
                )
            assert answer.status_code == 200, "serving goes on"
            fault.is_over = True
            await until(lambda: loops.down == ())
            assert (await http.get("/readyz")).json() == {"status": "ready"}
            page = (await http.get("/metrics")).text
            assert f'amalgam_loop_up{{loop="{loop}"}} 1.0' in page
            assert loop in loops.names
    told = [record for record in caplog.records if record.getMessage().startswith("loop_failed")]
    # What does its work in several tasks is struck in each of them, and ends once.
    assert len(told) == failures_of(loop, page) <= fault.strikes
    failed = told[0]
    assert failed.getMessage().startswith(f"loop_failed loop={loop} ")
    assert failed.exc_info is not None
    assert isinstance(failed.exc_info[1], Unforeseen)
