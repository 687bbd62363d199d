"""The file of a SQLite registry, for its owner alone: it holds descriptions, recipes and kept answers of everybody."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

_PRIVATE: Final = 0o600
_BESIDE: Final = ("-wal", "-shm", "-journal")


def make_private(path: Path) -> None:
    """Make ``path`` before SQLite does, whatever the umask; take a file of an earlier release away from others.

    SQLite gives the files beside it the same mode. Where the file cannot be made or changed nothing happens here,
    because SQLite finds the same out, and its error says more.
    """
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _PRIVATE)
        os.close(descriptor)
    for found in (path, *(path.with_name(path.name + end) for end in _BESIDE)):
        with suppress(OSError):
            if found.stat().st_mode & 0o077:
                found.chmod(_PRIVATE)
