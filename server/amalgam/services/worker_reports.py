"""What merge workers report, and whoever waits for it: the end of a step, progress, the end of a worker."""

import asyncio

from amalgam.domain.job import JobProgress
from amalgam.domain.messages import JobNews
from amalgam.services.job_feed import JobFeed
from amalgam.telemetry.metrics import Metrics


class WorkerReports:
    """Takes reports from the line to the worker; the publishing loop waits for them here.

    Args:
        feed: told what concerns those who follow a job.
        metrics: told of jobs that ended.
    """

    def __init__(self, feed: JobFeed, metrics: Metrics) -> None:
        self.feed = feed
        self._metrics = metrics
        self._is_new = asyncio.Event()
        self._ended: set[str] = set()

    def job_changed(self, news: JobNews) -> None:
        """A job's row changed. The registry says how."""
        if news.state in ("failed", "published"):
            # Of exports the worker says both; what it merged is published by the server.
            self._metrics.job_ended(news.kind, news.state, news.timings)
        self.feed.changed(news.job_id)
        self._is_new.set()

    def job_progressed(self, job_id: str, progress: JobProgress) -> None:
        """A job is so far."""
        self.feed.hear_progress(job_id, progress)

    def worker_ended(self, name: str) -> None:
        """A worker of ours is gone: what it held is free at once, not only when its lease ends."""
        self._ended.add(name)
        self._is_new.set()

    @property
    def ended_workers(self) -> tuple[str, ...]:
        """Workers that are gone and whose jobs are not free yet."""
        return tuple(self._ended)

    def freed(self, name: str) -> None:
        """What the worker ``name`` held is free."""
        self._ended.discard(name)

    def expect(self) -> None:
        """Have `wait` return for what is reported after this call."""
        self._is_new.clear()

    async def wait(self, timeout_s: float) -> None:
        """Return when something was reported since `expect`, or after ``timeout_s`` seconds."""
        try:
            await asyncio.wait_for(self._is_new.wait(), timeout_s)
        except TimeoutError:
            return
