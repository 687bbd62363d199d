"""Blends in memory: built once however many ask, counted while in use, the least recently used go for others.

A blend in use, or being built, never goes. What is set aside for a blend that is being built counts as taken.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Final

from amalgam.domain.blend import blend_name
from amalgam.engine.protocol import Engine, LoadableVersion
from amalgam.errors import AmalgamError
from amalgam.errors.blends import BlendFailed, BlendMemoryBusy
from amalgam.store.blend_folders import BlendFolders
from amalgam.telemetry.context import note_adapter
from amalgam.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

FIRST_LORA_ID: Final = 1 << 30
"""vLLM 0.32 takes ids from 1 (`LoRARequest` refuses less, 0 means no adapter) and keeps them in 32 bits with a sign in
one of its model runners (``LoraState.lora_ids``), in 64 in the other. Versions have the low half of that range: their
ids are row numbers from 1 on. Blends have the upper half, counted up for as long as this process lives, over every
restart of its engine, so that no id is ever two blends': a thousand million of them."""


@dataclass(frozen=True, slots=True)
class Build:
    """How one blend is built."""

    run: Callable[[LoadableVersion], Awaitable[int]]
    """Writes the blend into its folder; its size in bytes."""
    release: Callable[[], Awaitable[None]]
    """Called once at the end, also where it never came to ``run``: lets go of the inputs."""


@dataclass(slots=True)
class _Entry:
    version: LoadableVersion
    size_bytes: int = 0
    held: int = 0
    leaving: bool = False
    built: asyncio.Event = field(default_factory=asyncio.Event)
    failed: BaseException | None = None


