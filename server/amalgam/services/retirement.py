"""The end of a version: nobody comes upon it, its last request ends, the engine lets go of it, and then its files go.

Whoever deleted it: each server frees its own memory when the catalog says that a version went.
"""

import asyncio
import math
from functools import partial
from typing import Any, Final

from amalgam.domain.adapter import AdapterVersion
from amalgam.domain.clock import Clock
from amalgam.engine.protocol import Engine
from amalgam.registry.adapters import AdapterRegistry
from amalgam.services.background_loops import BackgroundLoops, Loop
from amalgam.services.catalog import Catalog
from amalgam.services.inference import Inference
from amalgam.services.patience import patiently
from amalgam.services.snapshot import Snapshot
from amalgam.store.adapter_store import AdapterStore

FILE_GRACE_S: Final = 15.0
"""It is longer than any pause between publishing files and committing the row that names them."""


class Retirement:
    """Takes versions out of memory and store.

    Args:
        registry: whether files are another version's too.
        store: where they lie.
        catalog: tells what went.
        engine: which has it in memory.
        inference: which requests still use it.
        loops: what waits for them runs among these.
        clock: by which files are stamped, see `amalgam.store.file_clock`; blocks. None where other servers share the
            store and may still need the files: `Retention` removes them later.
    """

    def __init__(
        self,
        registry: AdapterRegistry,
        store: AdapterStore,
        catalog: Catalog,
        engine: Engine,
        inference: Inference,
        loops: BackgroundLoops,
        clock: Clock | None,
    ) -> None:
        self._registry = registry
        self._store = store
        self._catalog = catalog
        self._engine = engine
        self._inference = inference
        self._loops = loops
        self._clock = clock
        self._retiring: set[asyncio.Task[Any]] = set()
        catalog.on_change(self._follow)

    def _follow(self, before: Snapshot, after: Snapshot) -> None:
        for version_id in after.gone:
            self._in_background(partial(self._free, version_id))

    def retire(self, version: AdapterVersion) -> None:
        """Begin the end of a version that was deleted here."""
        self._in_background(partial(self._retire, version))

    def let_go(self, version: AdapterVersion) -> None:
        """Have the engine let go of a version whose files are damaged, when nobody uses it."""
        self._in_background(partial(self._engine.unload, version.id))

    def _in_background(self, work: Loop) -> None:
        """Have it done, again where it fails."""
        task = self._loops.finish("retirement", work)
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def _retire(self, version: AdapterVersion) -> None:
        # Nobody may come upon it any more before its last request is waited for.
        await patiently(self._catalog.refresh, lambda: math.inf)
        await self._free(version.id)
        if self._clock is not None:
            await self._remove_files(version.digest, self._clock)

    async def _free(self, version_id: int) -> None:
        await self._inference.drained(version_id)
        await self._engine.unload(version_id)

    async def _remove_files(self, digest: str, clock: Clock) -> None:
        # Another version, or a job's input, may be these very bytes; the registry knows. Files that were published a
        # moment ago may be about to get a row, so they are given time.
        is_in_use = partial(self._registry.is_digest_in_use, digest)
        while not await patiently(is_in_use, lambda: math.inf):
            now = (await asyncio.to_thread(clock)).timestamp()
            if await asyncio.to_thread(self._store.remove, digest, now=now, grace_s=FILE_GRACE_S):
                return
            await asyncio.sleep(FILE_GRACE_S)

    async def settle(self) -> None:
        """Wait for what was begun; for tests."""
        await asyncio.gather(*self._retiring)
