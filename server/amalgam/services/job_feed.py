"""What becomes of a job, as it happens: states from the registry, progress from the worker in between."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import Final, Literal

from amalgam.domain.job import FINAL_STATES, Job, JobProgress
from amalgam.errors import Unavailable
from amalgam.registry.jobs import JobRegistry

HEARTBEAT_S: Final = 10.0
"""A feed is silent at most so long; proxies cut what is silent for longer than they have patience."""

LOOK_S: Final = 1.0
"""Another replica's worker says nothing to us: the registry is looked at as often as this."""


@dataclass(frozen=True, slots=True)
class JobEvent:
    """One thing that happened to a job."""

    kind: Literal["state", "progress"]
    id: str
    """It says where the job stands; equal ids, equal standing."""
    job: Job
    progress: JobProgress | None


@dataclass(slots=True, eq=False)
class _Listener:
    told: asyncio.Event = field(default_factory=asyncio.Event)
    is_stale: bool = True
    """It tells whether the registry is to be read again."""


class JobFeed:
    """Tells any number of listeners; keeps nothing for those that left."""

    def __init__(self, jobs: JobRegistry, clock: Callable[[], float] = time.monotonic) -> None:
        self._jobs = jobs
        self._clock = clock
        self._listeners: dict[str, set[_Listener]] = {}
        self._progress: dict[str, JobProgress] = {}
        self._is_closed = False

    @property
    def listeners(self) -> int:
        """How many listen right now."""
        return sum(len(each) for each in self._listeners.values())

    def hear_progress(self, job_id: str, progress: JobProgress) -> None:
        """How far the worker says it is; kept only while somebody listens."""
        known = self._progress.get(job_id)
        if job_id in self._listeners and (known is None or _place(progress) > _place(known)):
            self._progress[job_id] = progress
            self._wake(job_id, is_stale=False)

    def changed(self, job_id: str) -> None:
        """The job's row is another one than before."""
        self._wake(job_id, is_stale=True)

    def look(self) -> None:
        """Any row may be another one than before."""
        for job_id in self._listeners:
            self._wake(job_id, is_stale=True)

    def close(self) -> None:
        """End every feed: the server stops."""
        self._is_closed = True
        self.look()

    def _wake(self, job_id: str, *, is_stale: bool) -> None:
        for listener in self._listeners.get(job_id, ()):
            listener.is_stale |= is_stale
            listener.told.set()

    async def follow(self, job_id: str, last_id: str | None = None) -> AsyncGenerator[JobEvent | None, None]:
        """The job as it stands, then every change until it is final; None where nothing happened for `HEARTBEAT_S`.

        While the registry does not answer nothing happens. Close the iterator, or its listener stays.

        Args:
            job_id: Of the job.
            last_id: Of the last event that the listener had: the first one is left out where it is the same.

        Raises:
            JobNotFound: no such job.
        """
        listener = _Listener()
        self._listeners.setdefault(job_id, set()).add(listener)
        try:
            async for event in self._follow(job_id, listener, last_id):
                yield event
        finally:
            self._listeners[job_id].discard(listener)
            if not self._listeners[job_id]:
                del self._listeners[job_id]
                self._progress.pop(job_id, None)

    async def _follow(
        self, job_id: str, listener: _Listener, last_id: str | None
    ) -> AsyncGenerator[JobEvent | None, None]:
        job: Job | None = None
        said_at = looked_at = self._clock()
        while not self._is_closed:
            listener.told.clear()
            if listener.is_stale or self._clock() - looked_at >= LOOK_S:
                listener.is_stale, looked_at = False, self._clock()
                try:
                    job = await self._jobs.get(job_id)
                except Unavailable:
                    # Looked for again in a moment; the listener need not know.
                    listener.is_stale = job is None
            if job is not None:
                event = self._standing(job, last_id)
                if _is_news(event.id, last_id):
                    last_id, said_at = event.id, self._clock()
                    yield event
                if job.state in FINAL_STATES:
                    return
            if self._clock() - said_at >= HEARTBEAT_S:
                said_at = self._clock()
                yield None
            try:
                await asyncio.wait_for(listener.told.wait(), LOOK_S)
            except TimeoutError:
                continue

    def _standing(self, job: Job, last_id: str | None) -> JobEvent:
        """Where the job is; of two messages on its progress the later one."""
        stage = f"{job.attempts}.{job.state}"
        progress = None
        if job.state == "running":
            heard = self._progress.get(job.id)
            progress = JobProgress.of(job)
            if heard is not None and heard.attempt == job.attempts and heard.modules_done > progress.modules_done:
                progress = heard
        done = progress.modules_done if progress is not None else 0
        is_same_stage = last_id is not None and last_id.startswith(f"{stage}.")
        return JobEvent("progress" if is_same_stage else "state", f"{stage}.{done}", job, progress)


def _place(progress: JobProgress) -> tuple[int, int]:
    return progress.attempt, progress.modules_done


def _is_news(event_id: str, last_id: str | None) -> bool:
    """Whether the job stands elsewhere than at ``last_id``: in another state, or farther in the same."""
    stage, _, done = event_id.rpartition(".")
    last_stage, _, last_done = (last_id or "").rpartition(".")
    return stage != last_stage or not last_done.isdecimal() or int(done) > int(last_done[:18])
