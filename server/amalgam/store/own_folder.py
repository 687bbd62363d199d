"""A numbered folder for each process of one kind on a host; the next one finds what an earlier one left."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from amalgam.store.disk import disk_errors, make_private


@contextmanager
def own_folder(parent: Path) -> Iterator[Path]:
    """The first folder ``parent/0``, ``parent/1``, … that no living process has; this one's while the block runs.

    Raises:
        StoreUnavailable: it cannot be made.
    """
    with disk_errors():
        folder, descriptor = next(taken for taken in map(_take, (parent / str(number) for number in count())) if taken)
    try:
        yield folder
    finally:
        os.close(descriptor)


def _take(folder: Path) -> tuple[Path, int] | None:
    """The folder and what holds its lock, which dies with the process; None where another one has it."""
    make_private(folder)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return folder, descriptor
