"""A store whose adapters lie in a bucket; its folder keeps copies of those that this host uses, as far as they fit.

Published files are in the bucket before any row names them. A copy is made once, whoever waits for it, and is used only
if its bytes have the digest that was asked for; one that is found damaged later is fetched again.
"""

import asyncio
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from weakref import WeakValueDictionary

from amalgam.domain.failpoints import NO_FAILPOINTS, Failpoints
from amalgam.errors.adapters import ArtifactDamaged
from amalgam.errors.registry import ObjectStoreUnavailable
from amalgam.store.adapter_store import AdapterStore, StoredAdapter
from amalgam.store.artifact_checks import ArtifactChecks, content_digest
from amalgam.store.bucket import Bucket
from amalgam.store.disk import disk_errors, locked
from amalgam.store.staging import Staging

logger = logging.getLogger(__name__)

_REFUSED_S: Final = 30.0
"""The bucket is not asked again before for what it lost, or has wrong bytes of."""
_RECENT_S: Final = 60.0
"""A copy that was asked for so lately stays: whoever asked may not have opened it yet."""


def _nothing() -> Collection[str]:
    return ()


class BucketStore(AdapterStore):
    """See `AdapterStore`: every call means the same.

    Attributes:
        in_use: the digests of copies that must stay, such as those in the engine's memory.
        is_read_elsewhere: whether engines in processes of their own fetch what they need, and this one needs no copy.
    """

    def __init__(
        self,
        root: Path,
        bucket: Bucket,
        announce: Callable[[str], None],
        *,
        max_bytes: int,
        answer_s: float,
        failpoints: Failpoints = NO_FAILPOINTS,
        checks: ArtifactChecks | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Build it; `open_in` makes its folders.

        Args:
            root: Folder of the copies.
            bucket: Where adapters lie.
            announce: Told of a digest before its files are written, in the thread that writes them; it raises where
                they must not be.
            max_bytes: Of all copies together; a single one may be larger.
            answer_s: Longest wait of a request for a copy, seconds.
            failpoints: Where tests end the process.
            checks: Of the copies.
            clock: Monotonic seconds.
        """
        super().__init__(root, failpoints, checks)
        self._bucket = bucket
        self._announce = announce
        self._max_bytes = max_bytes
        self._answer_s = answer_s
        self._clock = clock
        self._guard = threading.Lock()
        self._flights: WeakValueDictionary[str, threading.Lock] = WeakValueDictionary()
        self._refused_until: dict[str, float] = {}
        self.in_use: Callable[[], Collection[str]] = _nothing
        self.is_read_elsewhere = False

    def publish(self, staging: Staging) -> StoredAdapter:
        """Publishes as `AdapterStore.publish`; the files are in the bucket when this returns.

        Raises:
            ObjectStoreUnavailable: the bucket does not answer, or files of the digest are just being removed.
        """
        digest = self.digest(staging)
        self._announce(digest)
        stored = super().publish(staging)
        folder = self._folder_of(digest)
        if not self._bucket.keep(digest, folder) and not self._is_whole(digest):
            self._bucket.replace(digest, folder)
        self._refused_until.pop(digest, None)
        return stored

    def is_here(self, digest: str) -> bool:
        """Whether `path` has no way to go for it."""
        return self._folder_of(digest).is_dir() and not self.checks.is_damaged(digest)

    def path(self, digest: str) -> Path:
        """Answers as `AdapterStore.path`; a copy is fetched where there is none, or a damaged one.

        Raises:
            ArtifactDamaged: the bucket has lost it, or has other bytes.
            ObjectStoreUnavailable: the bucket does not answer.
        """
        if not self.is_here(digest):
            with self._one_at_a_time(digest):
                if not self.is_here(digest):
                    self._bring(digest)
        folder = self._folder_of(digest)
        with disk_errors():
            os.utime(folder)
        return folder

    async def ready(self, digest: str) -> Path:
        """Answers as `AdapterStore.ready`; where a copy is fetched, others go on meanwhile.

        Raises:
            ObjectStoreUnavailable: the bucket does not answer, or not in time; the fetch goes on for the next.
        """
        if self.is_here(digest):
            return self.path(digest)
        try:
            async with asyncio.timeout(self._answer_s):
                return await asyncio.to_thread(self.path, digest)
        except TimeoutError:
            raise ObjectStoreUnavailable(f"fetching takes longer than {self._answer_s:g} seconds") from None

    async def for_engine(self, digest: str) -> Path:
        """Answers as `AdapterStore.for_engine`; for engines elsewhere, that find files by digest, a name and no folder.

        Raises:
            ArtifactDamaged, ObjectStoreUnavailable: as `ready`.
        """
        return self._folder_of(digest) if self.is_read_elsewhere else await self.ready(digest)

    def verify(self, digest: str) -> None:
        """Verifies as `AdapterStore.verify` the copy, if there is one, and the bucket.

        Raises:
            ArtifactDamaged: files are missing, or not the bytes that were published.
            ObjectStoreUnavailable: the bucket does not answer.
        """
        if self._folder_of(digest).is_dir():
            super().verify(digest)
        if not self._is_whole(digest):
            raise ArtifactDamaged(digest)

    def kept_digests(self) -> frozenset[str]:
        """Every digest that has something in the bucket."""
        return self._bucket.digests()

    def remove_kept(self, digest: str) -> None:
        """Remove the files of a digest that no row names from the bucket."""
        self._bucket.remove(digest)

    def _is_whole(self, digest: str) -> bool:
        """Whether the bucket has the right bytes; reads all of them."""
        with self._scratch() as folder, disk_errors():
            return self._bucket.fetch(digest, folder) and content_digest(folder)[0] == digest

    def _bring(self, digest: str) -> None:
        if self._clock() < self._refused_until.get(digest, 0.0):
            raise ArtifactDamaged(digest)
        self._make_room(self._bucket.size(digest))
        with self._scratch() as folder, disk_errors():
            if self._bucket.fetch(digest, folder) and content_digest(folder)[0] == digest:
                for file in folder.iterdir():
                    file.chmod(0o444)
                os.utime(folder)
                self._move_in(folder, digest)
                self.checks.forget(digest)
                return
        self._refused_until[digest] = self._clock() + _REFUSED_S
        self.checks.refuse(digest)
        raise ArtifactDamaged(digest)

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        """A folder beside the copies, gone at the end unless it was moved to its place."""
        with disk_errors():
            folder = Path(tempfile.mkdtemp(dir=self._staging))
        try:
            with locked(folder):
                yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def _one_at_a_time(self, digest: str) -> Iterator[None]:
        with self._guard:
            flight = self._flights.setdefault(digest, threading.Lock())
        with flight:
            yield

    def _make_room(self, wanted_bytes: int) -> None:
        """Remove the copies that were used longest ago until ``wanted_bytes`` more would fit."""
        with disk_errors():
            copies = sorted(_copies(self._objects, self.digests()))
            left = sum(size for _, size, _ in copies) + wanted_bytes - self._max_bytes
            if left <= 0:
                return
            os.utime(self._staging)
            oldest = self._staging.stat().st_mtime - _RECENT_S
            needed = frozenset(self.in_use())
            for used_at, size, digest in copies:
                if left <= 0 or used_at > oldest:
                    return
                if digest not in needed and self.remove(digest, now=used_at):
                    logger.info("copy_removed digest=%s bytes=%d", digest[:12], size)
                    left -= size


def _copies(objects: Path, digests: Collection[str]) -> Iterator[tuple[float, int, str]]:
    """When each copy was last used, its bytes, and its digest; without those that another process just removed."""
    for digest in digests:
        folder = objects / digest[:2] / digest
        try:
            size = sum(file.stat().st_size for file in folder.iterdir())
            yield folder.stat().st_mtime, size, digest
        except FileNotFoundError:
            continue
