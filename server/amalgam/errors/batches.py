"""Errors of stored files and batches, which are files of requests that are answered in time.

- files: FileNotFound, FileInUse, TooManyFiles, FileTooLarge
- asking: TooManyBatches, BatchNotFound, BatchStateConflict
- one line, or the file: InvalidBatchLine, EmptyFile, TooManyLines
- the run: BatchUnusable, BatchKeyEnded, BatchInterrupted, BatchStopped
"""

from collections.abc import Mapping, Sequence
from typing import Any

from amalgam.errors import AmalgamError, Conflict, InvalidRequest, NotFound, Unavailable


class FileNotFound(NotFound):
    """No file of that id that the key may know of.

    Next step: ``GET /v1/files`` lists them.
    """

    code = "file_not_found"
    param = "file_id"

    def __init__(self, file_id: str) -> None:
        super().__init__(f"No file has the id {file_id[:64]!r}. GET /v1/files lists them.")


class FileInUse(Conflict):
    """A file that a batch is still reading cannot be deleted.

    Next step: wait for the batch, or cancel it.
    """

    code = "file_in_use"
    param = "file_id"

    def __init__(self, file_id: str, batch_id: str) -> None:
        super().__init__(f"File {file_id} is read by batch {batch_id}. Wait for its end, or cancel it.")


class TooManyFiles(Conflict):
    """A tenant has as many files as it may have.

    Next step: delete some, or give them an earlier expiry.
    """

    code = "too_many_files"

    def __init__(self, limit: int) -> None:
        super().__init__(f"The tenant has {limit} files, which is as many as one may have. Delete some.")


class FileTooLarge(InvalidRequest):
    """A file is larger than ``AMALGAM_FILE_MAX_BYTES``.

    Next step: split it.
    """

    status = 413
    code = "batch_file_too_large"
    param = "file"

    def __init__(self, limit: int) -> None:
        super().__init__(f"A file has at most {limit} bytes (AMALGAM_FILE_MAX_BYTES). Split it into several.")


class TooManyBatches(Unavailable):
    """A tenant has as many batches that have not ended as it may have.

    Next step: repeat later, or cancel one.
    """

    status = 429
    code = "too_many_batches"
    type = "rate_limit_error"
    retry_after_s = 60.0

    def __init__(self, limit: int) -> None:
        super().__init__(f"{limit} batches of the tenant have not ended. Repeat when one has, or cancel one.")


class BatchNotFound(NotFound):
    """No batch of that id that the key may know of.

    Next step: ``GET /v1/batches`` lists them.
    """

    code = "batch_not_found"
    param = "batch_id"

    def __init__(self, batch_id: str) -> None:
        super().__init__(f"No batch has the id {batch_id[:64]!r}. GET /v1/batches lists them.")


class BatchStateConflict(Conflict):
    """A batch that has ended, or is about to, cannot be cancelled.

    Next step: look at it.
    """

    code = "batch_state_conflict"
    param = "batch_id"

    def __init__(self, batch_id: str, status: str) -> None:
        super().__init__(
            f"Batch {batch_id} is {status} and cannot be cancelled. GET /v1/batches/{batch_id} shows where it stands."
        )


class InvalidBatchLine(InvalidRequest):
    """A line of a batch's file that is no request to its endpoint; the other lines are answered all the same.

    Next step: mend the line and send it in another batch.
    """

    code = "invalid_batch_line"

    def __init__(self, reason: str) -> None:
        super().__init__(f"The line {reason}. Mend it and send it in another batch.")


class EmptyFile(InvalidRequest):
    """A file of a batch that has no lines.

    Next step: store one that has, and create another batch.
    """

    code = "empty_file"
    param = "input_file_id"

    def __init__(self) -> None:
        super().__init__("The file has no lines. Store one that has, and create another batch.")


class TooManyLines(InvalidRequest):
    """A batch has more lines than ``AMALGAM_BATCH_MAX_LINES``.

    Next step: split the file.
    """

    code = "too_many_lines"
    param = "input_file_id"

    def __init__(self, limit: int) -> None:
        super().__init__(f"A batch has at most {limit} lines (AMALGAM_BATCH_MAX_LINES). Split the file.")


class BatchUnusable(InvalidRequest):
    """A batch of which nothing can be answered; its ``errors`` say why.

    Next step: mend the file and create another batch.
    """

    code = "batch_unusable"
    param = "input_file_id"

    def __init__(self, problems: Sequence[Mapping[str, Any]]) -> None:
        self.problems = tuple(problems)
        super().__init__("Nothing of the batch can be answered; its errors say why. Mend the file and try again.")


class BatchKeyEnded(AmalgamError):
    """The key that created a batch has expired without a successor, or was revoked: nobody can be charged any more.

    Next step: create another batch with a key that is valid.
    """

    status = 401
    code = "batch_key_ended"
    type = "authentication_error"

    def __init__(self) -> None:
        super().__init__(
            "The key that created the batch has expired or was revoked. Create another batch, with a valid key."
        )


class BatchInterrupted(AmalgamError):
    """So many servers ended while they worked on a batch that it is not begun again; what was answered is kept.

    Next step: create another batch of the lines that have no answer.
    """

    code = "batch_interrupted"

    def __init__(self, attempts: int) -> None:
        super().__init__(
            f"{attempts} servers ended while they worked on the batch. Create another one of the lines without answer."
        )


class BatchStopped(AmalgamError):
    """A run of a batch that another server has taken over; only the log says so.

    Next step: nothing.
    """

    status = 409
    code = "batch_stopped"

    def __init__(self, batch_id: str) -> None:
        super().__init__(f"Batch {batch_id} does not run here any more; another server goes on with it.")
