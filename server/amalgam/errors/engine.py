"""Errors of the engine: not ready, refused to load, gone."""

from typing import ClassVar

from amalgam.errors import AmalgamError, Unavailable


class EngineNotReady(Unavailable):
    """The engine is starting, restarting or stopping.

    Next step: repeat after ``Retry-After``; watch ``/readyz``.
    """

    code = "engine_not_ready"

    def __init__(self, state: str) -> None:
        super().__init__(f"The engine is {state}. Try again shortly; GET /readyz says when it is ready.")


class FrontSilent(Unavailable):
    """The server stood still for so long that its engines ended what it had asked for.

    Next step: repeat after ``Retry-After``; look why the server's process, or its machine, stood still.
    """

    code = "front_silent"

    def __init__(self) -> None:
        super().__init__(
            "This server stood still for so long that its engines took it for dead and ended the request. Try again."
        )


class EngineLoadFailed(AmalgamError):
    """The engine refused an adapter that had passed validation.

    Next step: the message says why, in vLLM's words, or the server's log.
    """

    status = 500
    code = "engine_load_failed"

    def __init__(self, ref: str, reason: str | None = None) -> None:
        why = "The server's log says why" if reason is None else f"vLLM says: {reason}"
        super().__init__(f"The engine could not load {ref}. {why}; the adapter serves no request.")


class EngineStartFailed(AmalgamError):
    """The engine could not be started, so the server ends.

    Next step: mend what the message names, start again.
    """

    code = "engine_start_failed"

    def __init__(self, reason: str) -> None:
        super().__init__(f"The engine did not start: {reason}. Mend that and start the server again.")


class AdapterNotProven(EngineStartFailed):
    """An adapter that was tried at the start could not be served."""

    def __init__(self, why: str) -> None:
        AmalgamError.__init__(self, f"a small adapter that was tried before the start could not be served ({why})")


class BaseTakesNoLora(EngineStartFailed):
    """vLLM's class of the base model takes no LoRA."""

    def __init__(self, architecture: str) -> None:
        AmalgamError.__init__(self, f"vLLM's class for this base model, {architecture}, takes no LoRA adapters")


class BaseNotServable(EngineStartFailed):
    """The platform has no kernels for the base model, or its folder lacks something that vLLM needs."""

    def __init__(self, why: str) -> None:
        self.why = why
        AmalgamError.__init__(self, f"this base model cannot be served here: {why}")


class NonFiniteOutput(AmalgamError):
    """An adapter, or the base model, gave NaN or infinities instead of an answer.

    Next step: check the adapter's training and scale, upload it as a new version.
    """

    status = 500
    code = "non_finite_output"

    def __init__(self, ref: str) -> None:
        super().__init__(
            f"{ref} gives values that are not finite, and serves no request until the server is started again. "
            "Check the adapter's training and scale, and upload it as a new version."
        )


class BaseNotFinite(NonFiniteOutput):
    """The base model's first token has no finite log-probability."""

    def __init__(self, name: str) -> None:
        AmalgamError.__init__(
            self, f"{name} gives values that are not finite. Check the model's files, and the type given by --dtype."
        )


class SlotsBusy(Unavailable):
    """Every place in the engine was in use for ``AMALGAM_LOAD_TIMEOUT_S``.

    Next step: repeat, or raise ``AMALGAM_MAX_CPU_LORAS``.
    """

    status = 503
    code = "adapter_slots_busy"

    def __init__(self, ref: str, waited_s: float) -> None:
        super().__init__(f"{ref} found no free slot in {waited_s:.0f} s. Try again, or raise --max-cpu-loras.")


class StillLoading(Unavailable):
    """An adapter is still being read after ``AMALGAM_LOAD_TIMEOUT_S``, as from a file system that is slow.

    Next step: repeat after ``Retry-After``: the load goes on meanwhile.
    """

    status = 503
    code = "adapter_still_loading"

    def __init__(self, ref: str, waited_s: float) -> None:
        super().__init__(f"{ref} is still being loaded after {waited_s:.0f} s. Try again; the load goes on.")


class NoTurn(Unavailable):
    """More adapters are asked for than a batch holds; the request waited for ``AMALGAM_FAIR_QUEUE_WAIT_S``.

    Next step: repeat, or raise ``AMALGAM_MAX_LORAS``.
    """

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
        self.status = 400 if status == 422 else status
        self.type, self.code = self._CODES.get(status, ("server_error", "internal_error"))
        super().__init__(message, param=param)
