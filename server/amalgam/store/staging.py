"""A folder that an adapter is put together in, out of sight, before it is published."""

import hashlib
import shutil
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from amalgam.domain.failpoints import Failpoints
from amalgam.errors.adapters import UploadTooLarge
from amalgam.errors.findings import Finding
from amalgam.errors.registry import StoreUnavailable
from amalgam.store.disk import disk_errors
from amalgam.store.file_rules import CONTENT_FILES, MAGIC_BYTES, MAX_TEXT_BYTES, is_taken, is_weights, refusal, shown
from amalgam.store.profile_files import MAX_PROFILE_FILE_BYTES, PROFILE_FILES

_LONGEST_FILE_NAME: Final = 255


class Staging:
    """Takes in files; what an adapter does not consist of is left out, and what is not allowed becomes a finding.

    Files may also be written straight into ``folder`` under the names of `KEPT_FILES`. One thread at a time.
    """

    def __init__(self, folder: Path, *, max_bytes: int | None, failpoints: Failpoints) -> None:
        self.folder = folder
        self.profile_files: dict[str, bytes] = {}
        """Those of `PROFILE_FILES` that came along; they are read, and not stored."""
        self.received: dict[str, str] = {}
        """SHA-256, in hex, of each file as it came in; publishing compares what the disk gives back."""
        self._guard = threading.Lock()
        self._users = 0
        self._closed = False
        self._max_bytes = max_bytes
        self._failpoints = failpoints
        self._received_bytes = 0
        self._findings: list[Finding] = []
        self._left_out: list[str] = []

    @property
    def left_out(self) -> tuple[str, ...]:
        """Names of what is no part of an adapter and was not read; `read_peft_folder` says so once."""
        return tuple(dict.fromkeys(self._left_out))

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What was refused so far; judge them together with those of `read_peft_folder`."""
        return tuple(self._findings)

    def size_bytes(self) -> int:
        """The bytes of the files that would be stored; blocks."""
        with disk_errors():
            found = (self.folder / name for name in CONTENT_FILES)
            return sum(path.stat().st_size for path in found if path.is_file())

    def receive(self, name: str, chunks: Iterable[bytes]) -> int:
        """Write one file as it streams in; blocks.

        Args:
            name: A bare file name. One that is no part of an adapter is left out, as is a folder (it ends in a slash);
                one that is not allowed becomes a finding; none of them is read beyond the first chunk.
            chunks: Its bytes, in pieces of any size.

        Returns: bytes written; 0 for a file that was not kept.

        Raises:
            UploadTooLarge: all files together exceed the limit.
            StoreUnavailable: the disk is full or failing.
        """
        written = 0
        with self.in_use():
            stream = _first_chunks(chunks)
            finding = self._judge(name, next(stream))
            if finding is None and name in PROFILE_FILES:
                self._keep_profile(name, stream)
            if finding is None and is_taken(name):
                written, finding = self._write(name, stream)
            if finding is not None:
                self._findings.append(finding)
        return written

    def _keep_profile(self, name: str, stream: Iterator[bytes]) -> None:
        """Keep it in memory, as far as it is of a size that is read."""
        kept = bytearray()
        for chunk in stream:
            kept += chunk
            if len(kept) > MAX_PROFILE_FILE_BYTES:
                return
        self.profile_files.setdefault(name, bytes(kept))

    def _write(self, name: str, stream: Iterator[bytes]) -> tuple[int, Finding | None]:
        limit = None if is_weights(name) else MAX_TEXT_BYTES
        written = 0
        digest = hashlib.sha256()
        with disk_errors(), (self.folder / name).open("xb") as file:
            for chunk in stream:
                written += len(chunk)
                self._received_bytes += len(chunk)
                if self._max_bytes is not None and self._received_bytes > self._max_bytes:
                    raise UploadTooLarge(self._max_bytes)
                if limit is not None and written > limit:
                    (self.folder / name).unlink()
                    return 0, Finding(
                        code="file_too_large", message=f"{name} is larger than {limit} bytes. Shorten it."
                    )
                file.write(chunk)
                digest.update(chunk)
                self._failpoints.reach("store.receiving")
        self.received[name] = digest.hexdigest()
        return written, None

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep the folder while the block runs, even where the request that it runs for is abandoned meanwhile.

        Raises:
            StoreUnavailable: it was abandoned already.
        """
        with self._guard:
            if self._closed:
                raise StoreUnavailable("the upload was abandoned")
            self._users += 1
        try:
            yield
        finally:
            with self._guard:
                self._users -= 1
            self._remove_unused()

    def close(self) -> None:
        """Remove the folder, now or when the last user is done with it."""
        with self._guard:
            self._closed = True
        self._remove_unused()

    def _remove_unused(self) -> None:
        with self._guard:
            unused = self._closed and self._users == 0
        if unused:
            shutil.rmtree(self.folder, ignore_errors=True)

    def leave_out(self, name: str) -> None:
        """Note that ``name`` lies beside the adapter, unread; a folder ends in a slash, hidden names do not count."""
        if not name.startswith("."):
            self._left_out.append(name)

    def replace(self, name: str, digest: str) -> None:
        """Note that the file ``name`` was written anew, and the SHA-256, in hex, of what was written."""
        self.received[name] = digest

    def drop(self, name: str) -> None:
        """Remove a file that another one took the place of."""
        with disk_errors():
            (self.folder / name).unlink(missing_ok=True)
        self.received.pop(name, None)

    def _judge(self, name: str, beginning: bytes) -> Finding | None:
        if not _is_bare(name.removesuffix("/")):
            message = f"{shown(name)} is not a bare file name. Send files without folders."
            return Finding(code="path_denied", message=message)
        if not is_taken(name):
            self.leave_out(name)
            return None
        if finding := refusal(name, beginning):
            return finding
        if (self.folder / name).exists():
            return Finding(code="duplicate_file", message=f"{shown(name)} was sent twice. Send each file once.")
        return None


def _first_chunks(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """First the file's beginning, as long as its magic bytes at least; then all its chunks, that beginning included."""
    source = iter(chunks)
    beginning = b""
    while len(beginning) < MAGIC_BYTES:
        chunk = next(source, None)
        if chunk is None:
            break
        beginning += chunk
    yield beginning
    yield beginning
    yield from source


def _is_bare(name: str) -> bool:
    unsafe_letters = any(letter in "/\\" or not letter.isprintable() for letter in name)
    return 0 < len(name) <= _LONGEST_FILE_NAME and not unsafe_letters and name not in (".", "..")
