"""Errors of HTTP: who may ask, from where, by which routes, and in what form."""

from amalgam.errors import AmalgamError, InvalidRequest, NotFound, Unavailable
from amalgam.errors.requests import InvalidApiKey


class KeyNotSufficient(InvalidApiKey):
    """A key of another plane, as a client's on the admin plane."""

    status = 403


class KeyInAddress(AmalgamError):
    """A key in the query of the address, where logs, histories and referrers keep it; it is not read there."""

    status = 401
    code = "invalid_api_key"
    type = "invalid_request_error"

    def __init__(self) -> None:
        super().__init__(
            "A key in the address is not read, because addresses end in logs. Take it out of the address, and send it "
            "as the header 'Authorization: Bearer <key>'."
        )


class ForeignOrigin(InvalidRequest):
    """A server without keys was asked by a web page, or under a name that is not loopback.

    Next step: ask it as ``localhost``, or set `AMALGAM_ADMIN_KEY`.
    """

    status = 403
    code = "foreign_origin"

    def __init__(self) -> None:
        super().__init__(
            "Without keys this server answers programs on its own machine only: Host must be localhost or a loopback "
            "address, and Origin, where there is one, too. Set AMALGAM_ADMIN_KEY and AMALGAM_API_KEYS to open it."
        )


class UnsupportedMediaType(InvalidRequest):
    """A body that is not said to be JSON.

    Next step: send ``Content-Type: application/json``.
    """

    status = 415
    code = "unsupported_media_type"

    def __init__(self, wanted: str = "application/json") -> None:
        super().__init__(f"The body must be {wanted}. Send the header 'Content-Type: {wanted}'.")


class UnsupportedEncoding(InvalidRequest):
    """A body that is compressed in a way this server does not read.

    Next step: send it as gzip, deflate or zstd, or as it is.
    """

    status = 415
    code = "unsupported_encoding"

    def __init__(self, known: str) -> None:
        super().__init__(f"The body's Content-Encoding is not one of {known}. Send it in one of these, or as it is.")


class HeadersTooLarge(InvalidRequest):
    """More than 64 KiB of headers.

    Next step: send less.
    """

    status = 431
    code = "headers_too_large"

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"The request's headers are larger than {limit_bytes} bytes. Send less.")


class TooManyConnections(Unavailable):
    """Every connection that the process keeps open is busy; probes are answered all the same.

    Next step: repeat shortly; raise the limit of descriptors, or `AMALGAM_MAX_CONNECTIONS`.
    """

    code = "too_many_connections"

    def __init__(self) -> None:
        super().__init__("The server has too many connections at work. Try again shortly, or raise its descriptors.")


class MalformedRequest(InvalidRequest):
    """A request that HTTP itself does not allow."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"The request is malformed: {reason}. Correct it and send it again.")


class KeyUnusable(AmalgamError):
    """A configured key that no request could ever carry.

    Next step: use printable ASCII without blanks, or ``sha256:`` and 64 hex digits.
    """

    code = "key_unusable"

    def __init__(self, variable: str, reason: str) -> None:
        super().__init__(
            f"A key in {variable} cannot be used: {reason}. Give printable ASCII without blanks, as ak_<id>_<secret>, "
            "or sha256: and the 64 hex digits of its hash; leave the variable unset for no key."
        )


class LoraAlreadyLoaded(InvalidRequest):
    """``/v1/load_lora_adapter`` for a name that answers already; the text is the one that tools for vLLM look for.

    Next step: unload it first, or load in place.
    """

    code = "lora_already_loaded"
    param = "lora_name"

    def __init__(self, name: str) -> None:
        super().__init__(
            f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, set "
            "'load_inplace' to True."
        )


class RouteNotFound(NotFound):
    """No route at that path.

    Next step: ``GET /openapi.json`` lists the routes.
    """

    code = "route_not_found"

    def __init__(self) -> None:
        super().__init__(
            "There is no such route. Clients of OpenAI's API take a base URL that ends in /v1, Anthropic's one without "
            "it, and either names the model in the body. GET /openapi.json lists all routes to the admin key."
        )


class MethodNotAllowed(InvalidRequest):
    """The route exists for other methods.

    Next step: ``GET /openapi.json`` says which.
    """

    status = 405
    code = "method_not_allowed"

    def __init__(self) -> None:
        super().__init__("The route does not answer this method. GET /openapi.json says which.")


class InternalError(AmalgamError):
    """A fault of the server; the log has the trace under the request's id.

    Next step: look up the request id in the server's log.
    """

    def __init__(self) -> None:
        super().__init__("The server failed on this request. Its log says why, under the request id of this answer.")


class BodyTooLarge(InvalidRequest):
    """A request body above ``AMALGAM_MAX_BODY_BYTES``.

    Next step: send less.
    """

    status = 413
    code = "body_too_large"

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"The request body is larger than {limit_bytes} bytes. Send less.")
