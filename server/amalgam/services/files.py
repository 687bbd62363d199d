"""Files that keys store: uploaded, listed, read, deleted, and forgotten when their time is over."""

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Final

from amalgam.domain.clock import Clock
from amalgam.domain.stored_file import FileDraft, FilePage, Owner, StoredFile
from amalgam.errors import AmalgamError
from amalgam.registry.batches import BatchRegistry
from amalgam.registry.files import FileList, FileRegistry
from amalgam.store.batch_answers import BatchRuns
from amalgam.store.file_store import FileStore

logger = logging.getLogger(__name__)

_SWEEP_S: Final = 600.0
_GRACE_S: Final = 24 * 3600.0
"""Bytes without a row stay for so long: longer than any upload takes between its bytes and its row."""
_DAY_S: Final = 86_400


class FileService:
    """One server's side of stored files.

    Args:
        registry: whose they are.
        store: their bytes.
        max_bytes: of one file.
        new_id: of files.
    """

    def __init__(self, registry: FileRegistry, store: FileStore, max_bytes: int, new_id: Callable[[], str]) -> None:
        self._registry = registry
        self._store = store
        self.max_bytes = max_bytes
        self._new_id = new_id

    async def require_storage(self, owner: Owner, needed: int) -> None:
        """Nothing where ``needed`` bytes more fit. Raises StorageSpent."""
        await self._registry.require_storage(owner, needed)

    async def upload(self, owner: Owner, filename: str, chunks: Iterable[bytes], kept_s: int) -> StoredFile:
        """Store a file for a batch.

        Args:
            owner: whose it will be.
            filename: for people.
            chunks: of its bytes; read on a thread.
            kept_s: for so many seconds.

        Raises:
            FileTooLarge, StorageSpent, TooManyFiles, StoreUnavailable, RegistryUnavailable: nothing was stored.
        """
        file_id = self._new_id()
        size = await asyncio.to_thread(self._store.keep, file_id, chunks, max_bytes=self.max_bytes)
        draft = FileDraft(file_id, "batch", filename, size, kept_s)
        try:
            return await self._registry.create(owner, draft)
        except BaseException:
            await asyncio.to_thread(self._store.remove, file_id)
            raise

    async def get(self, owner: Owner, file_id: str) -> StoredFile:
        """One. Raises FileNotFound."""
        return await self._registry.get(owner, file_id)

    async def list(self, owner: Owner, asked: FileList) -> FilePage:
        """A page. Raises FileNotFound where ``asked.after`` is none."""
        return await self._registry.list(owner, asked)

    async def delete(self, owner: Owner, file_id: str) -> None:
        """Forget the row, then remove the bytes. Raises FileNotFound, FileInUse."""
        await self._registry.delete(owner, file_id)
        await asyncio.to_thread(self._store.remove, file_id)

    def chunks(self, file_id: str) -> Iterator[bytes]:
        """The bytes of a file that `get` has found; blocks."""
        return self._store.chunks(file_id)


class FileRetention:
    """Forgets files and batches whose time is over, and bytes that no row names.

    Args:
        files, batches: what there is.
        store, runs: where the bytes are.
        clock: by which files are stamped, see `amalgam.store.file_clock`; blocks.
        keep_days: a batch that has ended can be looked at for so long.
    """

    def __init__(
        self,
        files: FileRegistry,
        batches: BatchRegistry,
        store: FileStore,
        runs: BatchRuns,
        clock: Clock,
        keep_days: int,
    ) -> None:
        self._files = files
        self._batches = batches
        self._store = store
        self._runs = runs
        self._clock = clock
        self._keep_s = keep_days * _DAY_S

    async def sweep(self, grace_s: float = _GRACE_S) -> int:
        """Do it once; returns how many files of the store were removed."""
        await self._files.forget_expired()
        await self._batches.forget_older(self._keep_s)
        known, live = await self._files.ids(), await self._batches.live_ids()
        return await asyncio.to_thread(self._removed, known, live, grace_s)

    def _removed(self, known: Collection[str], live: Collection[str], grace_s: float) -> int:
        now = self._clock().timestamp()
        removed = self._store.sweep(known, now=now, grace_s=grace_s)
        return removed + self._runs.sweep(live, now=now, grace_s=grace_s)

    async def sweep_loop(self, period_s: float = _SWEEP_S) -> None:
        """Sweep now and every ``period_s`` seconds, for ever."""
        while True:
            try:
                removed = await self.sweep()
            except AmalgamError as error:
                logger.warning("file_sweep_failed reason=%s", error)
            else:
                if removed:
                    logger.info("files_swept removed=%d", removed)
            await asyncio.sleep(period_s)
