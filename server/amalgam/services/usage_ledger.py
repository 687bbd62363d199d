"""The ledger of usage: counted in memory as requests end, written every second, and asked for sums.

Each front end writes rows of its own, and writes what a minute comes to by now and not what has been added: a write
that is repeated, or whose end nobody heard of, changes nothing. A process that is killed loses what it counted since
the last write, which is at most a period.
"""

import asyncio
import logging
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from amalgam.domain.clock import Clock
from amalgam.domain.usage import MINUTE_S, Counts, Spender, UsageLine, UsageQuery
from amalgam.errors import AmalgamError
from amalgam.registry.usage_rows import UsageRegistry, minute_of

logger = logging.getLogger(__name__)

PERIOD_S: Final = 1.0
_SWEEP_S: Final = 3600.0
_DAY_S: Final = 86_400


class UsageLedger:
    """Counts, writes and answers.

    Args:
        rows: where it is written.
        front: this process, by a name that no other has or had.
        clock: the database's; says which minute it is.
        keep_days: rows are kept for so long.
    """

    def __init__(self, rows: UsageRegistry, front: str, clock: Clock, keep_days: int) -> None:
        self._rows = rows
        self._front = front
        self._clock = clock
        self._keep = timedelta(days=keep_days)
        self._counted: dict[tuple[int, Spender], Counts] = {}
        """Of this minute, and what is not written yet of others."""
        self._unwritten: set[tuple[int, Spender]] = set()
        self._from_minute = 0
        """What is earlier was forgotten here, and is not written anew should the clock go back."""
        self._writing = asyncio.Lock()

    def now(self) -> datetime:
        """The moment that usage is counted by."""
        return self._clock()

    def add(self, spender: Spender, counts: Counts) -> None:
        """Count what was used just now."""
        where = (max(minute_of(self._clock()), self._from_minute), spender)
        found = self._counted.get(where)
        if found is None:
            found = self._counted[where] = Counts()
        found.add(counts)
        self._unwritten.add(where)

    async def flush(self) -> None:
        """Write what is not written.

        Raises:
            RegistryUnavailable: it stays in memory.
        """
        async with self._writing:
            written, self._unwritten = self._unwritten, set()
            try:
                if written:
                    await self._rows.put(self._front, {where: self._counted[where] for where in written})
            except BaseException:
                self._unwritten |= written
                raise
            self._forget()

    def _forget(self) -> None:
        """Minutes that are over and written."""
        before = self._from_minute = max(self._from_minute, minute_of(self._clock()) - MINUTE_S)
        for where in [where for where in self._counted if where[0] < before and where not in self._unwritten]:
            del self._counted[where]

    async def lines(self, query: UsageQuery) -> Sequence[UsageLine]:
        """What was used up to now, everything that was counted here included."""
        await self.flush()
        return await self._rows.lines(query)

    async def loop(self, period_s: float = PERIOD_S) -> None:
        """`flush` every ``period_s`` seconds, for ever, and forget what is older than is kept."""
        since_sweep_s = 0.0
        while True:
            await asyncio.sleep(period_s)
            since_sweep_s += period_s
            try:
                await self.flush()
                if since_sweep_s >= _SWEEP_S:
                    since_sweep_s = 0.0
                    await self._rows.remove_before(self._clock() - self._keep)
            except AmalgamError as error:
                logger.warning("usage_not_written rows=%d error=%s", len(self._unwritten), error)

    async def close(self) -> None:
        """Write what is left."""
        try:
            await self.flush()
        except AmalgamError as error:
            logger.error("usage_lost rows=%d error=%s", len(self._unwritten), error)
