"""The first look at a batch: which of its lines are requests that the key may send, before any of them is asked."""

import asyncio
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from amalgam.domain.batch import MAX_PROBLEMS, Batch
from amalgam.errors import AmalgamError
from amalgam.errors.batches import BatchKeyEnded, BatchUnusable, EmptyFile, FileNotFound, InvalidBatchLine, TooManyLines
from amalgam.errors.registry import RegistryUnavailable
from amalgam.services.batch_lines import BatchLine, LineAsker, problem_view, written_problem
from amalgam.store.batch_answers import BatchAnswers
from amalgam.store.file_store import FileStore

BLOCK: Final = 64
"""So many lines are read at once, on a thread."""
_REMEMBERED: Final = 1024

Numbered = tuple[int, BatchLine]


class BatchLines:
    """The lines of a batch's file, read a block at a time, so that no file has to fit into memory.

    Args:
        batch: whose file.
        files: where it lies.
        asker: reads a line.
        max_bytes: of one line.
    """

    def __init__(self, batch: Batch, files: FileStore, asker: LineAsker, max_bytes: int) -> None:
        self._batch = batch
        self._asker = asker
        self._max_bytes = max_bytes
        self._source = files.lines(batch.input_file, max_bytes)

    async def block(self) -> Sequence[Numbered]:
        """The next lines; none at the end. Raises FileNotFound, StoreUnavailable."""
        return await asyncio.to_thread(lambda: [self._read(*one) for one in islice(self._source, BLOCK)])

    def _read(self, number: int, raw: bytes | None) -> Numbered:
        if raw is None:
            too_long = InvalidBatchLine(f"is longer than {self._max_bytes} bytes")
            return number, BatchLine(None, problem=too_long)
        return number, self._asker.read(raw, self._batch.endpoint)


@dataclass(slots=True)
class _Seen:
    """What the look has found so far."""

    ids: set[bytes]
    models: dict[str | None, AmalgamError | None]
    problems: list[dict[str, Any]]
    usable: int = 0


class BatchCheck:
    """Looks at batches.

    Args:
        files: where the files lie.
        asker: knows what the key may ask for.
        max_lines: of a batch.
        max_line_bytes: of a line.
    """

    def __init__(self, files: FileStore, asker: LineAsker, max_lines: int, max_line_bytes: int) -> None:
        self._files = files
        self._asker = asker
        self._max_lines = max_lines
        self._max_line_bytes = max_line_bytes

    def lines(self, batch: Batch) -> BatchLines:
        """The lines of a batch, from the first."""
        return BatchLines(batch, self._files, self._asker, self._max_line_bytes)

    async def check(self, batch: Batch, answers: BatchAnswers) -> None:
        """Write a refusal for every line that is no request which the key may send, and count all lines.

        Raises:
            BatchUnusable: nothing is left, or there are too many lines.
            BatchKeyEnded: the key is not valid any more.
            RegistryUnavailable, StoreUnavailable: it cannot be told now.
        """
        lines, seen, total = self.lines(batch), _Seen(set(), {}, []), 0
        try:
            while block := await lines.block():
                total += len(block)
                if total > self._max_lines:
                    raise BatchUnusable([problem_view(None, TooManyLines(self._max_lines))])
                for number, line in block:
                    await self._look(batch, answers, number, line, seen)
        except FileNotFound as error:
            raise BatchUnusable([problem_view(None, error)]) from error
        if not seen.usable:
            raise BatchUnusable(seen.problems or [problem_view(None, EmptyFile())])
        answers.total = total

    async def _look(self, batch: Batch, answers: BatchAnswers, number: int, line: BatchLine, seen: _Seen) -> None:
        problem = line.problem or _repeated(line, seen) or await self._refusal(batch, line, seen)
        if problem is None:
            seen.usable += 1
            return
        if len(seen.problems) < MAX_PROBLEMS:
            seen.problems.append(problem_view(number, problem))
        text = written_problem(batch.id, number, line, problem)
        await asyncio.to_thread(answers.add, number, text, is_answered=False)

    async def _refusal(self, batch: Batch, line: BatchLine, seen: _Seen) -> AmalgamError | None:
        """Why the key may not ask for the line's model; each name is looked for once."""
        model = None if line.body is None else line.body.get("model")
        name = model if isinstance(model, str) else None
        if name not in seen.models:
            if len(seen.models) >= _REMEMBERED:
                seen.models.clear()
            seen.models[name] = await self._refused(batch, name)
        return seen.models[name]

    async def _refused(self, batch: Batch, name: str | None) -> AmalgamError | None:
        try:
            await self._asker.require(batch, name)
        except (BatchKeyEnded, RegistryUnavailable):
            raise
        except AmalgamError as error:
            # What a later try may not meet is for when the line is asked.
            return error if error.retry_after_s is None else None
        return None


def _repeated(line: BatchLine, seen: _Seen) -> AmalgamError | None:
    digest = hashlib.sha256((line.custom_id or "").encode(errors="surrogatepass")).digest()[:16]
    if digest in seen.ids:
        return InvalidBatchLine("has the custom_id of an earlier line")
    seen.ids.add(digest)
    return None


def unanswered(block: Sequence[Numbered], answers: BatchAnswers) -> Iterator[Numbered]:
    """Those lines of a block that nothing is written of yet."""
    return (one for one in block if one[0] not in answers)
