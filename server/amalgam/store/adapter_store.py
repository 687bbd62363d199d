"""Adapter files by content: ``objects/ab/abcd…/`` holds the files whose digest is ``abcd…``, for ever the same.

Publishing goes stage -> fsync -> verify -> rename -> fsync, and only then may a row name the digest. A crash in between
leaves a folder that no row names; `AdapterStore.sweep` removes it after a grace period. Everything here blocks.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from amalgam.domain.failpoints import NO_FAILPOINTS, Failpoints
from amalgam.errors.adapters import ArtifactDamaged, InvalidAdapter
from amalgam.errors.findings import Finding
from amalgam.store.artifact_checks import ArtifactChecks, content_digest
from amalgam.store.disk import disk_errors, is_held, locked, make_durable, make_private, sync_folder
from amalgam.store.file_rules import CONTENT_FILES, KEPT_FILES, shown
from amalgam.store.staging import Staging

PUBLISH_STEPS: Final = (
    "store.staged",
    "store.receiving",
    "store.synced",
    "store.verified",
    "store.renamed",
    "store.published",
)
"""The failpoints are in the order they are reached; ``store.receiving`` comes once a chunk."""

OBJECTS: Final = "objects"
"""The folder of published files has this name, below a store's."""
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_CHUNK_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class StoredAdapter:
    """Files that are durable and verified."""

    digest: str
    """It is the SHA-256, in hex, over the names, sizes and SHA-256 of `CONTENT_FILES`."""
    size_bytes: int
    created: bool
    """It is False where the same files were there already."""


@dataclass(frozen=True, slots=True)
class SweepReport:
    """What a sweep removed."""

    objects: tuple[str, ...]
    """They are digests that no row named."""
    staging: int
    """So many folders were left by writers that died."""


