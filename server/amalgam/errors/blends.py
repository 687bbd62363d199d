"""Errors of blends: adapters that a request describes in its ``model`` field.

- asking: BlendsOff, UnknownBlendInput, BlendMethodRefused, SeedNeeded, TooManyBlends
- building: BlendUnavailable, BlendFailed, BlendMemoryBusy
"""

from collections.abc import Sequence

from amalgam.errors import AmalgamError, InvalidRequest, Unavailable
from amalgam.errors.requests import ModelNotFound


class BlendsOff(InvalidRequest):
    """An expression in ``model`` at a server that serves none.

    Next step: ask for an adapter by name, or make a merge.
    """

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
    """A method or a space that this server does not build while a client waits.

    Next step: choose one that the message lists, or make a merge.
    """

    code = "blend_method_refused"
    param = "model"

    def __init__(self, what: str, name: str, column: int, allowed: Sequence[str], setting: str) -> None:
        super().__init__(
            f"{what.capitalize()} {name!r}, at column {column} of the expression, is not built while a client waits. "
            f"Use one of: {', '.join(allowed)} ({setting}); or POST /admin/v1/merges, which takes them all."
        )


class SeedNeeded(InvalidRequest):
    """A method of chance without a seed, whose result could not be asked for again.

    Next step: add ``seed=7`` to its options.
    """

    code = "seed_needed"
    param = "model"

    def __init__(self, method: str, column: int) -> None:
        super().__init__(
            f"Method {method!r}, at column {column} of the expression, drops entries by chance. Say which: add for "
            "example 'seed=7' to its options."
        )


class TooManyBlends(AmalgamError):
    """One key described more new blends in a minute than it may.

    Next step: repeat after ``Retry-After``; known blends go on.
    """

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


class BlendUnavailable(Unavailable):
    """The blend process died or hung over the blend, starts, or has too much to do.

    Next step: repeat after ``Retry-After``.
    """

    code = "blend_unavailable"
    param = "model"

    def __init__(self, reason: str) -> None:
        super().__init__(f"The blend was not built: {reason}. Try again shortly.")


class BlendFailed(AmalgamError):
    """A fault of the blend process.

    Next step: the server's log says why.
    """

    code = "blend_failed"
    param = "model"

    def __init__(self) -> None:
        super().__init__("The blend could not be built. The server's log says why; the inputs serve on.")


class BlendMemoryBusy(Unavailable):
    """Every blend in memory was in use for ``AMALGAM_LOAD_TIMEOUT_S``.

    Next step: repeat, or raise ``AMALGAM_BLEND_BYTES``.
    """

    code = "blend_memory_busy"
    param = "model"

    def __init__(self, waited_s: float) -> None:
        super().__init__(
            f"No memory for another blend came free in {waited_s:.0f} s. Try again, or raise AMALGAM_BLEND_BYTES."
        )
