"""Folders of blends: best in memory, of one server process each, gone with it. Nothing here is durable or meant to be.

Below the root each user has one folder that others cannot enter, so that nobody else can hold its lock; there a server
has a folder of its own and holds its lock, which dies with the process. Whoever starts next removes the folders that
nobody holds. Everything here blocks.
"""

import fcntl
import logging
import os
import shutil
import stat
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

from amalgam.store.disk import disk_errors, is_held, locked

logger = logging.getLogger(__name__)

_PREFIX: Final = "amalgam-blends-"
_SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108  (a folder of its own is made there, for its owner alone)


def default_root(store_root: Path) -> Path:
    """Shared memory where this process may write there, else a folder of the store."""
    if _SHARED_MEMORY.is_dir() and os.access(_SHARED_MEMORY, os.W_OK | os.X_OK):
        return _SHARED_MEMORY
    return store_root / "blends"


class BlendFolders:
    """One process's folder of blends."""

    def __init__(self, root: Path, lock: int) -> None:
        self.root = root
        self._lock = lock

    @classmethod
    def open(cls, parent: Path) -> "BlendFolders":
        """A fresh folder below ``parent``, which is made if absent; those of dead servers are removed.

        Raises:
            StoreUnavailable: it cannot be made.
        """
        with disk_errors():
            parent.mkdir(parents=True, exist_ok=True)
            private = _private(parent)
            # Between being made and being held a folder looks like a dead server's, so one server at a time.
            with locked(private):
                for found in private.glob(f"{_PREFIX}*"):
                    if _is_abandoned(found):
                        shutil.rmtree(found, ignore_errors=True)
                root = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=private))
                lock = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
                fcntl.flock(lock, fcntl.LOCK_EX)
        return cls(root, lock)

    def budget(self, wanted_bytes: int) -> int:
        """The lesser of ``wanted_bytes`` and half of what is free there now: others use the same memory."""
        with disk_errors():
            return min(wanted_bytes, shutil.disk_usage(self.root).free // 2)

    def place(self, name: str) -> Path:
        """Where the blend ``name`` goes; not made yet."""
        return self.root / name

    def remove(self, folder: Path) -> None:
        """Remove one blend's folder, whole or in part, where it is there."""
        shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """Remove everything."""
        shutil.rmtree(self.root, ignore_errors=True)
        os.close(self._lock)


def _private(parent: Path) -> Path:
    """This user's folder below ``parent``; where somebody else has its name, a fresh one that is not found later."""
    folder = parent / f"amalgam-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    state = folder.lstat()
    if stat.S_ISDIR(state.st_mode) and state.st_uid == os.getuid():
        folder.chmod(0o700)
        return folder
    logger.warning(
        "blend_folder_taken reason=it is another user's; a fresh one is used, and stays if this server is killed"
    )
    return Path(tempfile.mkdtemp(prefix="amalgam-", dir=parent))


def _is_abandoned(folder: Path) -> bool:
    """Whether it is a folder of ours whose server is gone."""
    try:
        state = folder.lstat()
        return folder.is_dir() and not folder.is_symlink() and state.st_uid == os.getuid() and not is_held(folder)
    except OSError:
        return False