class AdapterStore:
    """One store folder; any number of processes may use it at once.

    `checks` knows which files were found damaged; every use but a copy of theirs asks it first.
    """

    def __init__(self, root: Path, failpoints: Failpoints, checks: ArtifactChecks | None = None) -> None:
        self.root = root
        self._objects = root / OBJECTS
        self._staging = root / "staging"
        self.spool = root / "spool"
        """Of what arrives and is not looked at yet; its files have no names, and end with who writes them."""
        self._failpoints = failpoints
        self.checks = checks or ArtifactChecks(self._objects)

    @classmethod
    def open(
        cls, root: Path, *, failpoints: Failpoints = NO_FAILPOINTS, checks: ArtifactChecks | None = None
    ) -> "AdapterStore":
        """Use the store in ``root``, made if absent; what is in it is for the owner alone, whatever the umask.

        Args:
            checks: of this store, where somebody else checks by them too.

        Raises:
            StoreUnavailable: it cannot be made.
        """
        store = cls(root, failpoints, checks)
        store.make_folders()
        return store

    def make_folders(self) -> None:
        """Make what is missing of its folders, and take them away from others.

        Raises:
            StoreUnavailable: they cannot be made.
        """
        with disk_errors():
            if not self.root.exists():
                make_private(self.root)
            for folder in (self._objects, self._staging, self.spool):
                make_private(folder)

    @contextmanager
    def stage(self, *, max_bytes: int | None = None) -> Iterator[Staging]:
        """A fresh staging folder, removed at the end unless it was published.

        Args:
            max_bytes: Limit on all files received together; None for none.

        Raises:
            StoreUnavailable: the disk is full or failing.
        """
        with disk_errors():
            folder = Path(tempfile.mkdtemp(dir=self._staging))
        staging = Staging(folder, max_bytes=max_bytes, failpoints=self._failpoints)
        try:
            # The lock tells a sweep that the writer is alive, however slow its upload.
            with locked(folder):
                self._failpoints.reach("store.staged")
                yield staging
        finally:
            staging.close()

    def publish(self, staging: Staging) -> StoredAdapter:
        """Make the staged files durable under their digest. Publishing the same bytes twice, at once or later, is fine.

        Files of the same digest that are found damaged are replaced. Validation is the caller's and comes before.

        Raises:
            InvalidAdapter: a file of `CONTENT_FILES` is missing, or something else lies in the folder.
            StoreUnavailable: the disk is full or failing; nothing was published. Stage the files afresh to try again.
        """
        folder = staging.folder
        with disk_errors(), staging.in_use():
            _check_contents(folder)
            for name in sorted(os.listdir(folder)):
                make_durable(folder / name)
            sync_folder(folder)
            self._failpoints.reach("store.synced")
            digest, size_bytes = content_digest(folder, staging.received)
            self._failpoints.reach("store.verified")
            os.utime(folder)
            created = self._move_in(folder, digest)
            self._failpoints.reach("store.published")
        return StoredAdapter(digest, size_bytes, created)

    def _move_in(self, folder: Path, digest: str) -> bool:
        """Rename ``folder`` to its place; False where sound files are there already."""
        target = self._folder_of(digest)
        with locked(self._objects):
            target.parent.mkdir(exist_ok=True)
            if not target.exists():
                folder.chmod(0o755)
                folder.rename(target)
                self._failpoints.reach("store.renamed")
                self._sync_entry(target)
                # What lay here before, damaged perhaps, is no more.
                self.checks.forget(digest)
                return True
            # From now on a sweep takes them for new, so they cannot vanish before a row names them. Whoever moved them
            # in may have died before it made that durable.
            os.utime(target)
            self._sync_entry(target)
        try:
            self.verify(digest)
        except ArtifactDamaged:
            with locked(self._objects):
                self._discard(target)
            return self._move_in(folder, digest)
        return False

    def _sync_entry(self, target: Path) -> None:
        try:
            sync_folder(target.parent)
            sync_folder(self._objects)
        except OSError:
            # A second fsync may claim success for what the first one lost, so nothing stays that could be found again.
            self._discard(target)
            raise

    def digest(self, staging: Staging) -> str:
        """The digest under which `publish` would store what was staged so far; stores nothing.

        Raises:
            StoreUnavailable: the files cannot be read back.
        """
        with disk_errors():
            return content_digest(staging.folder, staging.received)[0]

    def path(self, digest: str) -> Path:
        """The folder of that digest; its bytes are not checked.

        Raises:
            ArtifactDamaged: it is not there, or was found damaged.
        """
        folder = self._folder_of(digest)
        if self.checks.is_damaged(digest) or not folder.is_dir():
            # Asked again, so that it counts as found.
            self.checks.require_sound(digest)
        return folder

    def is_here(self, digest: str) -> bool:
        """Whether `path` would not have to fetch it from elsewhere first."""
        return True

    async def ready(self, digest: str) -> Path:
        """`path`, for the event loop: what has to be fetched first blocks nobody.

        Raises:
            ArtifactDamaged: it is not there, or was found damaged.
        """
        return self.path(digest)

    async def for_engine(self, digest: str) -> Path:
        """`ready`, where this process's own engine reads the files.

        Raises:
            ArtifactDamaged: as `ready`.
        """
        return await self.ready(digest)

    def verify(self, digest: str) -> None:
        """Read the files of that digest and compare; see `ArtifactChecks.verify`.

        Raises:
            ArtifactDamaged: they are missing, or not the bytes that were published.
        """
        self.checks.verify(digest)

    def digests(self) -> frozenset[str]:
        """Every digest that has files."""
        return frozenset(path.name for path in self._objects.glob("??/*") if _DIGEST.fullmatch(path.name))

    def remove(self, digest: str, *, now: float, grace_s: float = 0.0) -> bool:
        """Remove the files of a digest that no row names any more.

        Args:
            now: Seconds since the epoch.
            grace_s: Files published, or published again, within this many seconds stay: their row may be on its way.

        Returns: whether they are gone.
        """
        with disk_errors(), locked(self._objects):
            target = self._folder_of(digest)
            if not target.exists():
                return True
            if now - target.stat().st_mtime < grace_s:
                return False
            self._discard(target)
            self.checks.forget(digest)
            return True

    def sweep(self, known_digests: Collection[str], *, now: float, grace_s: float) -> SweepReport:
        """Remove files that no row names and staging folders whose writer is gone, both older than ``grace_s`` seconds.

        Args:
            known_digests: What rows and live jobs name; read before the call.
            now: Seconds since the epoch.
        """
        unknown = sorted(self.digests() - frozenset(known_digests))
        removed = tuple(digest for digest in unknown if self.remove(digest, now=now, grace_s=grace_s))
        stale = 0
        with disk_errors():
            for folder in self._staging.iterdir():
                if _is_stale(folder, now, grace_s):
                    shutil.rmtree(folder, ignore_errors=True)
                    stale += 1
        return SweepReport(removed, stale)

    def _folder_of(self, digest: str) -> Path:
        if not _DIGEST.fullmatch(digest):
            raise ValueError(f"not a digest: {digest!r}")
        return self.checks.folder(digest)

    def _discard(self, target: Path) -> None:
        """Take a folder out of sight in one step, then remove it; a crash in between leaves it to `sweep`."""
        bin_folder = Path(tempfile.mkdtemp(dir=self._staging))
        target.rename(bin_folder / "discarded")
        shutil.rmtree(bin_folder, ignore_errors=True)


def _check_contents(folder: Path) -> None:
    findings = []
    for entry in os.scandir(folder):
        if entry.name not in KEPT_FILES or not entry.is_file(follow_symlinks=False):
            message = f"{shown(entry.name)} is no file of an adapter. Leave it out."
            findings.append(Finding(code="unexpected_file", message=message))
    for name in CONTENT_FILES:
        if not (folder / name).is_file():
            findings.append(Finding(code="missing_file", message=f"{name} is missing. Save the adapter with PEFT."))
    if findings:
        raise InvalidAdapter(findings)


def _is_stale(folder: Path, now: float, grace_s: float) -> bool:
    try:
        newest = max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
        return now - newest >= grace_s and not is_held(folder)
    except FileNotFoundError:
        # Its writer ended, or published it, in this moment.
        return False
