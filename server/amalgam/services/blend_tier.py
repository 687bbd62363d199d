"""Blends in memory: built once however many ask, counted while in use, the least recently used go for others.

A blend in use, or being built, never goes. What is set aside for a blend that is being built counts as taken. A blend
is its last user's: where memory is needed, the key that holds the most of it loses its own, and while several keys have
blends, those of one key that cannot go take at most half of the memory.
"""

import asyncio
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Set
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from amalgam.domain.blend import blend_name
from amalgam.domain.blend_plan import BlendPlan
from amalgam.engine.protocol import Engine, LoadableVersion
from amalgam.errors import AmalgamError
from amalgam.errors.blends import BlendFailed, BlendMemoryBusy
from amalgam.store.blend_folders import BlendFolders
from amalgam.telemetry.context import note_adapter
from amalgam.telemetry.metrics import Metrics
from amalgam.telemetry.no_metrics import NO_METRICS

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Build:
    """How one blend is built."""

    run: Callable[[LoadableVersion], Awaitable[int]]
    """It writes the blend into its folder, and gives its size in bytes."""
    release: Callable[[], Awaitable[None]]
    """It is called once at the end, also where it never came to ``run``: it lets go of the inputs."""
    plan: Callable[[], BlendPlan]
    """It gives the same for an engine that builds it itself."""
    inputs: frozenset[int]
    """It has the ids of the versions that it is built from."""


