"""Prepares adapters for the engine outside its loop: what it takes up lies in memory, in the type it computes in."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
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
_REST: Final = 8.0
"""Seconds without work for each second of it, while the engine answers: its threads wait for the slowest of them."""
_SMALL_BYTES: Final = 24 << 20
"""Staged sizes up to which there is no rest: they delay a step or two; a rest would delay whoever asked for them."""


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
    async def lend(self, folder: Path, busy: Callable[[], bool] = lambda: False) -> AsyncIterator[Path]:
        """A folder with the weights of the one in ``folder``, times their scale, in float32; or ``folder`` itself.

        Args:
            folder: a checked PEFT folder. One that lies beside the staged ones, as blends do, is in memory already.
            busy: whether the engine is answering somebody, who is then to be disturbed little; asked in a thread.
        """
        folders = self._folders
        if folders is None or folder.parent.parent == folders.root.parent:
            yield folder
            return
        place = folders.place(f"staged-{next(self._numbers)}")
        try:
            yield place if await self._written(folders, folder, place, busy) else folder
        finally:
            await asyncio.to_thread(folders.remove, place)

    async def _written(self, folders: BlendFolders, folder: Path, place: Path, busy: Callable[[], bool]) -> bool:
        async with self._turns:
            try:
                wanted = staged_size(folder)
                if folders.budget(wanted) < wanted:
                    logger.info("too little memory to stage %s, %d bytes", folder, wanted)
                    return False
                pace = _Pace(busy) if wanted > _SMALL_BYTES else _no_rest
                await asyncio.to_thread(write_staged, folder, place, pace)
            except (AmalgamError, OSError) as error:
                logger.warning("%s could not be staged: %s", folder, error)
                return False
        return True


def _no_rest() -> None:
    """For what is done soon."""


class _Pace:
    """Rests after each piece of work, for as long as somebody else needs the processor.

    Args:
        busy: whether somebody does.
        clock: seconds.
        sleep: rests so many seconds.
    """

    def __init__(
        self,
        busy: Callable[[], bool],
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._busy = busy
        self._clock = clock
        self._sleep = sleep
        self._began = clock()

    def __call__(self) -> None:
        if self._busy():
            self._sleep((self._clock() - self._began) * _REST)
        self._began = self._clock()
