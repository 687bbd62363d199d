"""Threads in which adapters are read before the engine maps them: a file system that is slow holds up loads alone."""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from amalgam.engine.protocol import LoadableVersion
from amalgam.errors.engine import EngineLoadFailed

logger = logging.getLogger(__name__)

MOST: Final = 64
"""So many loads run at a time, whatever the engine has places for."""


class LoadThreads:
    """One thread for every load that may be under way, so that none waits for another's file.

    Args:
        read: blocks until the folder's files are in memory, and refuses what must not be loaded.
        places: versions that the engine keeps, and so loads at a time.
    """

    def __init__(self, read: Callable[[Path], None], places: int) -> None:
        self._read = read
        self._threads = ThreadPoolExecutor(min(places, MOST), thread_name_prefix="load")

    async def prepare(self, version: LoadableVersion) -> None:
        """Return when the files are in memory.

        Raises:
            EngineLoadFailed: they cannot be read. Besides, what ``read`` raises of its own.
        """
        try:
            await asyncio.get_running_loop().run_in_executor(self._threads, self._read, version.folder)
        except OSError as error:
            logger.exception("adapter_load_failed version=%s reason=it cannot be read", version.engine_name)
            raise EngineLoadFailed(version.engine_name) from error

    def close(self) -> None:
        """Begin no more; one that hangs is not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)
