"""Errors of what a caller sent: keys, fields, model names, limits."""

from collections.abc import Sequence

from amalgam.errors import AmalgamError, Conflict, InvalidRequest, NotFound


class InvalidApiKey(AmalgamError):
    """No key, or a wrong one."""

    status = 401
    code = "invalid_api_key"
    type = "invalid_request_error"

    def __init__(self, plane: str) -> None:
        super().__init__(f"A valid key for the {plane} plane is needed. Send it as 'Authorization: Bearer <key>'.")


class ModelNotFound(NotFound):
    """The ``model`` of a request names nothing that can be served."""

    code = "model_not_found"
    param = "model"

    def __init__(self, model: str, near: Sequence[str] = ()) -> None:
        self.near = tuple(near)
        shown = model if len(model) <= 128 else model[:128] + "…"
        hint = f" Did you mean: {', '.join(near)}?" if near else " GET /v1/models lists what is served."
        super().__init__(f"The model {shown!r} does not exist.{hint}")


class FieldRefused(InvalidRequest):
    """A field outside the bounds this server serves."""

    code = "invalid_value"

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}", param=field)


class IdempotencyKeyReused(InvalidRequest):
    """An idempotency key of another request: another route, query or body."""

    status = 422
    code = "idempotency_key_reused"
    param = "Idempotency-Key"

    def __init__(self) -> None:
        super().__init__("This Idempotency-Key was used for another request. Take a fresh one for this request.")


class IdempotencyInProgress(Conflict):
    """The first request of this idempotency key is still being carried out."""

    code = "idempotency_in_progress"
    param = "Idempotency-Key"
    retry_after_s = 1.0

    def __init__(self) -> None:
        super().__init__(
            "The first request with this Idempotency-Key has no answer yet. Send this one again in a moment."
        )


class EndpointUnsupported(InvalidRequest):
    """An endpoint the served model cannot answer."""

    status = 404
    code = "endpoint_unsupported"

    def __init__(self, endpoint: str) -> None:
        super().__init__(f"The served model does not support {endpoint}.")


class PortTaken(AmalgamError):
    """The address to listen on cannot be had."""

    code = "port_taken"

    def __init__(self, port: int, reason: str) -> None:
        super().__init__(f"Port {port} cannot be used: {reason}. Stop what uses it, or choose another with --port.")


class UnsafeBinding(AmalgamError):
    """An address that others can reach, without keys."""

    code = "unsafe_binding"

    def __init__(self, host: str) -> None:
        super().__init__(
            f"Without AMALGAM_ADMIN_KEY and AMALGAM_API_KEYS this server listens on loopback only, not on {host}. "
            "Set both keys, or use --host 127.0.0.1."
        )


class ModelUnreadable(AmalgamError):
    """A base model that is neither a folder nor to be had from the hub."""

    code = "model_unreadable"

    def __init__(self, model: str, reason: str) -> None:
        super().__init__(
            f"The base model {model!r} cannot be read: {reason}. Give a folder with config.json and safetensors, or a "
            "hub id; without an argument the demo model is served."
        )


class ClientLeft(AmalgamError):
    """The client closed its connection while its request waited; nobody reads the answer."""

    status = 499
    code = "client_left"

    def __init__(self) -> None:
        super().__init__("The client left before its request began.")
