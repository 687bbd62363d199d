"""Errors of what a caller sent: keys, fields, model names, limits."""

from collections.abc import Sequence

from amalgam.errors import AmalgamError, Conflict, InvalidRequest, NotFound


class InvalidApiKey(AmalgamError):
    """No key, a wrong one, or one in the address; 403: a key of another plane, as a client's at the admin plane.

    Next step: send ``Authorization: Bearer <key>`` with a key of the plane that the message names.
    """

    status = 401
    code = "invalid_api_key"
    type = "invalid_request_error"

    def __init__(self, plane: str) -> None:
        super().__init__(f"A valid key for the {plane} plane is needed. Send it as 'Authorization: Bearer <key>'.")


class ModelNotFound(NotFound):
    """The ``model`` of a request names nothing that can be served.

    Next step: take a near name, or ``GET /v1/models``.
    """

    code = "model_not_found"
    param = "model"

    def __init__(self, model: str, near: Sequence[str] = ()) -> None:
        self.model = model
        self.near = tuple(near)
        shown = model if len(model) <= 128 else model[:128] + "…"
        hint = f" Did you mean: {', '.join(near)}?" if near else " GET /v1/models lists what is served."
        super().__init__(f"The model {shown!r} does not exist.{hint}")


class FieldRefused(InvalidRequest):
    """A field that is unknown, of the wrong type or out of bounds.

    Next step: mend the field in ``param``.
    """

    code = "invalid_value"

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}", param=field)


class MediaUnsupported(FieldRefused):
    """A picture, sound or film that the served model does not read, or in a form that is not served.

    Next step: send what the message names.
    """

    code = "media_unsupported"

    def __init__(self, field: str, why: str, step: str) -> None:
        super().__init__(field, f"{why}. {step}.")


class MediaTooLarge(FieldRefused):
    """More pictures and sounds, or more pixels, than one request may have.

    Next step: send fewer, or smaller ones; or raise ``AMALGAM_MEDIA_ITEMS`` or ``AMALGAM_MEDIA_PIXELS``.
    """

    code = "media_too_large"

    def __init__(self, field: str, why: str, step: str) -> None:
        super().__init__(field, f"{why}. {step}.")


class IdempotencyKeyReused(InvalidRequest):
    """An idempotency key of another request: another route, query or body.

    Next step: take a fresh key.
    """

    status = 422
    code = "idempotency_key_reused"
    param = "Idempotency-Key"

    def __init__(self) -> None:
        super().__init__("This Idempotency-Key was used for another request. Take a fresh one for this request.")


class IdempotencyInProgress(Conflict):
    """The first request of this idempotency key is still being carried out.

    Next step: send it again after ``Retry-After``.
    """

    code = "idempotency_in_progress"
    param = "Idempotency-Key"
    retry_after_s = 1.0

    def __init__(self) -> None:
        super().__init__(
            "The first request with this Idempotency-Key has no answer yet. Send this one again in a moment."
        )


class EndpointUnsupported(InvalidRequest):
    """An endpoint the served model cannot answer.

    Next step: use another endpoint or model.
    """

    status = 404
    code = "endpoint_unsupported"

    def __init__(self, endpoint: str) -> None:
        super().__init__(f"The served model does not support {endpoint}.")


class PortTaken(AmalgamError):
    """The address to listen on cannot be had.

    Next step: stop what uses it, or ``--port``.
    """

    code = "port_taken"

    def __init__(self, port: int, reason: str) -> None:
        super().__init__(f"Port {port} cannot be used: {reason}. Stop what uses it, or choose another with --port.")


class UnsafeBinding(AmalgamError):
    """An address that others can reach, without the administrator's key.

    Next step: set `AMALGAM_ADMIN_KEY`, or use ``--host 127.0.0.1``.
    """

    code = "unsafe_binding"

    def __init__(self, host: str) -> None:
        super().__init__(
            f"Without AMALGAM_ADMIN_KEY this server listens on loopback only, not on {host}. "
            "Set it, and AMALGAM_API_KEYS or keys that you create with it for clients, or use --host 127.0.0.1."
        )


class ModelUnreadable(AmalgamError):
    """A base model that is neither a folder nor to be had from the hub.

    Next step: check the name; without one the demo model serves.
    """

    code = "model_unreadable"

    def __init__(self, model: str, reason: str) -> None:
        super().__init__(
            f"The base model {model!r} cannot be read: {reason}. Give a folder with config.json and safetensors, or a "
            "hub id; without an argument the demo model is served."
        )


class ClientLeft(AmalgamError):
    """The client left while its request waited; only logs and metrics say so.

    Next step: none.
    """

    status = 499
    code = "client_left"

    def __init__(self) -> None:
        super().__init__("The client left before its request began.")
