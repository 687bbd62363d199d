"""Answers of batches that have not ended: ``batches/<id>/<run>.jsonl``. Each run of a batch writes a file of its own.

So a server that was taken for dead and goes on writing disturbs nobody, and a line that two of them answered is in
the output once: the answer of the earliest run counts. A line is written whole or, where its writer was killed, torn at
the very end of its file, and then it counts as not written. Everything here blocks.
"""

import os
import re
import shutil
import threading
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from amalgam.domain.batch import Tally
from amalgam.store.disk import disk_errors, make_private, open_private

_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_HEAD: Final = re.compile(rb"([0-9]{1,9}) ([+-]) ")
_OK: Final = {b"+": True, b"-": False}


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the answer to a line lies."""

    run: int
    begin: int
    length: int
    is_answered: bool


class BatchAnswers:
    """What has been answered of one batch, and where the answers of one more run go. Closed at the end.

    Args:
        folder: of the batch.
        run: number of this run; no other has it.
    """

    def __init__(self, folder: Path, run: int) -> None:
        self._folder = folder
        self._run = run
        self._places: dict[int, _Place] = {}
        self._completed = 0
        self._guard = threading.Lock()
        self.total = 0
        """Lines of the batch, as far as they are known."""
        with disk_errors():
            for number in sorted(int(path.stem) for path in folder.glob("*.jsonl")):
                self._read(number)
            self._descriptor = open_private(folder / f"{run}.jsonl")
            self._end = os.lseek(self._descriptor, 0, os.SEEK_END)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Write nothing more."""
        with self._guard:
            os.close(self._descriptor)
            self._descriptor = -1

    def __contains__(self, line: int) -> bool:
        return line in self._places

    def _read(self, run: int) -> None:
        begin = 0
        with (self._folder / f"{run}.jsonl").open("rb") as file:
            for text in file:
                head = _HEAD.match(text)
                if head is not None and text.endswith(b"\n"):
                    place = _Place(run, begin + head.end(), len(text) - head.end(), _OK[head[2]])
                    self._put(int(head[1]), place)
                begin += len(text)

    def _put(self, line: int, place: _Place) -> None:
        if line not in self._places:
            self._places[line] = place
            self._completed += place.is_answered

    def add(self, line: int, text: bytes, *, is_answered: bool) -> None:
        """Write what a line came to, one line of JSON without its end.

        Raises:
            StoreUnavailable: the disk is full or failing.
        """
        head = b"%d %s " % (line, b"+" if is_answered else b"-")
        with self._guard, disk_errors():
            if self._descriptor < 0 or line in self._places:
                return
            whole = head + text + b"\n"
            written = os.pwrite(self._descriptor, whole, self._end)
            while written < len(whole):
                written += os.pwrite(self._descriptor, whole[written:], self._end + written)
            self._put(line, _Place(self._run, self._end + len(head), len(text) + 1, is_answered))
            self._end += len(whole)

    @property
    def tally(self) -> Tally:
        """Lines in all, answered and refused."""
        known = len(self._places)
        return Tally(max(self.total, known), self._completed, known - self._completed)

    def lines(self, *, answered: bool) -> Iterator[bytes]:
        """Answers, or refusals, each with its line end, in the order of the batch's lines.

        Raises:
            StoreUnavailable: the disk is failing.
        """
        wanted = sorted((line, place) for line, place in self._places.items() if place.is_answered is answered)
        files: dict[int, int] = {}
        with disk_errors():
            try:
                for _, place in wanted:
                    if place.run not in files:
                        files[place.run] = os.open(self._folder / f"{place.run}.jsonl", os.O_RDONLY)
                    yield os.pread(files[place.run], place.length, place.begin)
            finally:
                for descriptor in files.values():
                    os.close(descriptor)


class BatchRuns:
    """The answers of all batches that have not ended.

    Args:
        root: of the store.
    """

    def __init__(self, root: Path) -> None:
        self._root = root / "batches"

    @classmethod
    def open(cls, root: Path) -> "BatchRuns":
        """Use the store in ``root``. Raises StoreUnavailable where it cannot be made."""
        runs = cls(root)
        with disk_errors():
            make_private(runs._root)
        return runs

    def begin(self, batch_id: str, run: int) -> BatchAnswers:
        """What earlier runs have answered, with a place for the answers of this one. Raises StoreUnavailable."""
        folder = self._folder(batch_id)
        with disk_errors():
            make_private(folder)
        return BatchAnswers(folder, run)

    def _folder(self, batch_id: str) -> Path:
        assert _ID.fullmatch(batch_id), "an id is made here"
        return self._root / batch_id

    def remove(self, batch_id: str) -> None:
        """Remove all answers of a batch whose files are written. Raises StoreUnavailable."""
        with disk_errors():
            shutil.rmtree(self._folder(batch_id), ignore_errors=True)

    def sweep(self, live: Collection[str], *, now: float, grace_s: float) -> int:
        """Remove the answers of batches that have ended, after ``grace_s`` seconds; returns of how many."""
        removed = 0
        with disk_errors():
            for folder in self._root.iterdir():
                try:
                    is_old = now - folder.stat().st_mtime > grace_s
                except FileNotFoundError:
                    continue
                if folder.name not in live and is_old:
                    shutil.rmtree(folder, ignore_errors=True)
                    removed += 1
        return removed
