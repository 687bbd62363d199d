"""Stored files by their id, beside the adapters: ``files/ab/file-…ab``. The bytes come before the row that names them.

A crash in between leaves bytes that no row names; `FileStore.sweep` removes them after a grace period. Everything here
blocks.
"""

import os
import re
import tempfile
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Final

from amalgam.errors.batches import FileNotFound, FileTooLarge
from amalgam.store.disk import disk_errors, make_durable, make_private, sync_folder

_ID: Final = re.compile(r"[A-Za-z0-9_-]{2,64}")
_CHUNK_BYTES: Final = 1 << 20


class FileStore:
    """The files of one store; any number of processes may use it at once.

    Args:
        root: of the store.
    """

    def __init__(self, root: Path) -> None:
        self._root = root / "files"

    @classmethod
    def open(cls, root: Path) -> "FileStore":
        """Use the store in ``root``. Raises StoreUnavailable where it cannot be made."""
        store = cls(root)
        with disk_errors():
            make_private(store._root)
        return store

    def path(self, file_id: str) -> Path:
        """Where the bytes are.

        Raises:
            FileNotFound: it is no id.
        """
        if not _ID.fullmatch(file_id):
            raise FileNotFound(file_id)
        return self._root / file_id[-2:] / file_id

    def keep(self, file_id: str, chunks: Iterable[bytes], *, max_bytes: int | None = None) -> int:
        """Write a new file; its bytes are on the disk when this returns.

        Args:
            file_id: that no other file has.
            chunks: of its bytes.
            max_bytes: most of them; None: any number.

        Returns: how many bytes it has; one without any is not kept.

        Raises:
            FileTooLarge: it has more; nothing is kept.
            StoreUnavailable: the disk is full or failing; nothing is kept.
        """
        target = self.path(file_id)
        with disk_errors():
            make_private(target.parent)
            descriptor, name = tempfile.mkstemp(dir=target.parent)
            written = 0
            try:
                with os.fdopen(descriptor, "wb") as file:
                    for chunk in chunks:
                        written += len(chunk)
                        if max_bytes is not None and written > max_bytes:
                            raise FileTooLarge(max_bytes)
                        file.write(chunk)
                if written:
                    make_durable(Path(name))
                    os.rename(name, target)
                    sync_folder(target.parent)
            finally:
                Path(name).unlink(missing_ok=True)
        return written

    def chunks(self, file_id: str) -> Iterator[bytes]:
        """Its bytes, in pieces.

        Raises:
            FileNotFound: the bytes are gone.
            StoreUnavailable: the disk is failing.
        """
        with disk_errors():
            try:
                file = self.path(file_id).open("rb")
            except FileNotFoundError:
                raise FileNotFound(file_id) from None
            with file:
                while chunk := file.read(_CHUNK_BYTES):
                    yield chunk

    def lines(self, file_id: str, max_bytes: int) -> Iterator[tuple[int, bytes | None]]:
        """Number, from 1, and bytes of every line that is not blank; None in place of one longer than ``max_bytes``.

        Raises:
            FileNotFound, StoreUnavailable: as `chunks`.
        """
        with disk_errors():
            try:
                file = self.path(file_id).open("rb")
            except FileNotFoundError:
                raise FileNotFound(file_id) from None
            with file:
                number = 0
                while line := file.readline(max_bytes + 2):
                    number += 1
                    is_cut = len(line) > max_bytes and not line.endswith(b"\n")
                    rest = line
                    while is_cut and rest and not rest.endswith(b"\n"):
                        rest = file.readline(_CHUNK_BYTES)
                    line = line.strip()
                    if line:
                        yield number, None if is_cut or len(line) > max_bytes else line

    def remove(self, file_id: str) -> None:
        """Remove the bytes; none are left where there were none. Raises StoreUnavailable."""
        with disk_errors():
            self.path(file_id).unlink(missing_ok=True)

    def sweep(self, known: Collection[str], *, now: float, grace_s: float) -> int:
        """Remove what no row names and is older than ``grace_s`` seconds; returns how many files.

        Args:
            known: ids that rows name.
            now: by the clock that stamps the files, Unix seconds.
            grace_s: longer than any upload takes between its bytes and its row.

        Raises:
            StoreUnavailable: the disk is failing.
        """
        removed = 0
        with disk_errors():
            for path in self._root.glob("*/*"):
                if path.name in known:
                    continue
                try:
                    if now - path.stat().st_mtime > grace_s:
                        path.unlink()
                        removed += 1
                except FileNotFoundError:
                    continue
        return removed
