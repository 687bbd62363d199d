"""Errors on their way between processes: what a child process or a failed job reports."""

from amalgam.errors import AmalgamError


class ReportedError(AmalgamError):
    """An error that another process met, under that error's own code and status."""

    def __init__(self, message: str, *, code: str, status: int, param: str | None = None) -> None:
        self.code = code
        self.status = status
        self.type = "invalid_request_error" if status < 500 else "server_error"
        self.retry_after_s = 1.0 if status == 503 else None
        super().__init__(message, param=param)