@dataclass(slots=True)
class _Entry:
    version: LoadableVersion
    inputs: frozenset[int]
    owner: str = ""
    """This key used it last."""
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
        wait_s: longest wait for memory.
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
        metrics: Metrics = NO_METRICS,
    ) -> None:
        self._folders = folders
        self._engine = engine
        self.budget_bytes = budget_bytes
        self._wait_s = wait_s
        self._clock = clock
        self._metrics = metrics
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
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
        """The bytes of all blends, with what is set aside."""
        return sum(entry.size_bytes for entry in self._entries.values())

    def has(self, digest: str) -> bool:
        """Whether the blend of the recipe ``digest`` is here, or is being built, and stays."""
        entry = self._entries.get(digest)
        return entry is not None and not entry.leaving

    @asynccontextmanager
    async def hold(
        self, digest: str, reserve_bytes: int, begin: Callable[[], Build], client: str = ""
    ) -> AsyncIterator[LoadableVersion]:
        """The blend of the recipe ``digest``, in memory and counted while the block runs; at first use it is built.

        Args:
            digest: of the recipe.
            reserve_bytes: no smaller than what will be written; at most the budget.
            begin: called before anything is awaited where the blend has to be built, and nowhere else; may refuse.
            client: whose memory it takes.

        Raises:
            BlendMemoryBusy: no memory came free in time. Besides, what ``begin`` and the build raise.
        """
        entry = await self._acquire(digest, reserve_bytes, begin, client)
        try:
            yield entry.version
        finally:
            await self._release(entry)

    async def _acquire(self, digest: str, reserve_bytes: int, begin: Callable[[], Build], client: str) -> _Entry:
        while True:
            entry = self._entries.get(digest)
            if entry is not None and entry.leaving:
                await self._gone(digest, entry)
                continue
            if entry is None:
                entry = self._enter(digest, reserve_bytes, begin(), client)
            entry.held += 1
            entry.owner = client
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

    def _enter(self, digest: str, reserve_bytes: int, build: Build, client: str) -> _Entry:
        """A new entry and the task that builds it, which goes on for others when the first caller leaves."""
        name, lora_id = self.name_of(digest), self._engine.new_blend_id()
        # A folder of its own for every build: vLLM's prefix cache knows weights by name and path.
        place = LoadableVersion(name, lora_id, self._folders.place(f"{digest[:12]}-{lora_id}"))
        entry = _Entry(place, build.inputs, client)
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
                logger.exception("blend_failed blend=%s", entry.version.engine_name)
        else:
            self._metrics.blend_built(self._clock() - began)
        finally:
            entry.built.set()
            await build.release()
            await self._announce()

    async def _make_room(self, entry: _Entry, needed_bytes: int) -> None:
        """Set ``needed_bytes`` aside for ``entry``; others go for it, or it waits."""
        deadline = self._clock() + self._wait_s
        while not self._may_have(entry, needed_bytes):
            victim = self._victim(entry, needed_bytes)
            if victim is not None:
                await self._remove(*victim)
                self._metrics.blend_evicted()
                continue
            try:
                async with self._changed, asyncio.timeout(max(deadline - self._clock(), 0)):
                    await self._changed.wait_for(
                        lambda: self._may_have(entry, needed_bytes) or self._victim(entry, needed_bytes) is not None
                    )
            except TimeoutError:
                raise BlendMemoryBusy(self._wait_s) from None
        entry.size_bytes = needed_bytes

    def _may_have(self, entry: _Entry, needed_bytes: int) -> bool:
        return self._in_share(entry, needed_bytes) and self.used_bytes + needed_bytes <= self.budget_bytes

    def _in_share(self, entry: _Entry, needed_bytes: int) -> bool:
        """Whether the key's blends that cannot go leave half of the memory to others, where there are others."""
        stuck = sum(
            other.size_bytes
            for other in self._entries.values()
            if other.owner == entry.owner and (other.held > 0 or not other.built.is_set())
        )
        is_alone = all(other.owner == entry.owner for other in self._entries.values())
        return is_alone or stuck == 0 or stuck + needed_bytes <= self.budget_bytes // 2

    def _victim(self, entry: _Entry, needed_bytes: int) -> tuple[str, _Entry] | None:
        """The blend not used for longest, of the key with the most, what is to come counted; None: wait."""
        if not self._in_share(entry, needed_bytes):
            return None
        sizes = Counter({entry.owner: needed_bytes})
        for other in self._entries.values():
            sizes[other.owner] += other.size_bytes
        free = [
            (digest, other)
            for digest, other in self._entries.items()
            if other.held == 0 and other.built.is_set() and not other.leaving
        ]
        # The first of equals: entries stand in the order of their use.
        return max(free, key=lambda one: sizes[one[1].owner], default=None)

    def retire(self, versions: Set[int]) -> None:
        """Have blends of deleted versions leave when their last users have: nobody can ask for them any more."""
        for digest, entry in self._entries.items():
            if entry.inputs & versions:
                task = asyncio.create_task(self._retire(digest, entry), name=f"retire {entry.version.engine_name}")
                self._building.add(task)
                task.add_done_callback(self._building.discard)

    async def _retire(self, digest: str, entry: _Entry) -> None:
        def is_free() -> bool:
            return self._entries.get(digest) is not entry or (entry.held == 0 and entry.built.is_set())

        async with self._changed:
            await self._changed.wait_for(is_free)
        if self._entries.get(digest) is entry and not entry.leaving:
            await self._remove(digest, entry)

    async def _remove(self, digest: str, entry: _Entry) -> None:
        """First the engine lets go, then the files; meanwhile whoever asks for the blend waits to build it again."""
        entry.leaving = True
        try:
            await self._engine.unload(entry.version.lora_id)
        except Exception:
            # An engine that dies has let go as well.
            logger.exception("blend_unload_failed blend=%s", entry.version.engine_name)
        finally:
            await asyncio.shield(asyncio.to_thread(self._folders.remove, entry.version.folder))
            self._entries.pop(digest, None)
            await self._announce()

    async def _release(self, entry: _Entry) -> None:
        entry.held -= 1
        # Shielded: a caller that is being cancelled must still wake those who wait for memory.
        await asyncio.shield(self._announce())

    async def _announce(self) -> None:
        self._metrics.blends_kept(len(self._entries), self.used_bytes)
        async with self._changed:
            self._changed.notify_all()

    async def close(self) -> None:
        """End what is being built, and do not wait for users any more."""
        for task in self._building:
            task.cancel()
        await asyncio.gather(*self._building, return_exceptions=True)
