"""Errors of jobs and their leases."""

from amalgam.errors import AmalgamError, Conflict, NotFound, Unavailable


class JobNotFound(NotFound):
    """No job of that id.

    Next step: ``GET /admin/v1/jobs`` lists what there is.
    """

    code = "job_not_found"
    param = "job"

    def __init__(self, job_id: str) -> None:
        shown = job_id if len(job_id) <= 64 else job_id[:64] + "…"
        super().__init__(f"No job has the id {shown!r}. GET /admin/v1/jobs lists them.")


class JobStateConflict(Conflict):
    """A job was asked to change its state in a way it cannot.

    Next step: look at the job.
    """

    code = "job_state_conflict"
    param = "job"

    def __init__(self, job_id: str, current: str, wanted: str) -> None:
        self.current = current
        self.wanted = wanted
        super().__init__(
            f"Job {job_id} is {current} and cannot become {wanted}. GET /admin/v1/jobs/{job_id} shows where it stands."
        )


class LeaseLost(AmalgamError):
    """A worker came back after its job had been given to another; its result was dropped.

    Next step: none.
    """

    status = 409
    code = "lease_lost"

    def __init__(self, job_id: str) -> None:
        super().__init__(f"The lease on job {job_id} was lost; its result was dropped.")


class WorkerUnavailable(Unavailable):
    """The merge process was asked something and does not run, or does not answer in time.

    Next step: try again; look at ``worker_alive`` in ``GET /admin/v1/engine``.
    """

    code = "worker_unavailable"

    def __init__(self) -> None:
        super().__init__(
            "The merge worker does not answer now. Try again; GET /admin/v1/engine says whether it runs, and the "
            "server's log says why it does not. A plan with diagnostics=false needs no worker."
        )
