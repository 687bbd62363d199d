"""One request from `model` to a held version: resolve once, count, hold, release."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from amalgam.domain.adapter import AdapterVersion
from amalgam.domain.alias import Uniform
from amalgam.engine.protocol import Engine, LoadableVersion
from amalgam.services.catalog import Catalog, Target
from amalgam.store.adapter_store import AdapterStore
from amalgam.telemetry.context import note_alias


def loadable(version: AdapterVersion, folder: Path) -> LoadableVersion:
    """The version as the engine needs it: its name, id and folder never change."""
    return LoadableVersion(engine_name=str(version.ref), lora_id=version.id, folder=folder)


class Inference:
    """Admits requests. A version that was resolved stays servable until its request ends, whatever happens to names."""

    def __init__(self, catalog: Catalog, engine: Engine, store: AdapterStore, uniform: Uniform) -> None:
        self._catalog = catalog
        self._engine = engine
        self._store = store
        self._uniform = uniform
        self._loadable: dict[int, LoadableVersion] = {}
        self._in_use: Counter[int] = Counter()
        self._released = asyncio.Condition()

    @asynccontextmanager
    async def admit(self, model: str | None, user: str | None = None) -> AsyncIterator[Target]:
        """Resolve ``model`` and keep what it means resident while the block runs.

        Args:
            model: as the request has it.
            user: who asks; an alias means the same to them each time.

        Raises:
            ModelNotFound, AliasTargetGone: nothing of that name.
            EngineNotReady, EngineLoadFailed, SlotsBusy: see `Engine.hold`.
        """
        target = self._catalog.resolve(self._drawn(model, user))
        if target.version is None:
            async with self._engine.hold(None):
                yield target
            return
        # Counted before the first await: a deletion that starts now waits for this request.
        version = target.version
        self._in_use[version.id] += 1
        try:
            async with self._engine.hold(self._of(version)):
                yield target
        finally:
            self._in_use[version.id] -= 1
            if self._in_use[version.id] == 0:
                del self._in_use[version.id]
                await asyncio.shield(self._notify())

    def _drawn(self, model: str | None, user: str | None) -> str | None:
        """What the request asks for, once an alias has been drawn from; the request counts as the alias' too."""
        alias = self._catalog.alias(model)
        if alias is None:
            return model
        note_alias(alias.name)
        return self._catalog.draw(alias, user, self._uniform)

    def _of(self, version: AdapterVersion) -> LoadableVersion:
        """Remembered, so that the disk is not asked on every request."""
        found = self._loadable.get(version.id)
        if found is None:
            found = self._loadable[version.id] = loadable(version, self._store.path(version.digest))
        return found

    async def _notify(self) -> None:
        async with self._released:
            self._released.notify_all()

    async def drained(self, version_id: int) -> None:
        """Return when no request uses the version."""
        async with self._released:
            await self._released.wait_for(lambda: version_id not in self._in_use)
        self._loadable.pop(version_id, None)

    @property
    def running(self) -> int:
        """Adapter requests that are being answered."""
        return sum(self._in_use.values())
