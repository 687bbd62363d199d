"""Errors of a merge while it is computed: devices, kernels, memory."""

from amalgam.errors import AmalgamError, InvalidRequest


class BackendUnavailable(InvalidRequest):
    """A kernel backend or a device that this machine does not have.

    Next step: use the CPU.
    """

    code = "backend_unavailable"
    param = "device"

    def __init__(self, backend: str, device: str, reason: str) -> None:
        super().__init__(f"Backend {backend!r} cannot run on {device!r}: {reason}. Use --device cpu.")


class WorkspaceTooSmall(InvalidRequest):
    """One module needs more than ``AMALGAM_MERGE_WORKSPACE_BYTES``.

    Next step: raise it.
    """

    code = "workspace_too_small"
    param = "max_workspace_bytes"

    def __init__(self, module: str, needed: int, limit: int) -> None:
        super().__init__(
            f"Module {module} needs {needed} bytes of workspace; {limit} are allowed. Raise --max-workspace "
            "(AMALGAM_MERGE_WORKSPACE_BYTES for the server)."
        )


class MergeCancelled(AmalgamError):
    """The caller asked the merge to stop; nothing was written.

    Next step: start it again.
    """

    status = 409
    code = "merge_cancelled"

    def __init__(self) -> None:
        super().__init__("The merge was cancelled before it was complete; nothing was written. Start it again.")


class OutOfMemory(AmalgamError):
    """The machine or the device had no memory left in the middle of a merge; nothing was written.

    Next step: lower ``AMALGAM_MERGE_WORKSPACE_BYTES`` or the rank, merge in two steps.
    """

    code = "out_of_memory"

    def __init__(self) -> None:
        super().__init__(
            "The merge ran out of memory; nothing was written. Lower AMALGAM_MERGE_WORKSPACE_BYTES or the output's "
            "rank, or merge in two steps."
        )
