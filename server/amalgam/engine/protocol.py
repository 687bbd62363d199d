"""What the other packages know of an engine; only `amalgam.engine` knows that it is vLLM.

An engine is a cache of adapter versions: it is lent validated local folders and may forget them at any time.
Version names, ids and folders are stable for ever, because vLLM compares LoRA requests by name and keys its prefix
cache by name and path.
"""

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Protocol

from amalgam.domain.blend_plan import BlendPlan

Endpoint = Literal[
    "chat_completions",
    "completions",
    "responses",
    "messages",
    "count_tokens",
    "tokenize",
    "detokenize",
    "embeddings",
]
EngineState = Literal["starting", "ready", "dead", "hung", "restarting", "stopped", "down"]
"""In the state ``down`` it could not be started, or started again, and nothing more is tried."""


FIRST_BLEND_ID: Final = 1 << 30
"""vLLM 0.32 takes ids from 1 (`LoRARequest` refuses less, 0 means no adapter) and keeps them in 32 bits with a sign in
one of its model runners (``LoraState.lora_ids``), in 64 in the other. Versions have the low half of that range: their
ids are row numbers from 1 on. Blends have the upper half, counted up by the engine for as long as its process lives,
over every restart of its core, so that no id is ever two blends', whoever asks: a thousand million of them."""


@dataclass(frozen=True, slots=True)
class LoadableVersion:
    """A version as the engine needs it."""

    engine_name: str
    """It is ``name@number`` and never contains a comma, which vLLM's gauge uses as a separator."""
    lora_id: int
    """It is positive, unique over all versions, and never used again."""
    folder: Path
    """It is a validated local folder that outlives every request that may use it."""
    digest: str = ""
    """An engine elsewhere finds its files in the store by this digest; it is empty for a blend, which is in no store.
    """
    plan: BlendPlan | None = None
    """An engine elsewhere builds the blend by it."""


@dataclass(frozen=True, slots=True)
class Resident:
    """One version that the engine holds in memory."""

    engine_name: str
    lora_id: int
    held: int
    """So many requests have it in use right now."""
    pinned: bool
    load_s: float
    """Its load took so many seconds."""
    digest: str = ""
    """It is the digest of its files, as of a `LoadableVersion`."""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine tells about itself."""

    state: EngineState
    served_name: str
    slots: int
    """One batch has at most so many different adapters."""
    capacity: int
    """So many adapters are kept in memory."""
    max_rank: int
    restarts: int
    residents: tuple[Resident, ...]
    """They are in the order in which they were used, the last one last; those with a place in the batch come last."""
    startup_s: Mapping[str, float]
    """It has the seconds of the last start, by phase."""
    sequences: int = 0
    """A full batch has so many; 0 before it is known."""
    dtype: str = "bfloat16"
    """The engine computes in it: bfloat16, float16 or float32."""
    replicas: int = 0
    """So many engines in processes of their own are ready; 0: the only one is in this process."""
    blend_bytes: int = 0
    """Each of these engines keeps at most so much of blends."""
    placed: int | None = None
    """So many of the residents have a place in the batch; None: as many as there are slots."""

    @property
    def in_batch(self) -> tuple[Resident, ...]:
        """The residents with a place in the batch: vLLM gives them to those that were used last."""
        placed = self.slots if self.placed is None else self.placed
        return self.residents[max(0, len(self.residents) - placed) :]

    @property
    def digests(self) -> frozenset[str]:
        """The digests of the files that it may read again; blends have none."""
        return frozenset(resident.digest for resident in self.residents if resident.digest)


class OwnTemplate(Protocol):
    """A chat template of one version, rendered elsewhere."""

    model: str
    """It is written as ``name@number``."""
    text: str
    """It is the template itself."""

    async def content_format(self) -> Literal["string", "openai"]:
        """Whether it reads a message's content as a text or as a list of parts.

        Raises:
            ChatTemplateInvalid, TemplatesUnavailable.
        """

    async def render(self, messages: Sequence[Any], tools: Sequence[Any] | None, values: Mapping[str, Any]) -> str:
        """The prompt of a conversation.

        Raises:
            ChatTemplateRefused, ChatTemplateFailed, TemplatesUnavailable.
        """


@dataclass(frozen=True, slots=True)
class CallProfile:
    """What a version's serving profile adds to a request beside what is in its body by now."""

    template: OwnTemplate | None
    """It stands in place of the base model's chat template."""
    unsaid: Mapping[str, Any]
    """These sampling defaults have no field in the request's dialect; they go by their name in a chat completion."""


