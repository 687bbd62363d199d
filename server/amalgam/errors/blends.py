"""Errors of blends: adapters that a request describes in its ``model`` field.

- asking: BlendsOff, UnknownBlendInput, BlendMethodRefused, SeedNeeded, TooManyBlends
- building: BlendRefused, BlendUnavailable, BlendFailed, BlendMemoryBusy
"""

from collections.abc import Sequence

from amalgam.errors import AmalgamError, InvalidRequest, Unavailable
from amalgam.errors.requests import ModelNotFound


class BlendsOff(InvalidRequest):
    """An expression in ``model`` at a server that serves none."""

    status = 403
    code = "blends_off"
    param = "model"

    def __init__(self) -> None:
        super().__init__(
            "This server takes no expressions in 'model' (AMALGAM_INLINE_BLENDS=false). Ask for an adapter by its "
            "name; POST /admin/v1/merges makes one out of an expression."
        )


class UnknownBlendInput(ModelNotFound):
    """An expression names an adapter that cannot be served; ``column`` counts from 1."""

    def __init__(self, name: str, column: int, near: Sequence[str] = ()) -> None:
        super().__init__(name, near)
        self.column = column
        self.message = f"At column {column} of the expression: {self.message}"


class BlendMethodRefused(InvalidRequest):
    """A method or a space that this server does not build while a client waits."""

    code = "blend_method_refused"
    param = "model"

    def __init__(self, what: str, name: str, column: int, allowed: Sequence[str], setting: str) -> None:
        super().__init__(
            f"{what.capitalize()} {name!r}, at column {column} of the expression, is not built while a client waits. "
            f"Use one of: {', '.join(allowed)} ({setting}); or POST /admin/v1/merges, which takes them all."
        )


class SeedNeeded(InvalidRequest):
    """A method of chance without a seed, whose result could not be asked for again."""

    code = "seed_needed"
    param = "model"

    def __init__(self, method: str, column: int) -> None:
        super().__init__(
            f"Method {method!r}, at column {column} of the expression, drops entries by chance. Say which: add for "
            "example 'seed=7' to its options."
        )


class TooManyBlends(AmalgamError):
    """One key described more new blends in a minute than it may."""

    status = 429
    code = "blend_rate_limited"
    type = "rate_limit_error"
    param = "model"

    def __init__(self, per_minute: int, wait_s: float) -> None:
        self.retry_after_s = wait_s
        super().__init__(
            f"More than {per_minute} new blends in a minute (AMALGAM_BLENDS_PER_MINUTE). Try again in {wait_s:.0f} s; "
            "blends that are there already are not counted."
        )


class BlendRefused(AmalgamError):
    """What the blend process refused, under that refusal's own code and status."""

    def __init__(self, message: str, code: str, status: int, column: int | None = None) -> None:
        self.code: str = code  # type: ignore[misc]
        self.status: int = status  # type: ignore[misc]
        self.type: str = "invalid_request_error" if status < 500 else "server_error"  # type: ignore[misc]
        place = "" if column is None else f" (Column {column} of the expression.)"
        super().__init__(message + place, param="model")
        if status == 503:
            self.retry_after_s = 1.0


class BlendUnavailable(Unavailable):
    """The blend process died, hung or is not there."""

    code = "blend_unavailable"
    param = "model"

    def __init__(self, reason: str) -> None:
        super().__init__(f"The blend was not built: {reason}. Try again shortly.")


class BlendFailed(AmalgamError):
    """A fault of the blend process."""

    code = "blend_failed"
    param = "model"

    def __init__(self) -> None:
        super().__init__("The blend could not be built. The server's log says why; the inputs serve on.")


class BlendMemoryBusy(Unavailable):
    """Every blend in memory is in use, and there is no room for another."""

    code = "blend_memory_busy"
    param = "model"

    def __init__(self, waited_s: float) -> None:
        super().__init__(
            f"No memory for another blend came free in {waited_s:.0f} s. Try again, or raise AMALGAM_BLEND_BYTES."
        )
