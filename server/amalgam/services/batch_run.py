"""Answers queued batches while clients leave capacity; the store has every answer, and the registry how far each is.

A server works on several batches at once, on one of each tenant, and a fixed number of requests is shared by all of
them in turn. What a server that is killed has answered stays: another one, or this one after its start, goes on with
the lines that have no answer.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from typing import Final

from amalgam.domain.batch import MAX_ATTEMPTS, Batch, Tally
from amalgam.errors import AmalgamError
from amalgam.errors.batches import BatchInterrupted, BatchStopped
from amalgam.errors.registry import RegistryUnavailable, StoreUnavailable
from amalgam.registry.batches import BatchRegistry
from amalgam.services.batch_check import BatchCheck, Numbered, unanswered
from amalgam.services.batch_end import BatchEnd
from amalgam.services.batch_lines import BatchLine, LineAsker, written_answer
from amalgam.services.spare_capacity import SpareCapacity
from amalgam.store.batch_answers import BatchAnswers, BatchRuns
from amalgam.telemetry.metrics import Metrics
from amalgam.telemetry.no_metrics import NO_METRICS

logger = logging.getLogger(__name__)

LEASE_S: Final = 30.0
"""A server that is silent for so long does not work on a batch any more."""
MAX_RUNNING: Final = 16
"""A server works on so many batches at once."""
_LOOK_PERIOD_S: Final = 2.0
_SAVE_PERIOD_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 60.0
_REST_S: Final = 30.0
"""A batch that this server could not go on with rests for so long."""
_GOODBYE_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Pace:
    """How often a runner looks and says what.

    Attributes:
        lease_s: see `LEASE_S`.
        save_period_s: seconds between two words to the registry about a batch.
        look_period_s: between two looks for new ones.
    """

    lease_s: float = LEASE_S
    save_period_s: float = _SAVE_PERIOD_S
    look_period_s: float = _LOOK_PERIOD_S


_PACE: Final = Pace()


class BatchRunner:
    """The one who answers batches, in this process.

    Args:
        registry: of batches.
        runs: where answers lie until a batch ends.
        check: reads files.
        asker: asks a line.
        end: writes the files of a batch that ends.
        spare: says when a call may begin.
        holder: name of this process' leases; never used by another.
        concurrency: calls at a time, of all batches.
        metrics: told of calls and of ends.
        pace: how often what is done.
    """

    def __init__(
        self,
        registry: BatchRegistry,
        runs: BatchRuns,
        check: BatchCheck,
        asker: LineAsker,
        end: BatchEnd,
        spare: SpareCapacity,
        holder: str,
        concurrency: int,
        metrics: Metrics = NO_METRICS,
        pace: Pace = _PACE,
    ) -> None:
        self._registry = registry
        self._runs = runs
        self._check = check
        self._asker = asker
        self._end = end
        self._spare = spare
        self._holder = holder
        self._concurrency = concurrency
        self._metrics = metrics
        self._pace = pace
        self._places = asyncio.Semaphore(concurrency)
        self._woken = asyncio.Event()
        self._running: dict[str, tuple[str, asyncio.Task[None]]] = {}

    def wake(self) -> None:
        """Something was queued, or cancelled."""
        self._woken.set()

    async def loop(self) -> None:
        """Work on what is queued, and on what other servers left behind, for ever."""
        try:
            while True:
                self._woken.clear()
                try:
                    await self._take()
                except AmalgamError as error:
                    logger.warning("batch_claim_failed reason=%s", error)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._woken.wait(), self._pace.look_period_s)
        finally:
            tasks = [task for _, task in self._running.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _take(self) -> None:
        """Begin with what nobody works on, one batch of a tenant at a time."""
        while len(self._running) < MAX_RUNNING:
            busy = {tenant for tenant, _ in self._running.values()}
            batch = await self._registry.claim(self._holder, lease_s=self._pace.lease_s, busy=busy)
            if batch is None:
                return
            task = asyncio.create_task(self._run(batch), name=f"batch {batch.id}")
            self._running[batch.id] = (batch.tenant, task)
            task.add_done_callback(partial(self._over, batch.id))

    def _over(self, batch_id: str, _: "asyncio.Task[None]") -> None:
        self._running.pop(batch_id, None)
        self.wake()

    async def _run(self, batch: Batch) -> None:
        """Answer what is missing; whatever happens, the row says how it ended, or that it goes on elsewhere."""
        try:
            answers = await asyncio.to_thread(self._runs.begin, batch.id, batch.runs)
        except AmalgamError as error:
            await self._rest(batch, Tally(batch.total, batch.completed, batch.failed), error)
            return
        answers.total = batch.total
        with answers:
            try:
                await self._worked(batch, answers)
            except BatchStopped:
                logger.info("batch_stopped batch=%s", batch.id)
            except (RegistryUnavailable, StoreUnavailable) as error:
                await self._rest(batch, answers.tally, error)
            except asyncio.CancelledError:
                await self._rest(batch, answers.tally, None)
                raise

    async def _worked(self, batch: Batch, answers: BatchAnswers) -> None:
        """Work until every line has an answer, the batch is cancelled, or its time is over; then write its files."""
        work = asyncio.create_task(self._work(batch, answers))
        try:
            while not work.done() and not self._is_over(batch):
                await asyncio.wait({work}, timeout=self._pace.save_period_s)
                with contextlib.suppress(RegistryUnavailable):
                    batch = await self._registry.save(batch.id, self._holder, answers.tally, lease_s=self._pace.lease_s)
        finally:
            work.cancel()
            [outcome] = await asyncio.gather(work, return_exceptions=True)
        is_whole = outcome is None
        failure = None if isinstance(outcome, asyncio.CancelledError) else outcome
        if isinstance(failure, ExceptionGroup):
            failure = failure.exceptions[0]
        async with self._leased(batch, answers):
            ended = await self._end.finish(batch, self._holder, answers, failure, is_whole=is_whole)
        self._metrics.job_ended("batch", ended.status)

    def _is_over(self, batch: Batch) -> bool:
        return batch.status == "cancelling" or batch.expires_at <= self._registry.clock()

    @contextlib.asynccontextmanager
    async def _leased(self, batch: Batch, answers: BatchAnswers) -> AsyncIterator[None]:
        """Extend the lease while files are written, however long that takes."""

        async def extend() -> None:
            while True:
                await asyncio.sleep(self._pace.lease_s / 3)
                with contextlib.suppress(AmalgamError):
                    await self._registry.save(batch.id, self._holder, answers.tally, lease_s=self._pace.lease_s)

        extending = asyncio.create_task(extend())
        try:
            yield
        finally:
            extending.cancel()
            await asyncio.gather(extending, return_exceptions=True)

    async def _rest(self, batch: Batch, tally: Tally, error: AmalgamError | None) -> None:
        """Give the batch back, as far as the registry listens; where an error is the reason, for a while."""
        if error is not None:
            logger.warning("batch_rests batch=%s reason=%s", batch.id, error)
        pause_s = 0.0 if error is None else _REST_S
        try:
            async with asyncio.timeout(_GOODBYE_S):
                await self._registry.release(batch.id, self._holder, tally, pause_s=pause_s)
        except (AmalgamError, TimeoutError) as failed:
            logger.warning("batch_release_failed batch=%s reason=%s", batch.id, failed)

    async def _work(self, batch: Batch, answers: BatchAnswers) -> None:
        if batch.attempts > MAX_ATTEMPTS:
            raise BatchInterrupted(batch.attempts - 1)
        if batch.status == "validating":
            await self._check.check(batch, answers)
            await self._registry.move(batch.id, self._holder, "in_progress", answers.tally)
        queue: asyncio.Queue[Numbered | None] = asyncio.Queue(2 * self._concurrency)
        async with asyncio.TaskGroup() as group:
            for _ in range(self._concurrency):
                group.create_task(self._work_off(batch, queue, answers))
            lines = self._check.lines(batch)
            while block := await lines.block():
                for one in unanswered(block, answers):
                    await queue.put(one)
            for _ in range(self._concurrency):
                await queue.put(None)

    async def _work_off(self, batch: Batch, queue: "asyncio.Queue[Numbered | None]", answers: BatchAnswers) -> None:
        """Take lines from ``queue``, which several share, until there are no more."""
        while (one := await queue.get()) is not None:
            await self._answer(batch, *one, answers)

    async def _answer(self, batch: Batch, number: int, line: BatchLine, answers: BatchAnswers) -> None:
        """Ask until there is an answer that stays; while a line waits for another try it takes no place."""
        while True:
            try:
                async with self._places:
                    await self._spare.wait()
                    answer = await self._asker.ask(batch, line)
            except AmalgamError as error:
                if error.retry_after_s is None:
                    raise
                logger.debug("batch_waits batch=%s reason=%s", batch.id, error)
                await asyncio.sleep(min(max(error.retry_after_s, 0.05), _LONGEST_PAUSE_S))
                continue
            break
        text = written_answer(batch.id, number, line, answer)
        is_answered = answer.status < 400
        await asyncio.to_thread(answers.add, number, text, is_answered=is_answered)
        self._metrics.batch_line(refused=not is_answered)
