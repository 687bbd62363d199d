"""Requests of targets in experiments: counted in memory as they end, and written every second.

As in the ledger of usage, each front end writes rows of its own, and what they come to by now: a write that is repeated
changes nothing, and a process that is killed loses at most a period.
"""

import asyncio
import logging
from dataclasses import dataclass

from amalgam.errors import AmalgamError
from amalgam.registry.experiments import ExperimentRegistry

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Counted:
    requests: int = 0
    errors: int = 0
    slow: int = 0


class ExperimentCounts:
    """Counts and writes.

    Args:
        rows: where it is written.
        front: this process, by a name that no other has or had.
    """

    def __init__(self, rows: ExperimentRegistry, front: str) -> None:
        self._rows = rows
        self._front = front
        self._counted: dict[tuple[str, str], _Counted] = {}
        self._unwritten: set[tuple[str, str]] = set()
        self._writing = asyncio.Lock()
        self._running: frozenset[str] = frozenset()

    def add(self, experiment: str, target: str, *, is_error: bool, is_slow: bool) -> None:
        """A request ended."""
        where = (experiment, target)
        counted = self._counted.setdefault(where, _Counted())
        counted.requests += 1
        counted.errors += is_error
        counted.slow += is_slow
        self._unwritten.add(where)

    async def flush(self) -> None:
        """Write what is not written.

        Raises:
            RegistryUnavailable: it stays in memory.
        """
        async with self._writing:
            await self._write()

    async def _write(self) -> None:
        written, self._unwritten = self._unwritten, set()
        counted = {where: self._counted[where] for where in written}
        rows = {where: (one.requests, one.errors, one.slow) for where, one in counted.items()}
        try:
            if rows:
                await self._rows.put_counts(self._front, rows)
        except BaseException:
            # What was forgotten meanwhile stays forgotten.
            self._unwritten |= written & self._counted.keys()
            raise

    async def close(self) -> None:
        """Write what is left."""
        try:
            await self.flush()
        except AmalgamError as error:
            logger.error("experiment_counts_lost rows=%d error=%s", len(self._unwritten), error)

    def forget(self, running: frozenset[str]) -> None:
        """Drop the numbers of experiments that ran when this was last called, and do not any more."""
        ended, self._running = self._running - running, running
        for where in [where for where in self._counted if where[0] in ended]:
            del self._counted[where]
            self._unwritten.discard(where)
