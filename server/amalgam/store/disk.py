"""What disks need and do: durability in the right order, locks that die with their holder, and errors without paths."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from amalgam.errors.registry import StoreUnavailable


@contextmanager
def disk_errors() -> Iterator[None]:
    """Turn what a disk can do to us into one error, without the path in it.

    Raises:
        StoreUnavailable: the block raised OSError.
    """
    try:
        yield
    except OSError as error:
        raise StoreUnavailable(error.strerror or "input/output error") from error


@contextmanager
def locked(path: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold the lock of the file or folder ``path`` against other processes and threads; dies with its holder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def make_private(folder: Path) -> None:
    """Make ``folder`` for its owner alone, or take it away from others where it was made for more."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_mode & 0o077:
        folder.chmod(0o700)


def open_private(path: Path) -> int:
    """A descriptor of the file ``path``, made if absent, which its owner alone can open."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(descriptor, 0o600)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def is_held(path: Path) -> bool:
    """Whether anyone holds the lock of ``path`` now."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def make_durable(path: Path) -> None:
    """Make a finished file read-only and have its bytes on the disk, and not only in memory, when this returns."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fchmod(descriptor, 0o444)
        os.fsync(descriptor)
        if hasattr(os, "posix_fadvise"):
            # Verifying next should read the disk, not the memory that was just written.
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Have the folder's entries on the disk when this returns."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
