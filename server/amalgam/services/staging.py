"""Prepares adapters for the engine outside its loop: what it takes up lies in memory, in the type it computes in."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Final

from amalgam.errors import AmalgamError
from amalgam.store.blend_folders import BlendFolders
from amalgam.store.staged_adapters import staged_size, write_staged

logger = logging.getLogger(__name__)

_AT_ONCE: Final = 1
"""Conversions; more would only take turns on the processor, and take it from the engine."""


class Staging:
    """Lends folders in memory, for as long as a load takes.

    The engine maps a staged file and keeps the mapping, so its bytes stay until the engine lets go of the adapter, and
    not longer, although the folder is removed as soon as the load is over. What cannot be staged is loaded as stored.
    """

    def __init__(self) -> None:
        self._folders: BlendFolders | None = None
        self._turns = asyncio.Semaphore(_AT_ONCE)
        self._numbers = count(1)

    def open(self, folders: BlendFolders) -> None:
        """Stage below ``folders`` from now on."""
        self._folders = folders

    @asynccontextmanager
    async def lend(self, folder: Path) -> AsyncIterator[Path]:
        """A folder with the weights of the one in ``folder``, times their scale, in float32; or ``folder`` itself.

        Args:
            folder: a checked PEFT folder. One that lies beside the staged ones, as blends do, is in memory already.
        """
        folders = self._folders
        if folders is None or folder.is_relative_to(folders.root.parent):
            yield folder
            return
        place = folders.place(f"staged-{next(self._numbers)}")
        try:
            yield place if await self._written(folders, folder, place) else folder
        finally:
            await asyncio.to_thread(folders.remove, place)

    async def _written(self, folders: BlendFolders, folder: Path, place: Path) -> bool:
        async with self._turns:
            try:
                wanted = staged_size(folder)
                if folders.budget(wanted) < wanted:
                    logger.info("too little memory to stage %s, %d bytes", folder, wanted)
                    return False
                await asyncio.to_thread(write_staged, folder, place)
            except (AmalgamError, OSError) as error:
                logger.warning("%s could not be staged: %s", folder, error)
                return False
        return True
