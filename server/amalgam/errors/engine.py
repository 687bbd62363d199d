"""Errors of the engine: not ready, refused to load, gone."""

from typing import ClassVar

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


class NoTurn(Unavailable):
    """More adapters were asked for than a batch holds, and the request's turn did not come in time."""

    status = 503
    code = "adapter_no_turn"

    def __init__(self, ref: str, waited_s: float) -> None:
        super().__init__(f"{ref} got no turn in the batch in {waited_s:.0f} s. Try again, or raise --max-loras.")


class EngineRefused(AmalgamError):
    """An error that vLLM's handler answered with, in this server's shape."""

    _CODES: ClassVar[dict[int, tuple[str, str]]] = {
        400: ("invalid_request_error", "invalid_request"),
        404: ("invalid_request_error", "model_not_found"),
        422: ("invalid_request_error", "invalid_request"),
        501: ("invalid_request_error", "endpoint_unsupported"),
        503: ("server_error", "engine_not_ready"),
    }

    def __init__(self, status: int, message: str, param: str | None = None) -> None:
        # 422 is FastAPI's own habit; callers of this API meet one status for a malformed request.
        self.status: int = 400 if status == 422 else status  # type: ignore[misc]
        self.type, self.code = self._CODES.get(status, ("server_error", "internal_error"))  # type: ignore[misc]
        super().__init__(message, param=param)
