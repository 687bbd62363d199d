"""Errors of a server that is asked for more than it can do: one share of it, all of it, or sooner than it can."""

from amalgam.errors import AmalgamError, Unavailable


class KeyOverShare(AmalgamError):
    """One key has as many requests waiting and running as it may have: `AMALGAM_MAX_REQUESTS_PER_KEY`.

    Next step: repeat after ``Retry-After``, or send fewer at once.
    """

    status = 429
    code = "too_many_requests"
    type = "rate_limit_error"

    def __init__(self, limit: int, retry_after_s: float) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(
            f"This key has {limit} requests waiting or running, which is its share (AMALGAM_MAX_REQUESTS_PER_KEY). "
            f"Try again in {retry_after_s:.0f} s, or send fewer at once."
        )


class TenantOverShare(AmalgamError):
    """The keys of one tenant together have as many requests as they may: `AMALGAM_MAX_REQUESTS_PER_TENANT`."""

    status = 429
    code = "too_many_requests"
    type = "rate_limit_error"

    def __init__(self, limit: int, retry_after_s: float) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(
            f"The keys of this tenant have {limit} requests waiting or running, which is their share "
            f"(AMALGAM_MAX_REQUESTS_PER_TENANT). Try again in {retry_after_s:.0f} s, or send fewer at once."
        )


class AdapterOverShare(Unavailable):
    """As many requests wait for one adapter as may: `AMALGAM_MAX_WAITING_PER_ADAPTER`. Others are answered.

    Next step: repeat after ``Retry-After``, or ask another adapter.
    """

    code = "adapter_overloaded"

    def __init__(self, name: str, limit: int, retry_after_s: float) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(
            f"{limit} requests wait for {name} and no more may (AMALGAM_MAX_WAITING_PER_ADAPTER). "
            f"Try again in {retry_after_s:.0f} s, or ask another adapter."
        )


class ServerFull(Unavailable):
    """As many requests wait and run as the server takes, of all keys together: `AMALGAM_MAX_REQUESTS`.

    Next step: repeat after ``Retry-After``, or add a replica.
    """

    code = "server_full"

    def __init__(self, limit: int, retry_after_s: float) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(
            f"The server has {limit} requests waiting or running and takes no more (AMALGAM_MAX_REQUESTS). "
            f"Try again in {retry_after_s:.0f} s."
        )


class DeadlineNotMet(Unavailable):
    """The request's own deadline, `x-request-timeout-ms`, is shorter than the wait that is expected, or has passed.

    Next step: repeat later, or allow more time.
    """

    code = "deadline_not_met"

    def __init__(self, retry_after_s: float, *, passed: bool) -> None:
        self.retry_after_s = retry_after_s
        reason = "has passed" if passed else "is shorter than the wait that is expected now"
        super().__init__(
            f"The request's deadline (x-request-timeout-ms) {reason}; nothing was answered. "
            f"Try again in {retry_after_s:.0f} s, or allow more time."
        )
