"""Copies of requests for shadows: asked on spare capacity, counted, and thrown away. No client waits for one."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from amalgam.domain.tenant import BUILT_IN_TENANT
from amalgam.domain.usage import Counts, Spender
from amalgam.engine.protocol import Endpoint
from amalgam.errors import AmalgamError
from amalgam.services.catalog import Catalog
from amalgam.services.evaluation_calls import Ask
from amalgam.services.experiment_counts import ExperimentCounts
from amalgam.services.inference import Inference
from amalgam.services.spare_capacity import SpareCapacity
from amalgam.services.usage_ledger import UsageLedger
from amalgam.telemetry import metric_table as table
from amalgam.telemetry.context import RequestContext, current, enter, note_adapter
from amalgam.telemetry.metrics import Metrics
from amalgam.telemetry.no_metrics import NO_METRICS
from amalgam.telemetry.request_watch import GENERATING

logger = logging.getLogger(__name__)

SHADOWS: Final = "shadows"
"""Their new blends are counted together, and are not those of any key. It is also the endpoint in the ledger of usage,
and the name of the loop and of the tasks that it is."""
LONGEST_S: Final = 600.0
"""A copy that is not answered by then has failed."""
_FAILED: Final = 500
_OF_STREAMS: Final = frozenset({"stream", "stream_options"})


@dataclass(frozen=True, slots=True)
class _Copy:
    experiment: str
    slow_ms: int | None
    alias: str
    target: str
    endpoint: Endpoint
    body: Mapping[str, Any]


class Shadows:
    """Takes copies and asks them.

    Args:
        catalog: which experiment an alias carries.
        inference: holds targets.
        ask: the engine.
        spare: says when a copy may begin.
        counts: of the experiment.
        usage: the ledger; copies are the operator's, and no tenant pays for them.
        concurrency: copies at a time.
        waiting: copies that may wait; further ones are dropped.
        metrics: told of every copy.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        catalog: Catalog,
        inference: Inference,
        ask: Ask,
        spare: SpareCapacity,
        counts: ExperimentCounts,
        usage: UsageLedger,
        concurrency: int,
        waiting: int,
        metrics: Metrics = NO_METRICS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._catalog = catalog
        self._inference = inference
        self._ask = ask
        self._spare = spare
        self._counts = counts
        self._usage = usage
        self._concurrency = concurrency
        self._waiting: asyncio.Queue[_Copy] = asyncio.Queue(waiting)
        self._metrics = metrics
        self._clock = clock

    def copy(self, endpoint: Endpoint, body: Mapping[str, Any]) -> None:
        """Take a copy of the current request, where its alias has shadows; never waits.

        Args:
            endpoint: that is asked.
            body: checked, as the client sent it.
        """
        context = current()
        if context is None or context.experiment is None or endpoint not in GENERATING:
            return
        alias = self._catalog.snapshot.aliases.get(context.alias or "")
        if alias is None or alias.experiment is None:
            return
        kept = {name: value for name, value in body.items() if name not in _OF_STREAMS}
        for target in alias.experiment.shadows:
            copy = _Copy(alias.experiment.id, alias.experiment.slow_ms, alias.name, target, endpoint, kept)
            try:
                self._waiting.put_nowait(copy)
            except asyncio.QueueFull:
                self._metrics.values(table.SHADOWS).add(("dropped",))

    async def loop(self) -> None:
        """Ask copies as they come, for ever."""
        working = [asyncio.create_task(self.work(), name=SHADOWS) for _ in range(self._concurrency)]
        try:
            await asyncio.gather(*working)
        finally:
            for one in working:
                one.cancel()
            await asyncio.gather(*working, return_exceptions=True)

    async def work(self) -> None:
        """Ask copies one after the other, for ever; `loop` runs several at a time."""
        while True:
            copy = await self._waiting.get()
            await self._spare.wait()
            await self._answered(copy)

    async def _answered(self, copy: _Copy) -> None:
        context, began, is_error = RequestContext(copy.experiment), self._clock(), False
        enter(context)
        try:
            async with asyncio.timeout(LONGEST_S), self._inference.admit(copy.target, client=SHADOWS) as held:
                note_adapter(held.engine_name)
                began = self._clock()
                await self._ask(copy.endpoint, {**copy.body, "model": held.engine_name})
        except AmalgamError as error:
            # As of targets: what is refused for what the client sent is no error of the model.
            is_error = error.status >= _FAILED
            logger.info("shadow_failed alias=%s target=%s error=%s", copy.alias, copy.target, error)
        except TimeoutError:
            is_error = True
            logger.info("shadow_failed alias=%s target=%s error=not_answered_in_time", copy.alias, copy.target)
        except Exception:
            # A shadow that breaks is counted, and takes neither the other copies nor readiness with it.
            is_error = True
            logger.exception("shadow_failed alias=%s target=%s", copy.alias, copy.target)
        took_ms = (self._clock() - began) * 1e3
        is_slow = copy.slow_ms is not None and took_ms > copy.slow_ms
        self._counts.add(copy.experiment, copy.target, is_error=is_error, is_slow=is_slow)
        self._metrics.values(table.SHADOWS).add(("failed" if is_error else "answered",))
        tokens = context.tokens
        if context.adapter is not None or tokens.total:
            spender = Spender(BUILT_IN_TENANT, "", copy.alias, context.adapter or "", SHADOWS)
            counts = Counts(1, tokens.prompt, tokens.cached, tokens.completion, context.blend_builds)
            self._usage.add(spender, counts)
