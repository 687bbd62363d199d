"""Errors of the doors: who may enter, from where, and in what form."""

from amalgam.errors import AmalgamError, InvalidRequest
from amalgam.errors.requests import InvalidApiKey


class AdminKeyNeeded(InvalidApiKey):
    """A key of the client plane at a door of the admin plane."""

    status = 403

    def __init__(self) -> None:
        super().__init__("admin")


class ForeignOrigin(InvalidRequest):
    """A web page of another site, or a name of another host, at a server without keys."""

    status = 403
    code = "foreign_origin"

    def __init__(self) -> None:
        super().__init__(
            "Without keys this server answers programs on its own machine only: Host must be localhost or a loopback "
            "address, and Origin, where there is one, too. Set AMALGAM_ADMIN_KEY and AMALGAM_API_KEYS to open it."
        )


class UnsupportedMediaType(InvalidRequest):
    """A body that is not said to be JSON."""

    status = 415
    code = "unsupported_media_type"

    def __init__(self, wanted: str = "application/json") -> None:
        super().__init__(f"The body must be {wanted}. Send the header 'Content-Type: {wanted}'.")


class HeadersTooLarge(InvalidRequest):
    """Request headers above the limit."""

    status = 431
    code = "headers_too_large"

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"The request's headers are larger than {limit_bytes} bytes. Send less.")


class MalformedRequest(InvalidRequest):
    """A request that HTTP itself does not allow."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"The request is malformed: {reason}.")


class KeyUnusable(AmalgamError):
    """A configured key that no request could ever carry."""

    code = "key_unusable"

    def __init__(self, variable: str, reason: str) -> None:
        super().__init__(
            f"A key in {variable} cannot be used: {reason}. Give printable ASCII without blanks, as ak_<id>_<secret>, "
            "or sha256: and the 64 hex digits of its hash; leave the variable unset for no key."
        )


class LoraAlreadyLoaded(InvalidRequest):
    """``/v1/load_lora_adapter`` for a name that answers already; the text is the one that tools for vLLM look for."""

    code = "lora_already_loaded"
    param = "lora_name"

    def __init__(self, name: str) -> None:
        super().__init__(
            f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, set "
            "'load_inplace' to True."
        )
