"""The time by which the store's disk stamps its files: what ages of files are counted by.

The clock of this host may differ from that of the file server, and either may be set while the server runs. So the disk
is asked, and no more time passes here than a steady clock says: a clock that is set forward ages no file.
"""

import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path


class FileClock:
    """A `Clock` that never runs ahead; where the disk's clock is set back, files only seem younger. Blocks.

    Args:
        folder: on the disk in question, one's own.
        steady: monotonic seconds.
    """

    def __init__(self, folder: Path, steady: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._steady = steady
        self._began = self.stamp(), steady()

    def stamp(self) -> float:
        """What the disk says that it is, Unix seconds, by a touch of the folder."""
        os.utime(self._folder)
        return self._folder.stat().st_mtime

    def __call__(self) -> datetime:
        """The present moment.

        Raises:
            OSError: the disk is failing.
        """
        stamp, steady = self._began
        return datetime.fromtimestamp(min(self.stamp(), stamp + self._steady() - steady), UTC)
