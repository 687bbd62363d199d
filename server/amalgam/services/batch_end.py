"""The end of a batch: its output and error files are written, and become known in the moment in which it has ended."""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from amalgam.domain.batch import Batch, BatchStatus
from amalgam.domain.stored_file import FileDraft
from amalgam.errors import AmalgamError
from amalgam.errors.batches import BatchStopped, BatchUnusable
from amalgam.errors.registry import RegistryUnavailable, StoreUnavailable
from amalgam.registry.batches import BatchRegistry
from amalgam.store.batch_answers import BatchAnswers, BatchRuns
from amalgam.store.file_store import FileStore

logger = logging.getLogger(__name__)

_PASSED_ON = (BatchStopped, RegistryUnavailable, StoreUnavailable)


class BatchEnd:
    """Ends batches.

    Args:
        registry: of batches.
        files: where output and errors go.
        runs: where the answers are until then.
        new_id: of files.
    """

    def __init__(self, registry: BatchRegistry, files: FileStore, runs: BatchRuns, new_id: Callable[[], str]) -> None:
        self._registry = registry
        self._files = files
        self._runs = runs
        self._new_id = new_id

    async def finish(
        self, batch: Batch, holder: str, answers: BatchAnswers, failure: BaseException | None, *, is_whole: bool
    ) -> Batch:
        """Write what there is, and say how it ended.

        Args:
            batch: as it was last.
            holder: who has it.
            answers: that were written.
            failure: why the work ended early; None: it did not, or the batch was cancelled, or its time was over.
            is_whole: whether every line has an answer.

        Raises:
            BatchStopped, RegistryUnavailable, StoreUnavailable: it has not ended.
        """
        if isinstance(failure, _PASSED_ON):
            raise failure
        if isinstance(failure, BatchUnusable):
            ended = await self._registry.finish(batch, holder, "failed", answers.tally, (), failure.problems)
            await self._removed(batch.id)
            return ended
        status, errors = self._outcome(batch, failure, is_whole=is_whole)
        if status == "completed":
            await self._registry.move(batch.id, holder, "finalizing", answers.tally)
        written = await asyncio.to_thread(self._write, batch, answers)
        ended = await self._registry.finish(batch, holder, status, answers.tally, written, errors)
        await self._removed(batch.id)
        return ended

    def _outcome(
        self, batch: Batch, failure: BaseException | None, *, is_whole: bool
    ) -> tuple[BatchStatus, Sequence[Mapping[str, Any]] | None]:
        if failure is not None:
            if not isinstance(failure, AmalgamError):
                logger.error("batch_failed batch=%s", batch.id, exc_info=failure)
                failure = AmalgamError("A fault of the server; its log says why. Create another batch.")
            problem = {"code": failure.code, "message": failure.message, "param": failure.param, "line": None}
            return "failed", [problem]
        if batch.cancelling_at is not None:
            return "cancelled", None
        return ("completed" if is_whole else "expired"), None

    def _write(self, batch: Batch, answers: BatchAnswers) -> list[FileDraft]:
        """Output and errors, in this order."""
        found = []
        for answered, name in ((True, "output"), (False, "error")):
            file_id = self._new_id()
            size = self._files.keep(file_id, answers.lines(answered=answered))
            found.append(FileDraft(file_id, "batch_output", f"{batch.id}_{name}.jsonl", size, batch.output_kept_s))
        return found

    async def _removed(self, batch_id: str) -> None:
        """What is not removed now is swept later."""
        try:
            await asyncio.to_thread(self._runs.remove, batch_id)
        except StoreUnavailable as error:
            logger.warning("batch_answers_left batch=%s reason=%s", batch_id, error)
