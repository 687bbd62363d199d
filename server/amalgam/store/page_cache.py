"""Reads files ahead of somebody who maps them and must not wait for the disk; the first time it compares them too."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

from amalgam.store.artifact_checks import ArtifactChecks
from amalgam.store.file_rules import WEIGHTS_FILE

_CHUNK_BYTES: Final = 1 << 20


def checked_read_ahead(checks: ArtifactChecks) -> Callable[[Path], None]:
    """`read_ahead` that refuses files of a store which are not the ones that were published.

    The comparison reads every byte, so it stands for the reading ahead the first time. Blends are in no store: they
    were written by this server in this life of it.
    """

    def read(folder: Path) -> None:
        digest = checks.digest_at(folder)
        if digest is None or not checks.require_sound(digest):
            read_ahead(folder)

    return read


def read_ahead(folder: Path) -> None:
    """Have the weights of the PEFT folder ``folder`` in the system's page cache; where they are already, 0.1 ms a MB.

    Raises:
        OSError: they cannot be read, which who maps them would learn from a signal.
    """
    buffer = bytearray(_CHUNK_BYTES)
    with (folder / WEIGHTS_FILE).open("rb", buffering=0) as file:
        while file.readinto(buffer):
            continue
