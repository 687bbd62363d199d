"""Files and batches in OpenAI's shapes, which its client libraries read as they stand."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from amalgam.domain.batch import Batch, BatchPage, BatchStatus
from amalgam.domain.stored_file import FilePage, FilePurpose, StoredFile

MIN_KEPT_S = 3600
MAX_KEPT_S = 30 * 86_400
Seconds = Annotated[int, Field(ge=MIN_KEPT_S, le=MAX_KEPT_S, description="seconds", examples=[86400])]
_MetadataKey = Annotated[str, Field(max_length=64)]
_MetadataValue = Annotated[str, Field(max_length=512)]


class ExpiresAfter(BaseModel):
    """When a file is forgotten."""

    anchor: Literal["created_at"]
    seconds: Seconds


class FileView(BaseModel):
    """A stored file."""

    id: str = Field(examples=["file-8f14e45fceea4e6f9d5c1f6a2b7c3d90"])
    object: Literal["file"] = "file"
    bytes: int = Field(examples=[1234])
    created_at: int = Field(description="Unix seconds", examples=[1767225600])
    expires_at: int = Field(description="Unix seconds; the file is forgotten then", examples=[1769817600])
    filename: str = Field(examples=["questions.jsonl"])
    purpose: FilePurpose = Field(examples=["batch"])
    status: Literal["processed"] = "processed"

    @classmethod
    def of(cls, file: StoredFile) -> "FileView":
        """The view of ``file``."""
        return cls(
            id=file.id,
            bytes=file.bytes,
            created_at=_seconds(file.created_at),
            expires_at=_seconds(file.expires_at),
            filename=file.filename,
            purpose=file.purpose,
        )


class FileListView(BaseModel):
    """A page of files."""

    object: Literal["list"] = "list"
    data: tuple[FileView, ...]
    first_id: str | None
    last_id: str | None = Field(description="pass it back as after")
    has_more: bool

    @classmethod
    def of(cls, page: FilePage) -> "FileListView":
        """The view of ``page``."""
        data = tuple(map(FileView.of, page.items))
        return cls(data=data, **_ends([one.id for one in data]), has_more=page.has_more)


class FileDeletedView(BaseModel):
    """A file that is there no more."""

    id: str = Field(examples=["file-8f14e45fceea4e6f9d5c1f6a2b7c3d90"])
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


class BatchBody(BaseModel):
    """What is to be answered, and where."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    input_file_id: str = Field(max_length=64, description="a file of purpose batch", examples=["file-8f14e45fceea4e6f"])
    endpoint: Literal["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"] = Field(
        description="endpoint of every line", examples=["/v1/chat/completions"]
    )
    completion_window: Literal["24h"]
    metadata: Annotated[dict[_MetadataKey, _MetadataValue], Field(max_length=16)] | None = Field(
        None, examples=[{"run": "nightly"}]
    )
    output_expires_after: ExpiresAfter | None = Field(
        None, description="when the output files expire; else after 30 days"
    )


class BatchErrorView(BaseModel):
    """Why a batch failed as a whole, or one line of it."""

    code: str = Field(examples=["invalid_batch_line"])
    message: str
    param: str | None
    line: int | None = Field(description="line of the input file, from 1", examples=[1])


class BatchErrorsView(BaseModel):
    """All of them; of many the first."""

    object: Literal["list"] = "list"
    data: tuple[BatchErrorView, ...]


class RequestCountsView(BaseModel):
    """Lines of a batch."""

    total: int = Field(examples=[100])
    completed: int = Field(description="requests that were answered", examples=[98])
    failed: int = Field(description="requests that were refused", examples=[2])


class BatchView(BaseModel):
    """A batch. Moments are Unix seconds."""

    id: str = Field(examples=["batch_8f14e45fceea4e6f9d5c1f6a2b7c3d90"])
    object: Literal["batch"] = "batch"
    endpoint: str = Field(examples=["/v1/chat/completions"])
    errors: BatchErrorsView | None = Field(description="why it failed as a whole", examples=[None])
    input_file_id: str = Field(examples=["file-8f14e45fceea4e6f9d5c1f6a2b7c3d90"])
    completion_window: Literal["24h"] = "24h"
    status: BatchStatus = Field(examples=["completed"])
    output_file_id: str | None = Field(description="answers, once it has ended", examples=["file-1"])
    error_file_id: str | None = Field(description="refusals, once it has ended", examples=[None])
    created_at: int = Field(examples=[1767225600])
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCountsView
    metadata: Mapping[str, str] | None

    @classmethod
    def of(cls, batch: Batch) -> "BatchView":
        """The view of ``batch``."""
        moments = {name: getattr(batch, name) for name in cls.model_fields if name.endswith("_at")}
        errors = None if batch.errors is None else tuple(BatchErrorView.model_validate(one) for one in batch.errors)
        return cls(
            id=batch.id,
            endpoint=batch.endpoint,
            errors=None if errors is None else BatchErrorsView(data=errors),
            input_file_id=batch.input_file,
            status=batch.status,
            output_file_id=batch.output_file,
            error_file_id=batch.error_file,
            request_counts=RequestCountsView(total=batch.total, completed=batch.completed, failed=batch.failed),
            metadata=batch.metadata,
            **{name: None if moment is None else _seconds(moment) for name, moment in moments.items()},
        )


class BatchListView(BaseModel):
    """A page of batches, newest first."""

    object: Literal["list"] = "list"
    data: tuple[BatchView, ...]
    first_id: str | None
    last_id: str | None = Field(description="pass it back as after")
    has_more: bool

    @classmethod
    def of(cls, page: BatchPage) -> "BatchListView":
        """The view of ``page``."""
        data = tuple(map(BatchView.of, page.items))
        return cls(data=data, **_ends([one.id for one in data]), has_more=page.has_more)


def _seconds(moment: datetime) -> int:
    return int(moment.timestamp())


def _ends(ids: list[str]) -> dict[str, Any]:
    return {"first_id": ids[0] if ids else None, "last_id": ids[-1] if ids else None}
