"""Errors of the engine: not ready, refused to load, gone."""

from amalgam.errors import AmalgamError, Unavailable


class EngineNotReady(Unavailable):
    """The engine is starting, restarting or stopping."""

    code = "engine_not_ready"

    def __init__(self, state: str) -> None:
        super().__init__(f"The engine is {state}. Try again shortly; GET /readyz says when it is ready.")


class EngineLoadFailed(AmalgamError):
    """The engine refused an adapter that had passed validation."""

    status = 500
    code = "engine_load_failed"

    def __init__(self, ref: str) -> None:
        super().__init__(f"The engine could not load {ref}. The server's log says why; the adapter serves no request.")


class SlotsBusy(Unavailable):
    """No engine slot came free in time for an adapter that is not resident."""

    status = 503
    code = "adapter_slots_busy"

    def __init__(self, ref: str, waited_s: float) -> None:
        super().__init__(f"{ref} found no free slot in {waited_s:.0f} s. Try again, or raise --max-cpu-loras.")
