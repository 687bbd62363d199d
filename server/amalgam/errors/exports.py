"""Errors of exports: whole checkpoints made of the base model and what an adapter adds to it."""

from typing import Final

from amalgam.errors import AmalgamError, InvalidRequest, NotFound


class ExportsOff(InvalidRequest):
    """An export on a server that has no place for them.

    Next step: set ``AMALGAM_EXPORT_ROOT``, or ``amalgam export`` on folders.
    """

    status = 403
    code = "exports_off"

    def __init__(self) -> None:
        super().__init__(
            "This server writes no checkpoints. Set AMALGAM_EXPORT_ROOT to the folder that is to hold them, "
            "or use `amalgam export` on folders."
        )


class ExportNotFound(NotFound):
    """No finished export of that name.

    Next step: ``GET /admin/v1/exports`` lists what there is.
    """

    code = "export_not_found"
    param = "name"

    def __init__(self, name: str) -> None:
        super().__init__(f"No export is named {name[:128]!r}. GET /admin/v1/exports lists what there is.")


class TiedEmbeddings(InvalidRequest):
    """An adapter of the output layer whose weight is the embedding's too.

    Next step: leave the module out by a filter.
    """

    status = 422
    code = "tied_embeddings"
    param = "inputs"

    def __init__(self, module: str) -> None:
        super().__init__(
            f"The base model has one weight for {module} and for the other end of the model, so what is added to one "
            "would change both. Leave the module out by a weight of 0 with the filter of its name."
        )


UNPACK: Final = "Write its weights unpacked (dequantize, --dequantize), or export over a plain checkpoint."
"""It is the next step where weights are quantised."""


class BaseNotExportable(InvalidRequest):
    """A base model without safetensors files, quantised, or another than is served.

    Next step: export over a plain checkpoint, or with ``dequantize`` where it is quantised.
    """

    status = 422
    code = "base_not_exportable"

    def __init__(self, reason: str, next_step: str = "Export over a plain checkpoint.") -> None:
        super().__init__(f"Nothing can be added to the base model's files: {reason}. {next_step}")


class DiskTooSmall(AmalgamError):
    """The disk has less space than the checkpoint takes; nothing was written.

    Next step: free space.
    """

    status = 507
    code = "disk_too_small"

    def __init__(self, needed_bytes: int, free_bytes: int) -> None:
        super().__init__(
            f"The checkpoint takes {needed_bytes} bytes, and its disk has {free_bytes} left. "
            "Free space, or export to another disk."
        )


class ExportRankTooLarge(InvalidRequest):
    """An export in delta space whose result has a rank that cannot be held while it is computed.

    Next step: ask for a rank, or allow more workspace.
    """

    status = 422
    code = "export_rank_too_large"
    param = "output.rank"

    def __init__(self, rank: int, needed_bytes: int, limit_bytes: int, fits: int) -> None:
        least = f"Ask for a rank of at most {fits} (output.rank, --rank)" if fits else "Use another space"
        super().__init__(
            f"In delta space the result has rank {rank}, whose factors take {needed_bytes} bytes; {limit_bytes} may be "
            f"held. {least}, or allow more (AMALGAM_MERGE_WORKSPACE_BYTES, --max-workspace)."
        )
