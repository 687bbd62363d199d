"""Batches: what may be asked for, and what can be read of them."""

from collections.abc import Callable

from amalgam.domain.batch import Batch, BatchDraft, BatchPage
from amalgam.domain.stored_file import Owner
from amalgam.registry.batches import BatchRegistry
from amalgam.registry.files import FileRegistry


class BatchService:
    """Queues batches and reads how far they are.

    Args:
        registry: of batches.
        files: of their files.
        wake: tells who answers them that there is something new.
    """

    def __init__(self, registry: BatchRegistry, files: FileRegistry, wake: Callable[[], None]) -> None:
        self._registry = registry
        self._files = files
        self._wake = wake

    async def create(self, owner: Owner, draft: BatchDraft) -> Batch:
        """Queue it.

        Raises:
            FileNotFound: the key knows of no such file.
            TooManyBatches: how many of the tenant have not ended.
        """
        await self._files.get(owner, draft.input_file)
        batch = await self._registry.create(owner, draft)
        self._wake()
        return batch

    async def get(self, owner: Owner, batch_id: str) -> Batch:
        """One. Raises BatchNotFound."""
        return await self._registry.get(owner, batch_id)

    async def list(self, owner: Owner, limit: int, after: str | None) -> BatchPage:
        """A page, newest first. Raises BatchNotFound where ``after`` is none."""
        return await self._registry.list(owner, limit=limit, after=after)

    async def cancel(self, owner: Owner, batch_id: str) -> Batch:
        """Have it end with what it has. Raises BatchNotFound, BatchStateConflict."""
        batch = await self._registry.cancel(owner, batch_id)
        self._wake()
        return batch

    async def count_live(self) -> dict[tuple[str, str], int]:
        """How many are queued or running."""
        return await self._registry.count_live()
