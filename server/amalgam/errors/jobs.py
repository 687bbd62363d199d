"""Errors of jobs and their leases."""

from amalgam.errors import AmalgamError, Conflict, NotFound, Unavailable


class JobNotFound(NotFound):
    """No job of that id."""

    code = "job_not_found"
    param = "job"

    def __init__(self, job_id: str) -> None:
        shown = job_id if len(job_id) <= 64 else job_id[:64] + "…"
        super().__init__(f"No job has the id {shown!r}. GET /admin/v1/jobs lists them.")


class JobStateConflict(Conflict):
    """A job was asked to change its state in a way it cannot."""

    code = "job_state_conflict"
    param = "job"

    def __init__(self, job_id: str, current: str, wanted: str) -> None:
        self.current = current
        self.wanted = wanted
        super().__init__(
            f"Job {job_id} is {current} and cannot become {wanted}. GET /admin/v1/jobs/{job_id} shows where it stands."
        )


class LeaseLost(AmalgamError):
    """A worker tried to write under a lease that ran out, or that another worker holds by now."""

    status = 409
    code = "lease_lost"

    def __init__(self, job_id: str) -> None:
        super().__init__(f"The lease on job {job_id} was lost; its result was dropped.")


class JobFailed(AmalgamError):
    """A job that was waited for ended in failure; carries the job's own code and status."""

    def __init__(self, job_id: str, code: str, status: int, message: str) -> None:
        self.code: str = code  # type: ignore[misc]
        self.status: int = status  # type: ignore[misc]
        self.type: str = "invalid_request_error" if status < 500 else "server_error"  # type: ignore[misc]
        self.job_id = job_id
        super().__init__(message)


class WorkerUnavailable(Unavailable):
    """The merge process was asked something and does not run, or does not answer in time."""

    code = "worker_unavailable"

    def __init__(self) -> None:
        super().__init__(
            "The merge worker does not answer now. Try again; GET /admin/v1/engine says whether it runs, and the "
            "server's log says why it does not. A plan with diagnostics=false needs no worker."
        )


class WorkerRefused(AmalgamError):
    """What the merge process was asked ended in an error; carries that error's own code and status."""

    def __init__(self, message: str, *, code: str, status: int) -> None:
        self.code: str = code  # type: ignore[misc]
        self.status: int = status  # type: ignore[misc]
        self.type: str = "invalid_request_error" if status < 500 else "server_error"  # type: ignore[misc]
        super().__init__(message)
