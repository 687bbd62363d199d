"""Exports below one root: ``NAME/`` is a whole checkpoint and never changes; nothing else of that name is ever seen.

A writer works in a hidden folder of its own, holds its lock, which dies with it, and renames it when all of it is on
the disk. Names are single path components by their grammar, links are refused, and what is there is never overwritten.
What writers that died left behind is removed by the next one. Everything here blocks.
"""

import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from amalgam.domain.adapter import is_name
from amalgam.domain.export import RECORD_FILE, ExportRecord
from amalgam.domain.failpoints import NO_FAILPOINTS, Failpoints
from amalgam.errors.adapters import InvalidName, NameTaken
from amalgam.errors.exports import DiskTooSmall, ExportNotFound
from amalgam.store.disk import disk_errors, is_held, locked, make_durable, sync_folder

PUBLISH_STEPS: Final = ("export.staged", "export.synced", "export.renamed", "export.published")
"""The failpoints are in the order they are reached."""

_PREFIX: Final = ".amalgam-export-"
_SPARE_BYTES: Final = 16 << 20
"""So much is left on the disk beside the weights: the record, folders, a log's next lines."""
_MAX_RECORD_BYTES: Final = 64 << 20


class ExportStaging:
    """A hidden folder that one export is put together in."""

    def __init__(self, folder: Path, lock: int) -> None:
        self.folder = folder
        self._lock = lock

    def close(self) -> None:
        """Remove it, unless it was published."""
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)


class ExportFolders:
    """One root; any number of processes may use it at once."""

    def __init__(self, root: Path, failpoints: Failpoints = NO_FAILPOINTS) -> None:
        self.root = root
        self._failpoints = failpoints

    def require_room(self, size_bytes: int) -> None:
        """Refuse what the disk has no space for.

        Raises:
            DiskTooSmall: less than ``size_bytes`` and a little more is free.
            StoreUnavailable: the root cannot be made or read.
        """
        with disk_errors():
            self.root.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.root).free
        if size_bytes + _SPARE_BYTES > free:
            raise DiskTooSmall(size_bytes + _SPARE_BYTES, free)

    def find(self, name: str) -> ExportRecord | None:
        """The record of the export ``name``; None where nothing has the name.

        Raises:
            InvalidName: no name of an export.
            NameTaken: something has the name that is no export of ours.
        """
        if not is_name(name):
            raise InvalidName(name)
        folder = self.root / name
        if not os.path.lexists(folder):
            return None
        record = None if folder.is_symlink() else read_record(folder)
        if record is None:
            raise self.taken(name)
        return record

    @staticmethod
    def taken(name: str) -> NameTaken:
        """The refusal of a name that something has."""
        return NameTaken(name, "move away what has it; exports are never overwritten")

    def get(self, name: str) -> ExportRecord:
        """The record of the export ``name``.

        Raises:
            ExportNotFound: there is none.
        """
        try:
            record = self.find(name)
        except (InvalidName, NameTaken):
            record = None
        if record is None:
            raise ExportNotFound(name)
        return record

    def list(self) -> dict[str, ExportRecord]:
        """Every export, in order of name."""
        if not self.root.is_dir():
            return {}
        with disk_errors():
            names = sorted(name for name in os.listdir(self.root) if is_name(name))
        found = {name: read_record(self.root / name) for name in names if not (self.root / name).is_symlink()}
        return {name: record for name, record in found.items() if record is not None}

    def stage(self) -> ExportStaging:
        """A fresh hidden folder, locked; those of writers that died are removed first.

        Raises:
            StoreUnavailable: it cannot be made.
        """
        with disk_errors():
            self.root.mkdir(parents=True, exist_ok=True)
            # Between being made and being held a folder looks like a dead writer's, so one writer at a time.
            with locked(self.root):
                self._sweep()
                folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=self.root))
                lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
                fcntl.flock(lock, fcntl.LOCK_EX)
        self._failpoints.reach("export.staged")
        return ExportStaging(folder, lock)

    def sync(self, staging: ExportStaging) -> None:
        """Have everything that was staged on the disk when this returns: the long part of publishing.

        Raises:
            StoreUnavailable: the disk is full or failing.
        """
        with disk_errors():
            for path in sorted(staging.folder.iterdir()):
                make_durable(path)
            sync_folder(staging.folder)
        self._failpoints.reach("export.synced")

    def publish(self, staging: ExportStaging, name: str) -> None:
        """Give what was staged and synced its name, in one step.

        Raises:
            NameTaken: something has the name.
            StoreUnavailable: the disk is failing; the name is free or means the whole export.
        """
        target = self.root / name
        with disk_errors(), locked(self.root):
            if os.path.lexists(target):
                raise self.taken(name)
            staging.folder.chmod(0o755)
            staging.folder.rename(target)
            self._failpoints.reach("export.renamed")
            sync_folder(self.root)
        self._failpoints.reach("export.published")

    def retract(self, name: str, export_digest: str) -> None:
        """Take back the export ``name`` if it is that one: its job was cancelled in the moment it was published."""
        with disk_errors(), locked(self.root):
            record = read_record(self.root / name)
            if record is None or record.export_digest != export_digest:
                return
            hidden = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=self.root))
            (self.root / name).rename(hidden / "retracted")
            sync_folder(self.root)
        shutil.rmtree(hidden, ignore_errors=True)

    def _sweep(self) -> None:
        for found in self.root.glob(f"{_PREFIX}*"):
            if _is_abandoned(found):
                shutil.rmtree(found, ignore_errors=True)


def _is_abandoned(folder: Path) -> bool:
    """Whether it is a writer's folder and the writer is gone."""
    try:
        return folder.is_dir() and not folder.is_symlink() and not is_held(folder)
    except OSError:
        return False


def read_record(folder: Path) -> ExportRecord | None:
    """What lies in ``folder``, where it is an export: also of another root, and of a base model."""
    path = folder / RECORD_FILE
    try:
        if path.stat().st_size > _MAX_RECORD_BYTES:
            return None
        return ExportRecord.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
