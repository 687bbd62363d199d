"""Answers that clients may judge: remembered as they end, written every second, and forgotten when they are old.

Nothing of a request waits for it. Where more answers end than are written, those beyond a bound are dropped and
counted: a client that judges one of them is told that it is not known. A process that is killed loses what it has not
written, which is at most a period.
"""

import asyncio
import logging
from datetime import datetime, timedelta
from typing import Final

from amalgam.domain.clock import Clock
from amalgam.domain.feedback import Answer
from amalgam.errors import AmalgamError
from amalgam.registry.feedback import FeedbackRegistry
from amalgam.telemetry import metric_table as table
from amalgam.telemetry.metrics import Metrics
from amalgam.telemetry.no_metrics import NO_METRICS

logger = logging.getLogger(__name__)

PERIOD_S: Final = 1.0
MOST_UNWRITTEN: Final = 20_000
_AT_ONCE: Final = 500
"""One statement has so many answers: SQLite bounds its parameters."""
_SWEEP_S: Final = 60.0


class AnswerBook:
    """Remembers, writes and finds.

    Args:
        rows: where it is written.
        clock: the database's.
        keep_hours: answers may be judged for so long; 0: none is kept.
        feedback_keep_days: what was said is kept for so long.
        aliases_only: whether answers to requests that named no alias are left out.
        metrics: told of what is dropped.
    """

    def __init__(
        self,
        rows: FeedbackRegistry,
        clock: Clock,
        keep_hours: int,
        feedback_keep_days: int,
        *,
        aliases_only: bool,
        metrics: Metrics = NO_METRICS,
    ) -> None:
        self._rows = rows
        self._clock = clock
        self.keep_hours = keep_hours
        self._keep_feedback = timedelta(days=feedback_keep_days)
        self.aliases_only = aliases_only
        self._metrics = metrics
        self._unwritten: list[tuple[Answer, datetime]] = []
        self._writing = asyncio.Lock()

    def add(self, answer: Answer) -> None:
        """Remember an answer that ended just now."""
        if not self.keep_hours or (self.aliases_only and not answer.alias):
            return
        if len(self._unwritten) >= MOST_UNWRITTEN:
            self._metrics.values(table.ANSWERS_DROPPED).add()
            return
        self._unwritten.append((answer, self._clock()))

    async def flush(self) -> None:
        """Write what is not written.

        Raises:
            RegistryUnavailable: it stays in memory.
        """
        async with self._writing:
            while self._unwritten:
                batch = self._unwritten[:_AT_ONCE]
                await self._rows.put_answers(batch)
                del self._unwritten[: len(batch)]

    async def find(self, tenant: str, key_id: str, answer_id: str) -> Answer | None:
        """The answer that a key got and may judge now; one that ended here a moment ago is there too."""
        await self.flush()
        return await self._rows.find(tenant, key_id, answer_id)

    async def loop(self, period_s: float = PERIOD_S) -> None:
        """`flush` every ``period_s`` seconds, for ever, and forget what is old."""
        since_sweep_s = 0.0
        while True:
            await asyncio.sleep(period_s)
            since_sweep_s += period_s
            try:
                await self.flush()
                if since_sweep_s >= _SWEEP_S:
                    since_sweep_s = 0.0
                    await self.sweep()
            except AmalgamError as error:
                logger.warning("answers_not_written rows=%d error=%s", len(self._unwritten), error)

    async def sweep(self) -> None:
        """Forget what is older than it is kept."""
        now = self._clock()
        moments = (now - timedelta(hours=self.keep_hours), now - self._keep_feedback)
        is_left = True
        while is_left:
            is_left = await self._rows.remove_before(*moments) > 0

    async def close(self) -> None:
        """Write what is left."""
        try:
            await self.flush()
        except AmalgamError as error:
            logger.error("answers_lost rows=%d error=%s", len(self._unwritten), error)
