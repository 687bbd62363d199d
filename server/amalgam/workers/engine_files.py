"""Where an engine in a process of its own finds adapters: in the store's folder, or copied from its bucket."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

from amalgam.engine.protocol import EngineInfo
from amalgam.services.adapter_files import open_copies
from amalgam.settings import Settings
from amalgam.store.adapter_store import OBJECTS, AdapterStore
from amalgam.store.artifact_checks import ArtifactChecks
from amalgam.store.bucket_store import BucketStore
from amalgam.store.own_folder import own_folder

_MOST_KNOWN: Final = 4096
"""Versions of which the digest is known; of more, only those in the engine's memory."""


class EngineFiles:
    """Folders by digest. A copy is fetched once, whoever waits for it, and used only if its bytes have the digest.

    Args:
        store: of this process; with a bucket it has copies in a folder of its own.
    """

    def __init__(self, store: AdapterStore) -> None:
        self.store = store
        self._digests: dict[int, str] = {}
        self._info_of: Callable[[], EngineInfo] | None = None

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: Settings) -> AsyncIterator["EngineFiles"]:
        """Open the store that ``settings`` name.

        Raises:
            StoreUnavailable: the folder cannot be made.
            ObjectStoreUnfit, ObjectStoreUnavailable: the bucket cannot be read from here.
        """
        root = settings.storage.store
        async with AsyncExitStack() as stack:
            if settings.storage.bucket:
                # Engines on one host evict copies without a word to each other, so none may use another one's.
                root = stack.enter_context(own_folder(root / "engines"))
            checks = ArtifactChecks(root / OBJECTS)
            yield cls(await open_copies(settings, root, checks))

    async def folder(self, lora_id: int, digest: str) -> Path:
        """Where the files of a version lie; what is not here is fetched first, within the load timeout.

        Raises:
            ArtifactDamaged: they are missing, or not those that were published.
            ObjectStoreUnavailable: the bucket does not answer, or not in time.
        """
        folder = await self.store.ready(digest)
        if len(self._digests) >= _MOST_KNOWN:
            residents = self._in_memory()
            self._digests = {one: known for one, known in self._digests.items() if one in residents}
        self._digests[lora_id] = digest
        return folder

    async def sound_folder(self, lora_id: int, digest: str) -> Path:
        """The same, of files whose bytes were compared with the digest.

        Raises:
            ArtifactDamaged, ObjectStoreUnavailable: as `folder`.
        """
        folder = await self.folder(lora_id, digest)
        await asyncio.to_thread(self.store.checks.require_sound, digest)
        return folder

    def follow(self, info_of: Callable[[], EngineInfo]) -> None:
        """Have eviction leave the copies of what the engine has in its memory, and may read again."""
        self._info_of = info_of
        if isinstance(self.store, BucketStore):
            self.store.in_use = self._in_use

    def _in_memory(self) -> frozenset[int]:
        residents = () if self._info_of is None else self._info_of().residents
        return frozenset(resident.lora_id for resident in residents)

    def _in_use(self) -> frozenset[str]:
        """Called in a thread, so of a copy."""
        known = dict(self._digests)
        return frozenset(known[one] for one in self._in_memory() if one in known)
