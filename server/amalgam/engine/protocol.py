"""What the rest of the house knows of an engine; only `amalgam.engine` knows that it is vLLM.

An engine is a cache of adapter versions: it is lent validated local folders and may forget them at any time.
Version names, ids and folders are stable for ever, because vLLM compares LoRA requests by name and keys its prefix
cache by name and path.
"""

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

Endpoint = Literal["chat_completions", "completions", "responses", "messages", "tokenize", "detokenize", "embeddings"]
EngineState = Literal["starting", "ready", "dead", "hung", "restarting", "stopped"]


@dataclass(frozen=True, slots=True)
class LoadableVersion:
    """A version as the engine needs it."""

    engine_name: str
    """``name@number``; never contains a comma, which vLLM's gauge uses as a separator."""
    lora_id: int
    """Positive, unique over all versions, never used again."""
    folder: Path
    """Validated local folder; outlives every request that may use it."""


@dataclass(frozen=True, slots=True)
class Resident:
    """One version that the engine holds in memory."""

    engine_name: str
    lora_id: int
    held: int
    """Requests that use it right now."""
    pinned: bool
    load_s: float
    """Seconds its load took."""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine tells about itself."""

    state: EngineState
    served_name: str
    slots: int
    """Different adapters in one batch."""
    capacity: int
    """Adapters kept in memory."""
    max_rank: int
    restarts: int
    residents: tuple[Resident, ...]
    startup_s: Mapping[str, float]
    """Seconds of the last start, by phase."""


class Engine(Protocol):
    """Token generation with adapters."""

    async def start(self) -> None:
        """Begin to start, and return; `state` tells when the engine is ready. It restarts by itself when it dies."""

    async def stop(self, drain_s: float) -> None:
        """Wait up to ``drain_s`` seconds for held versions to be released, then stop."""

    @property
    def state(self) -> EngineState:
        """Where the engine is in its life."""

    def info(self) -> EngineInfo:
        """A snapshot for operators."""

    async def wait_ready(self, timeout_s: float) -> None:
        """Return when requests can be served.

        Raises:
            EngineNotReady: not within ``timeout_s`` seconds, or it stopped.
        """

    def hold(self, version: LoadableVersion | None) -> AbstractAsyncContextManager[None]:
        """Keep ``version`` resident while the block runs, loading it first if need be; None is the base model.

        Raises:
            EngineNotReady: the engine is not ready.
            EngineLoadFailed: the engine refused the files.
            SlotsBusy: every place was held for longer than the load timeout.
        """

    async def load(self, version: LoadableVersion) -> None:
        """Make ``version`` resident. Raises as `hold` does."""

    async def probe(self, version: LoadableVersion) -> None:
        """Generate one token with ``version``. Raises as `hold` does."""

    async def unload(self, lora_id: int) -> bool:
        """Wait until nobody holds the version, then free its memory; False where it was not resident."""

    async def pin(self, lora_id: int, *, pinned: bool) -> bool:
        """Exempt a resident version from eviction, or end that; False where it is not resident."""

    def supports(self, endpoint: Endpoint) -> bool:
        """Whether the served model can answer ``endpoint``."""

    async def call(self, endpoint: Endpoint, body: dict[str, Any], raw_request: Any) -> Any:
        """Answer one request through vLLM's own handler.

        Args:
            endpoint: which handler.
            body: the request; ``model`` is an engine name that is held, or the served base name.
            raw_request: the Starlette request, already read; its disconnect aborts the work.

        Returns: a Starlette response, streaming or not.

        Raises:
            EngineRefused: the handler answered with an error; carries its status, message and parameter.
        """