class BlendTier:
    """At most ``budget_bytes`` of blends.

    Args:
        folders: where they lie.
        engine: told to let go of what goes.
        budget_bytes: for all of them.
        wait_s: longest wait for room.
        clock: monotonic seconds.
        metrics: told of builds, evictions and sizes.
    """

    def __init__(
        self,
        folders: BlendFolders,
        engine: Engine,
        budget_bytes: int,
        wait_s: float,
        clock: Callable[[], float] = time.monotonic,
        metrics: Metrics | None = None,
    ) -> None:
        self._folders = folders
        self._engine = engine
        self.budget_bytes = budget_bytes
        self._wait_s = wait_s
        self._clock = clock
        self._metrics = metrics or Metrics()
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._ids = count(FIRST_LORA_ID)
        self._changed = asyncio.Condition()
        self._building: set[asyncio.Task[None]] = set()

    def name_of(self, digest: str) -> str:
        """What the blend answers under: twelve digits, and all of them where another blend here has the same twelve."""
        found = self._entries.get(digest)
        if found is not None:
            return found.version.engine_name
        short = blend_name(digest)
        taken = any(entry.version.engine_name == short for entry in self._entries.values())
        return blend_name(digest, len(digest)) if taken else short

    @property
    def used_bytes(self) -> int:
        """Of all blends, with what is set aside."""
        return sum(entry.size_bytes for entry in self._entries.values())

    @asynccontextmanager
    async def hold(self, digest: str, reserve_bytes: int, begin: Callable[[], Build]) -> AsyncIterator[LoadableVersion]:
        """The blend of the recipe ``digest``, in memory and counted while the block runs; at first use it is built.

        Args:
            digest: of the recipe.
            reserve_bytes: no smaller than what will be written; at most the budget.
            begin: called before anything is awaited where the blend has to be built, and nowhere else; may refuse.

        Raises:
            BlendMemoryBusy: no room came free in time. Besides, what ``begin`` and the build raise.
        """
        entry = await self._acquire(digest, reserve_bytes, begin)
        try:
            yield entry.version
        finally:
            await self._release(entry)

    async def _acquire(self, digest: str, reserve_bytes: int, begin: Callable[[], Build]) -> _Entry:
        while True:
            entry = self._entries.get(digest)
            if entry is not None and entry.leaving:
                await self._gone(digest, entry)
                continue
            if entry is None:
                entry = self._enter(digest, reserve_bytes, begin())
            entry.held += 1
            self._entries.move_to_end(digest)
            # A request that leaves while it waits is counted too, as a blend's.
            note_adapter(entry.version.engine_name)
            try:
                await entry.built.wait()
            except BaseException:
                await self._release(entry)
                raise
            if entry.failed is not None:
                await self._release(entry)
                raise entry.failed
            return entry

    async def _gone(self, digest: str, entry: _Entry) -> None:
        """Return when ``entry``, which is leaving, has left."""
        try:
            async with self._changed, asyncio.timeout(self._wait_s):
                await self._changed.wait_for(lambda: self._entries.get(digest) is not entry)
        except TimeoutError:
            raise BlendMemoryBusy(self._wait_s) from None

    def _enter(self, digest: str, reserve_bytes: int, build: Build) -> _Entry:
        """A new entry and the task that builds it, which goes on for others when the first caller leaves."""
        name, lora_id = self.name_of(digest), next(self._ids)
        # A folder of its own for every build: vLLM's prefix cache knows weights by name and path.
        entry = _Entry(LoadableVersion(name, lora_id, self._folders.place(f"{digest[:12]}-{lora_id}")))
        self._entries[digest] = entry
        task = asyncio.create_task(self._run_build(digest, entry, reserve_bytes, build), name=f"build {name}")
        self._building.add(task)
        task.add_done_callback(self._building.discard)
        return entry

    async def _run_build(self, digest: str, entry: _Entry, reserve_bytes: int, build: Build) -> None:
        began = self._clock()
        try:
            await self._make_room(entry, reserve_bytes)
            entry.size_bytes = await build.run(entry.version)
        except BaseException as error:
            entry.failed = error if isinstance(error, AmalgamError) else BlendFailed()
            self._entries.pop(digest, None)
            self._metrics.blend_built(None)
            await asyncio.shield(asyncio.to_thread(self._folders.remove, entry.version.folder))
            if not isinstance(error, Exception):
                raise
            if not isinstance(error, AmalgamError):
                logger.exception("%s was not built", entry.version.engine_name)
        else:
            self._metrics.blend_built(self._clock() - began)
        finally:
            entry.built.set()
            await build.release()
            await self._announce()

    async def _make_room(self, entry: _Entry, needed_bytes: int) -> None:
        """Set ``needed_bytes`` aside for ``entry``; others go for it, or it waits."""
        deadline = self._clock() + self._wait_s
        while not self._fits(needed_bytes):
            victim = self._oldest_free()
            if victim is not None:
                await self._evict(*victim)
                continue
            try:
                async with self._changed, asyncio.timeout(max(deadline - self._clock(), 0)):
                    await self._changed.wait_for(lambda: self._fits(needed_bytes) or self._oldest_free() is not None)
            except TimeoutError:
                raise BlendMemoryBusy(self._wait_s) from None
        entry.size_bytes = needed_bytes

    def _fits(self, needed_bytes: int) -> bool:
        return self.used_bytes + needed_bytes <= self.budget_bytes

    def _oldest_free(self) -> tuple[str, _Entry] | None:
        usable = (
            (digest, entry)
            for digest, entry in self._entries.items()
            if entry.held == 0 and entry.built.is_set() and not entry.leaving
        )
        return next(usable, None)

    async def _evict(self, digest: str, entry: _Entry) -> None:
        """First the engine lets go, then the files; meanwhile whoever asks for the blend waits to build it again."""
        entry.leaving = True
        try:
            await self._engine.unload(entry.version.lora_id)
        except Exception:
            # An engine that dies has let go as well.
            logger.exception("the engine did not let go of %s", entry.version.engine_name)
        finally:
            await asyncio.shield(asyncio.to_thread(self._folders.remove, entry.version.folder))
            self._entries.pop(digest, None)
            self._metrics.blend_evicted()
            await self._announce()

    async def _release(self, entry: _Entry) -> None:
        entry.held -= 1
        # Shielded: a caller that is being cancelled must still wake those who wait for room.
        await asyncio.shield(self._announce())

    async def _announce(self) -> None:
        self._metrics.blends_kept(len(self._entries), self.used_bytes)
        async with self._changed:
            self._changed.notify_all()

    async def close(self) -> None:
        """End what is being built."""
        for task in self._building:
            task.cancel()
        await asyncio.gather(*self._building, return_exceptions=True)
