"""Which versions are in use, by requests and by blends that are being built from them: a deletion waits for both."""

import asyncio
from collections import Counter
from collections.abc import Iterable


class VersionsInUse:
    """Counts users of versions, by the version's id."""

    def __init__(self) -> None:
        self._in_use: Counter[int] = Counter()
        self._released = asyncio.Condition()

    def begin(self, version_ids: Iterable[int]) -> None:
        """Count a user in; not a coroutine, so that a deletion which starts now waits."""
        self._in_use.update(version_ids)

    async def end(self, version_ids: Iterable[int]) -> None:
        """Count a user out and wake who waits, also while the caller is being cancelled."""
        is_free = False
        for version_id in version_ids:
            self._in_use[version_id] -= 1
            if self._in_use[version_id] == 0:
                del self._in_use[version_id]
                is_free = True
        if is_free:
            await asyncio.shield(self._notify())

    async def drained(self, version_id: int) -> None:
        """Return when nobody uses the version."""
        async with self._released:
            await self._released.wait_for(lambda: version_id not in self._in_use)

    @property
    def total(self) -> int:
        """Users counted in, each once for every version it uses."""
        return sum(self._in_use.values())

    async def _notify(self) -> None:
        async with self._released:
            self._released.notify_all()
