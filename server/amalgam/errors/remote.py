"""Errors of engines in processes of their own: no Ray, nobody there, another model."""

from amalgam.errors import AmalgamError


class RayMissing(AmalgamError):
    """Engines in processes of their own run on Ray, which is not installed.

    Next step: ``pip install 'amalgam[ray]'``.
    """

    code = "ray_missing"

    def __init__(self) -> None:
        super().__init__("Ray is not installed, and engines in processes of their own run on it. Install amalgam[ray].")


class EngineAddressInvalid(AmalgamError):
    """The address of engines is of no form that is known.

    Next step: give ``ray://host:port``, as ``amalgam engine`` prints it.
    """

    code = "engine_address_invalid"

    def __init__(self, given: str) -> None:
        shown = given if len(given) <= 128 else given[:128] + "…"
        super().__init__(f"{shown!r} is no address of engines. Give ray://host:port, as amalgam engine prints it.")


class EnginesUnreachable(AmalgamError):
    """There is no Ray at the address of the engines, it does not take the token, or it runs no engine.

    Next step: start ``amalgam engine``; have both read the same ``AMALGAM_RAY_TOKEN_FILE``.
    """

    code = "engines_unreachable"

    def __init__(self, address: str, reason: str) -> None:
        first = reason.strip().partition("\n")[0][:300].rstrip(".")
        super().__init__(
            f"No engine answers at ray://{address} ({first}). Start amalgam engine there, and have it and this server "
            "read the same AMALGAM_RAY_TOKEN_FILE."
        )


class RayNotStarted(AmalgamError):
    """Ray ended, or did not answer, when it was started for the engines.

    Next step: read the last line of its log, which the message names.
    """

    code = "ray_not_started"

    def __init__(self, reason: str) -> None:
        super().__init__(f"Ray did not start: {reason}. Mend that and start the engines again.")


class RayEnded(AmalgamError):
    """The Ray that was started for the engines has ended, or one of its processes has, and all engines with it.

    Next step: start the engines again; a supervisor of programs does so by itself.
    """

    code = "ray_ended"

    def __init__(self, status: int) -> None:
        super().__init__(f"Ray ended with status {status}, and all engines with it. Start the engines again.")


class EnginesOfAnotherModel(AmalgamError):
    """The engines serve another base model than the server was started with.

    Next step: start both with the same model.
    """

    code = "engines_of_another_model"

    def __init__(self, model: str, names: tuple[str, ...]) -> None:
        super().__init__(
            f"The engines serve {names[0]!r}, which is not the model in {model}. Start both with the same base model."
        )


class ReplicaLost(Exception):
    """Whoever was to answer is gone, or its engine is, and the client has seen nothing."""


class ChannelLost(Exception):
    """The connection by which a replica's answers come is gone, or nobody was meant to have it."""
