"""Whether stored files are still what was published: checked on first use, remembered, and damage kept out of use.

A file is read whole once in a process's life, and again where it has been replaced or written to since. What was found
damaged is refused without another look, until `ArtifactChecks.verify` finds it sound: putting the right bytes back is
not enough, so that a disk that lies now and then serves nothing in between.
"""

import errno
import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Final

from amalgam.errors.adapters import ArtifactDamaged
from amalgam.errors.registry import StoreUnavailable
from amalgam.store.file_rules import CONTENT_FILES

logger = logging.getLogger(__name__)

_Identity = tuple[tuple[int, ...], ...]
_NOT_THE_FILES_FAULT: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


class ArtifactChecks:
    """The files below one store's folder of objects; every method may be called in any thread, and blocks.

    Args:
        objects: where the files lie.
    """

    def __init__(self, objects: Path) -> None:
        self._objects = objects
        self._sound: dict[str, _Identity] = {}
        self._damaged: set[str] = set()
        self.found_damaged = 0
        """How often files were found damaged that were not known to be."""

    def folder(self, digest: str) -> Path:
        """Where the files of that digest lie, or would."""
        return self._objects / digest[:2] / digest

    def digest_at(self, folder: Path) -> str | None:
        """The digest that the files in ``folder`` should have; None for a folder elsewhere."""
        return folder.name if folder == self.folder(folder.name) else None

    def is_damaged(self, digest: str) -> bool:
        """Whether the files were found damaged, and not sound since; reads nothing."""
        return digest in self._damaged

    def require_sound(self, digest: str) -> bool:
        """Check the files where that has not been done since they were last written to.

        Returns: whether they were read.

        Raises:
            ArtifactDamaged: they are missing, or not the bytes that were published; or were so at the last look.
            StoreUnavailable: they cannot be read now.
        """
        if digest in self._damaged:
            raise ArtifactDamaged(digest)
        if self._sound.get(digest, ()) == self._identity(digest) != ():
            return False
        self.verify(digest)
        return True

    def verify(self, digest: str) -> None:
        """Read the files and compare; what is sound may be used again, what is not is refused from now on.

        Raises:
            ArtifactDamaged: they are missing, or not the bytes that were published.
            StoreUnavailable: they cannot be read now.
        """
        # Before they are read: what is written meanwhile has another identity afterwards.
        identity = self._identity(digest)
        try:
            found, _ = content_digest(self.folder(digest))
        except OSError as error:
            if error.errno in _NOT_THE_FILES_FAULT:
                raise StoreUnavailable(error.strerror or "out of resources") from error
            self.refuse(digest)
            raise ArtifactDamaged(digest) from error
        if found != digest:
            self.refuse(digest)
            raise ArtifactDamaged(digest)
        self._damaged.discard(digest)
        self._sound[digest] = identity

    def forget(self, digest: str) -> None:
        """The files were removed: what comes under the digest later is new."""
        self._damaged.discard(digest)
        self._sound.pop(digest, None)

    def refuse(self, digest: str) -> None:
        """The files were found damaged or missing: they are not used until `verify` finds them sound."""
        self._sound.pop(digest, None)
        if digest not in self._damaged:
            self._damaged.add(digest)
            self.found_damaged += 1
            logger.error("artifact_damaged digest=%s", digest[:12])

    def _identity(self, digest: str) -> _Identity:
        """Changes whenever a file is replaced or written to; empty where one is missing."""
        folder = self.folder(digest)
        try:
            stats = [os.stat(folder / name) for name in CONTENT_FILES]
        except OSError:
            return ()
        return tuple((stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for stat in stats)


def content_digest(folder: Path, received: dict[str, str] | None = None) -> tuple[str, int]:
    """Digest and size in bytes of the adapter in ``folder``: SHA-256 over names, sizes and SHA-256 of its files.

    Args:
        received: SHA-256 of what came in, by name, to be compared with what the disk gives back.

    Raises:
        StoreUnavailable: the disk gave back other bytes than were received.
        OSError: a file is missing or cannot be read.
    """
    manifest = {}
    size_bytes = 0
    for name in CONTENT_FILES:
        with (folder / name).open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
        if received is not None and received.get(name, content) != content:
            raise StoreUnavailable("it gave back other bytes than were written")
        manifest[name] = {"bytes": size, "sha256": content}
        size_bytes += size
    described = json.dumps({"format": 1, "files": manifest}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(described.encode()).hexdigest(), size_bytes
