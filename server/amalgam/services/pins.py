"""The engine's pins are the registry's: what one server pins stays in the memory of all, after a restart too."""

import asyncio
import logging
from contextlib import suppress
from typing import Final

from amalgam.engine.protocol import Engine
from amalgam.errors import AmalgamError
from amalgam.services.catalog import Catalog
from amalgam.services.inference import loadable
from amalgam.services.snapshot import Snapshot
from amalgam.store.adapter_store import AdapterStore

logger = logging.getLogger(__name__)

_RETRY_S: Final = 5.0
"""A pinned version for which there was no place is tried again after so long."""


class Pins:
    """Follows the catalog.

    Args:
        catalog: knows what is pinned, and tells of changes by any server.
        engine: whose memory it is.
        store: where versions lie.
    """

    def __init__(self, catalog: Catalog, engine: Engine, store: AdapterStore) -> None:
        self._catalog = catalog
        self._engine = engine
        self._store = store
        self._changed = asyncio.Event()
        catalog.on_change(self._follow)

    def _follow(self, before: Snapshot, after: Snapshot) -> None:
        if before.pinned != after.pinned:
            self._changed.set()

    async def follow_loop(self, retry_s: float = _RETRY_S) -> None:
        """Make the engine's pins those of the registry, at the start and after every change, for ever."""
        while True:
            self._changed.clear()
            if self._engine.state == "ready":
                await self.agree()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), retry_s)

    async def agree(self) -> None:
        """Pin and unpin what differs; what cannot be had now is logged, and tried again later."""
        pinned_here = {resident.lora_id for resident in self._engine.info().residents if resident.pinned}
        snapshot = self._catalog.snapshot
        for version_id in pinned_here - snapshot.pinned:
            await self._engine.pin(version_id, pinned=False)
        for version_id in snapshot.pinned - pinned_here:
            version = snapshot.by_id.get(version_id)
            if version is None:
                # Registered, and not in service yet.
                continue
            try:
                await self._engine.load(loadable(version, await self._store.for_engine(version.digest)))
                await self._engine.pin(version_id, pinned=True)
            except AmalgamError as error:
                logger.warning("pin_waits version=%s reason=%s", version.ref, error)
