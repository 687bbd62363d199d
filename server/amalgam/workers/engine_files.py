"""Where an engine in a process of its own finds adapters: in the store's folder, or copied from its bucket."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from amalgam.engine.protocol import EngineInfo
from amalgam.services.adapter_files import open_copies
from amalgam.settings import Settings
from amalgam.store.adapter_store import OBJECTS, AdapterStore
from amalgam.store.artifact_checks import ArtifactChecks
from amalgam.store.bucket_store import BucketStore
from amalgam.store.own_folder import own_folder


class EngineFiles:
    """Folders by digest. A copy is fetched once, whoever waits for it, and used only if its bytes have the digest.

    Args:
        store: of this process; with a bucket it has copies in a folder of its own.
    """

    def __init__(self, store: AdapterStore) -> None:
        self.store = store

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

    async def folder(self, digest: str) -> Path:
        """Where the files of a version lie; what is not here is fetched first, within the load timeout.

        Raises:
            ArtifactDamaged: they are missing, or not those that were published.
            ObjectStoreUnavailable: the bucket does not answer, or not in time.
        """
        return await self.store.ready(digest)

    async def sound_folder(self, digest: str) -> Path:
        """The same, of files whose bytes were compared with the digest.

        Raises:
            ArtifactDamaged, ObjectStoreUnavailable: as `folder`.
        """
        folder = await self.folder(digest)
        await asyncio.to_thread(self.store.checks.require_sound, digest)
        return folder

    def follow(self, info_of: Callable[[], EngineInfo]) -> None:
        """Have eviction leave the copies of what the engine has in its memory, and may read again."""
        if isinstance(self.store, BucketStore):
            self.store.in_use = lambda: info_of().digests
