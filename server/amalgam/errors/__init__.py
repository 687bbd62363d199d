"""The error tree. Callers match on the class or on ``code``, never on the text.

Every class builds its own message from the values that explain it and ends with the next step.
``status`` is the HTTP status that `amalgam.api` answers with; nothing below `api` knows more of HTTP than that number.

    AmalgamError
    ├── errors.requests     what a caller sent: keys, fields, model names, limits
    ├── errors.adapters     adapter folders, names, versions, sources
    ├── errors.aliases      aliases, their revisions and targets
    ├── errors.merging      expressions, recipes, plans, kernels
    ├── errors.blends       expressions in the ``model`` field: limits, the blend process
    ├── errors.evaluations  evaluations and sweeps
    ├── errors.jobs         jobs and their leases
    ├── errors.exports      checkpoints made of the base model and an adapter
    └── errors.engine       the engine: not ready, failed to load, gone
"""

from typing import ClassVar


class AmalgamError(Exception):
    """Root of the tree.

    Attributes:
        status: HTTP status, a plain integer.
        code: Stable machine-readable name, documented in the README.
        type: OpenAI's error family.
        param: The request field at fault, or None.
        retry_after_s: Seconds after which a retry may succeed, or None where a retry cannot help.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    type: ClassVar[str] = "server_error"
    param: str | None = None
    retry_after_s: float | None = None

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        if param is not None:
            self.param = param


class InvalidRequest(AmalgamError):
    """A request that is malformed or out of range; sending it again unchanged cannot succeed."""

    status = 400
    code = "invalid_request"
    type = "invalid_request_error"


class NotFound(AmalgamError):
    """Something named in the request does not exist."""

    status = 404
    code = "not_found"
    type = "invalid_request_error"


class Conflict(AmalgamError):
    """The request contradicts what is already stored; retrying unchanged cannot help."""

    status = 409
    code = "conflict"
    type = "invalid_request_error"


class Unavailable(AmalgamError):
    """The server cannot do this now; the same request may succeed later."""

    status = 503
    code = "unavailable"
    type = "server_error"
    retry_after_s = 1.0
