"""Errors of requests beyond a limit of their key, of its tenant, or of the tenant on some names."""

from amalgam.errors import AmalgamError, InvalidRequest


class RateLimited(AmalgamError):
    """More in a minute, or at a time, than a limit of the key, of its tenant, or of the tenant on these names allows.

    Next step: repeat after ``Retry-After``, or ask for less at once.
    """

    status = 429
    code = "rate_limit_exceeded"
    type = "rate_limit_error"
    counted_as = "rate_limit"

    def __init__(self, owner: str, field: str, limit: int, left: int, needed: int, retry_after_s: float) -> None:
        self.field = field
        self.retry_after_s = retry_after_s
        super().__init__(
            f"{owner} may use {limit} {field.replace('_', ' ')} ({field}); {max(left, 0)} are left, and this request "
            f"takes {needed}. Try again in {retry_after_s:.0f} s, or ask for less at once."
        )


class BudgetSpent(AmalgamError):
    """What a budget allows for the day or the month is used up. Nothing is gained by trying again soon.

    Next step: wait for the day or the month to end, or ask who runs the server for a larger budget.
    """

    status = 429
    code = "insufficient_quota"
    type = "insufficient_quota"
    counted_as = "budget"

    def __init__(self, owner: str, field: str, limit: int, left: int, needed: int, ends_at: str) -> None:
        self.field = field
        super().__init__(
            f"{owner} may use {limit} {field.replace('_', ' ')} ({field}); {max(left, 0)} are left, and this request "
            f"takes {needed}. The budget begins anew at {ends_at}; ask who runs this server for a larger one."
        )


class StorageSpent(AmalgamError):
    """More bytes of adapters and files than a limit on stored bytes allows; nothing of it was kept."""

    status = 429
    code = "insufficient_quota"
    type = "insufficient_quota"
    counted_as = "budget"

    def __init__(self, owner: str, limit: int, stored: int, needed: int) -> None:
        super().__init__(
            f"{owner} may store {limit} bytes (stored_bytes); {max(limit - stored, 0)} are left, and this takes "
            f"{needed}. Delete files or adapters, or ask who runs this server for a larger limit."
        )


class RequestExceedsLimit(InvalidRequest):
    """One request that would take more than a whole limit: it cannot succeed, however long is waited.

    Next step: lower ``max_tokens`` or ``n``, or shorten the prompt.
    """

    code = "request_exceeds_limit"
    param = "max_tokens"
    counted_as = "limit_exceeded"

    def __init__(self, owner: str, field: str, limit: int, needed: int) -> None:
        self.field = field
        super().__init__(
            f"{owner} may use {limit} {field.replace('_', ' ')} ({field}), and this request alone takes up to "
            f"{needed}. "
            "Lower max_tokens or n, or shorten the prompt."
        )
