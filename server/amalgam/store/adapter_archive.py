"""The stored files of a version as one tar: the same bytes every time, streamed, checked again where they arrive."""

import tarfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, Final

from amalgam.errors.adapters import ArtifactDamaged
from amalgam.store.artifact_checks import content_digest
from amalgam.store.file_rules import KEPT_FILES, is_weights

_BLOCK_BYTES: Final = 512
_CHUNK_BYTES: Final = 1 << 20
_END: Final = bytes(2 * _BLOCK_BYTES)


class AdapterArchive:
    """The files of one folder, opened: whoever removes them meanwhile, what was begun is read to its end."""

    def __init__(self, folder: Path, names: Sequence[str] = KEPT_FILES) -> None:
        """Open the files of these names that there are.

        Raises:
            OSError: one that was there cannot be opened.
        """
        self._stack = ExitStack()
        self._files: list[tuple[bytes, BinaryIO, int]] = []
        with self._stack:
            for name in names:
                if (folder / name).is_file():
                    file = self._stack.enter_context((folder / name).open("rb"))
                    size = file.seek(0, 2)
                    file.seek(0)
                    self._files.append((_header(name, size), file, size))
            self._stack = self._stack.pop_all()

    def close(self) -> None:
        """Close the files; where nobody reads them."""
        self._stack.close()

    @property
    def size_bytes(self) -> int:
        """The size of the whole tar."""
        return len(_END) + sum(len(header) + size + _padding(size) for header, _, size in self._files)

    def chunks(self) -> Iterator[bytes]:
        """The tar in pieces; the files are closed at its end. Blocks while it reads."""
        with self._stack:
            for header, file, size in self._files:
                yield header
                while chunk := file.read(_CHUNK_BYTES):
                    yield chunk
                yield bytes(_padding(size))
            yield _END


def _header(name: str, size: int) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size = size
    entry.mode = 0o644
    return entry.tobuf(tarfile.GNU_FORMAT)


def _padding(size: int) -> int:
    return -size % _BLOCK_BYTES


def unpack(archive: BinaryIO, folder: Path, digest: str) -> list[str]:
    """Write the files of an archive into ``folder``, which is there, and compare them with their digest.

    Names that no adapter has, and entries that are no files, are passed over.

    Args:
        archive: As `AdapterArchive` makes it, from its beginning; read once.
        digest: Of the version.

    Returns: names written.

    Raises:
        ArtifactDamaged: what arrived is not what the digest names.
        OSError: the folder cannot be written.
    """
    written = []
    try:
        with tarfile.open(fileobj=archive, mode="r|") as tar:
            for entry in tar:
                source = tar.extractfile(entry) if entry.isreg() else None
                if source is None or not (entry.name in KEPT_FILES or is_weights(entry.name)):
                    continue
                with (folder / entry.name).open("wb") as file:
                    while chunk := source.read(_CHUNK_BYTES):
                        file.write(chunk)
                written.append(entry.name)
        found, _ = content_digest(folder)
    except (tarfile.TarError, FileNotFoundError):
        raise ArtifactDamaged(digest) from None
    if found != digest:
        raise ArtifactDamaged(digest)
    return written
