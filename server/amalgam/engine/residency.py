"""Which versions are in the engine, who uses them, and which may go: counting, single flight and eviction.

Knows nothing of vLLM: it is given the two calls that load and free.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from amalgam.engine.protocol import LoadableVersion, Resident
from amalgam.errors.engine import SlotsBusy, StillLoading
from amalgam.telemetry.context import note_adapter
from amalgam.telemetry.metrics import Metrics
from amalgam.telemetry.no_metrics import NO_METRICS


@dataclass(slots=True)
class _Entry:
    version: LoadableVersion
    held: int = 0
    pinned: bool = False
    load_s: float = 0.0
    loaded: asyncio.Event = field(default_factory=asyncio.Event)
    failed: BaseException | None = None


class Residency:
    """At most ``capacity`` versions in the engine; a version in use is never freed.

    Args:
        capacity: versions kept, the engine's own cache size, so that the engine never evicts by itself.
        load: loads a version into the engine.
        free: takes it out again.
        load_timeout_s: longest wait for a place, and for a load, which goes on all the same.
        clock: monotonic seconds.
        metrics: told of loads, evictions and waits.
    """

    def __init__(
        self,
        capacity: int,
        load: Callable[[LoadableVersion], Awaitable[None]],
        free: Callable[[LoadableVersion], Awaitable[None]],
        load_timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
        metrics: Metrics = NO_METRICS,
    ) -> None:
        self._capacity = capacity
        self._load = load
        self._free = free
        self._load_timeout_s = load_timeout_s
        self._clock = clock
        self._metrics = metrics
        self._entries: OrderedDict[int, _Entry] = OrderedDict()
        self._changed = asyncio.Condition()
        self.evictions = 0

    @asynccontextmanager
    async def hold(self, version: LoadableVersion) -> AsyncIterator[None]:
        """Resident and counted while the block runs; concurrent first uses load once."""
        # Said before the wait, so that a request that finds no place is counted as its adapter's.
        note_adapter(version.engine_name)
        entry = await self._acquire(version)
        try:
            yield
        finally:
            await self._release(entry)

    async def _acquire(self, version: LoadableVersion) -> _Entry:
        """Count the caller in before anything is awaited on the entry, so that it cannot be evicted meanwhile."""
        while True:
            entry = self._entries.get(version.lora_id)
            if entry is None:
                entry = await self._place(version)
                if entry is None:
                    continue
                # A task of its own: the load goes on for others when the first caller leaves.
                task = asyncio.create_task(self._run_load(entry), name=f"load {version.engine_name}")
                task.add_done_callback(_observe)
            entry.held += 1
            self._entries.move_to_end(version.lora_id)
            try:
                async with asyncio.timeout(self._load_timeout_s):
                    await entry.loaded.wait()
            except TimeoutError:
                await self._release(entry)
                raise StillLoading(version.engine_name, self._load_timeout_s) from None
            except BaseException:
                await self._release(entry)
                raise
            if entry.failed is not None:
                await self._release(entry)
                raise entry.failed
            return entry

    async def _place(self, version: LoadableVersion) -> _Entry | None:
        """Evict if need be, and enter ``version``; None where another caller entered it first."""
        deadline = self._clock() + self._load_timeout_s
        async with self._changed:
            while version.lora_id not in self._entries and len(self._entries) >= self._capacity:
                victim = self._oldest_free()
                if victim is not None:
                    await self._drop(victim)
                    self.evictions += 1
                    self._metrics.adapter_evicted()
                    continue
                left_s = deadline - self._clock()
                try:
                    with self._metrics.adapter_waiting():
                        await asyncio.wait_for(self._changed.wait(), timeout=max(left_s, 0))
                except TimeoutError:
                    raise SlotsBusy(version.engine_name, self._load_timeout_s) from None
            if version.lora_id in self._entries:
                return None
            entry = self._entries[version.lora_id] = _Entry(version)
            return entry

    def _oldest_free(self) -> _Entry | None:
        usable = (e for e in self._entries.values() if e.held == 0 and not e.pinned and e.loaded.is_set())
        return next(usable, None)

    async def _run_load(self, entry: _Entry) -> None:
        began = self._clock()
        try:
            await self._load(entry.version)
            entry.load_s = self._clock() - began
            self._metrics.adapter_loaded(entry.load_s)
        except BaseException as error:
            entry.failed = error
            # After a restart the place may be another load's of the same version.
            if self._entries.get(entry.version.lora_id) is entry:
                del self._entries[entry.version.lora_id]
            self._metrics.adapter_loaded(None)
            if not isinstance(error, Exception):
                raise
        finally:
            entry.loaded.set()
            async with self._changed:
                self._changed.notify_all()

    async def _release(self, entry: _Entry) -> None:
        entry.held -= 1
        # Shielded: a caller that is being cancelled must still wake those who wait for a place.
        await asyncio.shield(self._notify())

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _drop(self, entry: _Entry) -> None:
        """Free one entry; it leaves the table first, so that nobody can begin to use it while it is freed."""
        self._entries.pop(entry.version.lora_id, None)
        await self._free(entry.version)

    async def unload(self, lora_id: int) -> bool:
        """Wait until nobody holds the version, then free it; False where it is not resident."""
        async with self._changed:
            while (entry := self._entries.get(lora_id)) is not None:
                if entry.held == 0 and entry.loaded.is_set():
                    await self._drop(entry)
                    self._changed.notify_all()
                    return True
                await self._changed.wait()
        return False

    def pin(self, lora_id: int, *, pinned: bool) -> bool:
        """Exempt a version from eviction, or end that; False where it is not resident."""
        entry = self._entries.get(lora_id)
        if entry is None:
            return False
        entry.pinned = pinned
        return True

    def pinned(self) -> tuple[LoadableVersion, ...]:
        """The pinned versions, to be loaded again after a restart."""
        return tuple(entry.version for entry in self._entries.values() if entry.pinned)

    @property
    def held(self) -> int:
        """Requests that hold a version right now."""
        return sum(entry.held for entry in self._entries.values())

    def residents(self) -> tuple[Resident, ...]:
        """A snapshot, least recently used first."""
        return tuple(
            Resident(e.version.engine_name, e.version.lora_id, e.held, e.pinned, e.load_s, e.version.digest)
            for e in self._entries.values()
            if e.loaded.is_set()
        )

    def forget_all(self) -> None:
        """The engine died: nothing is resident any more. Running holders release entries that nobody finds."""
        self._entries.clear()


def _observe(task: asyncio.Task[None]) -> None:
    """Read the task's outcome, which its entry carries to those who wait, so that asyncio does not report it too."""
    if not task.cancelled():
        task.exception()