class Engine(Protocol):
    """Token generation with adapters."""

    @property
    def is_elsewhere(self) -> bool:
        """Whether it finds files by digests, and builds blends, in processes of its own, with nothing lent to it."""

    async def start(self) -> None:
        """Begin to start, and return; `state` tells when the engine is ready. It restarts by itself when it dies."""

    async def stop(self, drain_s: float) -> None:
        """Wait up to ``drain_s`` seconds for held versions to be released, then stop."""

    @property
    def state(self) -> EngineState:
        """Where the engine is in its life."""

    def info(self) -> EngineInfo:
        """A snapshot for operators."""

    async def pages(self) -> Mapping[str, bytes]:
        """Pages of metrics of engines in processes of their own, by engine; not of those that do not answer at once."""

    async def wait_ready(self, timeout_s: float) -> None:
        """Return when requests can be served.

        Raises:
            EngineNotReady: not within ``timeout_s`` seconds, or it stopped.
            EngineStartFailed: it did not start, and nothing more is tried.
        """

    def hold(self, version: LoadableVersion | None) -> AbstractAsyncContextManager[None]:
        """Keep ``version`` resident while the block runs, loading it first if need be; None is the base model.

        Raises:
            EngineNotReady: the engine is not ready.
            EngineLoadFailed: the engine refused the files.
            ArtifactDamaged: the files are not the ones that were published.
            NonFiniteOutput: the version has given values that are not finite, in this life of the server.
            SlotsBusy: every place was held for longer than the load timeout.
        """

    async def load(self, version: LoadableVersion) -> None:
        """Make ``version`` resident. Raises as `hold` does."""

    async def probe(self, version: LoadableVersion) -> None:
        """Generate one token with ``version``; its log-probability must be finite. Raises as `hold` does."""

    async def untaken(self, modules: Collection[str]) -> frozenset[str]:
        """Those of ``modules``, the base model's, that it puts no LoRA on; none where it cannot say, or not yet.

        Args:
            modules: the same ones each time.

        Raises:
            EngineNotReady: it is lost meanwhile.
        """

    async def unload(self, lora_id: int) -> bool:
        """Wait until nobody holds the version, then free its memory; False where it was not resident."""

    def new_blend_id(self) -> int:
        """The id of a blend that is new to this engine, from `FIRST_BLEND_ID` on; never the same twice.

        Several front ends may have one engine, so none of them counts by itself: one id is one set of weights.
        """

    async def pin(self, lora_id: int, *, pinned: bool) -> bool:
        """Exempt a resident version from eviction, or end that; False where it is not resident."""

    def supports(self, endpoint: Endpoint) -> bool:
        """Whether the served model can answer ``endpoint``."""

    async def call(
        self, endpoint: Endpoint, body: dict[str, Any], raw_request: Any, profile: CallProfile | None = None
    ) -> Any:
        """Answer one request through vLLM's own handler.

        Args:
            endpoint: which handler.
            body: the request; ``model`` is an engine name that is held, or the served base name.
            raw_request: the Starlette request, already read; its disconnect aborts the work.
            profile: how the version wants to be asked.

        Returns: a Starlette response, streaming or not.

        Raises:
            EngineRefused: the handler answered with an error; carries its status, message and parameter.
            ChatTemplateRefused, ChatTemplateFailed, TemplatesUnavailable: of the profile's template.
        """
