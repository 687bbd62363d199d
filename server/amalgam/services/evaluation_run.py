"""Measures queued evaluations, one after the other, a few calls at a time; the registry knows all that was measured."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from amalgam.domain.evaluation import Evaluation, EvaluationError, EvaluationItem, Measurement
from amalgam.errors import AmalgamError
from amalgam.errors.evaluations import EvaluationStopped
from amalgam.errors.registry import RegistryUnavailable
from amalgam.registry.evaluations import EvaluationRegistry
from amalgam.services.evaluation_calls import EvaluationCalls
from amalgam.services.weight_search import WeightSearches
from amalgam.telemetry.metrics import Metrics
from amalgam.telemetry.no_metrics import NO_METRICS

logger = logging.getLogger(__name__)

LEASE_S: Final = 30.0
"""A server that is silent for so long does not measure any more."""
_SAVE_PERIOD_S: Final = 1.0
_LOOK_PERIOD_S: Final = 2.0
_MAX_UNSAVED: Final = 256
_ROOM_PERIOD_S: Final = 0.05
_GOODBYE_S: Final = 2.0


class EvaluationRunner:
    """The one who measures, in this process.

    Args:
        registry: of evaluations.
        calls: asks and scores.
        holder: name of this process' leases; never used by another.
        concurrency: calls at a time.
        searches: lay out what sweeps that search for weights try next.
        metrics: told of calls and of ends.
        lease_s: see ``LEASE_S``.
        save_period_s: seconds between two looks at the registry.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        registry: EvaluationRegistry,
        calls: EvaluationCalls,
        holder: str,
        concurrency: int,
        searches: WeightSearches,
        metrics: Metrics = NO_METRICS,
        *,
        lease_s: float = LEASE_S,
        save_period_s: float = _SAVE_PERIOD_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry
        self._calls = calls
        self._holder = holder
        self._concurrency = concurrency
        self._searches = searches
        self._metrics = metrics
        self._lease_s = lease_s
        self._save_period_s = save_period_s
        self._clock = clock
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Something was queued, or cancelled."""
        self._woken.set()

    async def loop(self) -> None:
        """Measure what is queued, and what other servers left behind, for ever."""
        while True:
            self._woken.clear()
            try:
                claimed = await self._registry.claim(self._holder, lease_s=self._lease_s)
                if claimed is not None:
                    await self._run(claimed)
                    continue
            except AmalgamError as error:
                logger.warning("evaluation_claim_failed reason=%s", error)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), _LOOK_PERIOD_S)

    async def _run(self, evaluation: Evaluation) -> None:
        """Measure what is missing; whatever happens, the row says how it ended."""
        unsaved: list[Measurement] = []
        began = self._clock()
        work = asyncio.create_task(self._measure(evaluation, unsaved))
        try:
            while not work.done():
                await self._pause(work)
                with contextlib.suppress(RegistryUnavailable):
                    await self._save(evaluation, unsaved)
            await self._end(evaluation, unsaved, work, began)
        except EvaluationStopped:
            logger.info("evaluation_stopped evaluation=%s", evaluation.id)
        except asyncio.CancelledError:
            work.cancel()
            await self._give_back(evaluation, unsaved)
            raise
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    async def _pause(self, work: "asyncio.Task[None]") -> None:
        """Return when the work ends, when someone calls, or when it is time to save."""
        woken = asyncio.create_task(self._woken.wait())
        try:
            await asyncio.wait({work, woken}, timeout=self._save_period_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            woken.cancel()
            self._woken.clear()

    async def _end(
        self, evaluation: Evaluation, unsaved: list[Measurement], work: "asyncio.Task[None]", began: float
    ) -> None:
        await self._save(evaluation, unsaved)
        failure = work.exception()
        if failure is None:
            await self._registry.finish(evaluation.id, self._holder, "done")
            self._metrics.job_ended(evaluation.kind, "done", {"measure": self._clock() - began})
            return
        if isinstance(failure, ExceptionGroup):
            failure = failure.exceptions[0]
        if not isinstance(failure, AmalgamError):
            logger.error("evaluation_failed evaluation=%s", evaluation.id, exc_info=failure)
        known = (
            failure if isinstance(failure, AmalgamError) else AmalgamError("A fault of the server; its log says why.")
        )
        error = EvaluationError(code=known.code, message=known.message)
        await self._registry.finish(evaluation.id, self._holder, "failed", error)
        self._metrics.job_ended(evaluation.kind, "failed")

    async def _give_back(self, evaluation: Evaluation, unsaved: list[Measurement]) -> None:
        """The server stops: another one, or this one after its start, goes on; as far as the registry listens."""
        try:
            async with asyncio.timeout(_GOODBYE_S):
                await self._save(evaluation, unsaved)
                await self._registry.release(evaluation.id, self._holder)
        except (AmalgamError, TimeoutError) as error:
            logger.warning("evaluation_release_failed evaluation=%s reason=%s", evaluation.id, error)

    async def _save(self, evaluation: Evaluation, unsaved: list[Measurement]) -> None:
        batch = unsaved[:]
        await self._registry.save(evaluation.id, self._holder, batch, lease_s=self._lease_s)
        del unsaved[: len(batch)]

    async def _measure(self, evaluation: Evaluation, unsaved: list[Measurement]) -> None:
        items = await self._registry.items(evaluation.id)
        known = await self._registry.known(evaluation.id)
        search = await self._searches.open(evaluation, items, self._holder)
        if search is None:
            await self._work_through(evaluation, items, _missing(evaluation, items, known), unsaved, unsaved.append)
            return

        def note(one: Measurement) -> None:
            unsaved.append(one)
            search.note(one)

        await self._work_through(search.sweep, items, search.missing(), unsaved, note)
        while await search.extend():
            await self._work_through(search.sweep, items, search.missing(), unsaved, note)

    async def _work_through(
        self,
        evaluation: Evaluation,
        items: tuple[EvaluationItem, ...],
        missing: Iterable[tuple[int, int]],
        unsaved: list[Measurement],
        note: Callable[[Measurement], None],
    ) -> None:
        """Measure all of ``missing``, a few at a time."""
        shared = iter(missing)
        refused: dict[int, str] = {}
        async with asyncio.TaskGroup() as group:
            for _ in range(self._concurrency):
                group.create_task(self._work_off(evaluation, items, shared, unsaved, refused, note))

    async def _work_off(
        self,
        evaluation: Evaluation,
        items: tuple[EvaluationItem, ...],
        missing: Iterator[tuple[int, int]],
        unsaved: list[Measurement],
        refused: dict[int, str],
        note: Callable[[Measurement], None],
    ) -> None:
        """Take from ``missing``, which several share, until nothing is left."""
        for target, index in missing:
            # The registry may be away for a while; what is measured meanwhile has to fit somewhere.
            while len(unsaved) >= _MAX_UNSAVED:
                self.wake()
                await asyncio.sleep(_ROOM_PERIOD_S)
            if target in refused:
                one = Measurement(target=target, item=index, error_code=refused[target])
            else:
                one = await self._calls.measure(evaluation, target, index, items[index])
            of = evaluation.targets[target]
            if one.error_code is not None and not one.served and of.pinned == of.meaning:
                # A blend that cannot be built is not built anew for every item; a weighted alias may do better.
                refused[target] = one.error_code
            self._metrics.evaluation_call(evaluation.kind, refused=one.error_code is not None)
            note(one)


def _missing(
    evaluation: Evaluation, items: tuple[EvaluationItem, ...], known: set[tuple[int, int]]
) -> Iterable[tuple[int, int]]:
    """Target by target, so that a blend is built once and used while it is there."""
    for target in range(len(evaluation.targets)):
        for index in range(len(items)):
            if (target, index) not in known:
                yield target, index
