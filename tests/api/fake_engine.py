"""An engine without a model, for tests: the real residency, canned answers, and switches for what can go wrong."""

import asyncio
import json
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from starlette.responses import JSONResponse, StreamingResponse

from amalgam.engine.protocol import FIRST_BLEND_ID, CallProfile, Endpoint, EngineInfo, EngineState, LoadableVersion
from amalgam.engine.residency import Residency
from amalgam.errors.engine import EngineLoadFailed, EngineNotReady
from amalgam.errors.requests import EndpointUnsupported
from amalgam.telemetry.context import TokenCount, tokens_of_current

_WITHOUT_BATCH = ("tokenize", "detokenize", "count_tokens")


@dataclass
class FakeEngine:
    """Turn the switches at any time; read what it was asked in ``calls``."""

    capacity: int = 4
    load_timeout_s: float = 0.2
    current: EngineState = "ready"
    refuse_load: set[str] = field(default_factory=set)
    """Engine names whose load fails."""
    takes_no_lora: frozenset[str] = frozenset()
    """Modules of the base model."""
    refuse_probe: set[str] = field(default_factory=set)
    failure: BaseException | None = None
    """Raised by `call` instead of an answer."""
    chunk_pause_s: float = 0.0
    """Between two pieces of a stream, and before a whole answer."""
    chunks: int = 3
    word: str = "word"
    """What each piece of a stream says."""
    sequences: int = 0
    """In a full batch, as it is told; 0: not known."""
    prompt_tokens: int = 2
    """Of every prompt."""
    answer_tokens: int | None = 1
    """Of every whole answer, where the request allows as many; None: as many as it allows."""
    dtype: str = "bfloat16"
    """What it says that it computes in."""
    stream_failure: BaseException | None = None
    """Raised in the middle of a stream."""
    stream_error: tuple[int, str] | None = None
    """Index of the piece in whose place a stream tells an error, as vLLM words it, and that event."""
    unsupported: frozenset[str] = frozenset({"embeddings"})

    def __post_init__(self) -> None:
        self.calls: list[tuple[Endpoint, dict[str, Any]]] = []
        self.profiles: list[CallProfile | None] = []
        """Of the same calls."""
        self.loaded: list[str] = []
        self.freed: list[str] = []
        self.probed: list[str] = []
        self.counted: list[TokenCount] = []
        """What it counted for each request that computed, in the order of their begin."""
        self.streams_ended = 0
        self.active = self.most = 0
        """Answers under way, and the most that ever were."""
        self._blend_ids = count(FIRST_BLEND_ID)
        self.residency = Residency(self.capacity, self.take_in, self._free, self.load_timeout_s)

    async def take_in(self, version: LoadableVersion) -> None:
        if version.engine_name in self.refuse_load:
            raise EngineLoadFailed(version.engine_name)
        self.loaded.append(version.engine_name)

    async def _free(self, version: LoadableVersion) -> None:
        self.freed.append(version.engine_name)

    @property
    def state(self) -> EngineState:
        return self.current

    def info(self) -> EngineInfo:
        residents = self.residency.residents()
        said = (residents, {"load": 0.0}, self.sequences, self.dtype)
        return EngineInfo(self.current, "tiny", 2, self.capacity, 16, 0, *said)

    @property
    def is_elsewhere(self) -> bool:
        return False

    async def pages(self) -> Mapping[str, bytes]:
        return {}

    async def start(self) -> None:
        return

    async def stop(self, drain_s: float) -> None:
        deadline = asyncio.get_running_loop().time() + drain_s
        while self.residency.held and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.01)
        self.current = "stopped"

    async def wait_ready(self, timeout_s: float) -> None:
        self._require_ready()

    @asynccontextmanager
    async def hold(self, version: LoadableVersion | None) -> AsyncIterator[None]:
        self._require_ready()
        if version is None:
            yield
            return
        async with self.residency.hold(version):
            yield

    async def load(self, version: LoadableVersion) -> None:
        async with self.hold(version):
            return

    async def probe(self, version: LoadableVersion) -> None:
        async with self.hold(version):
            self.probed.append(version.engine_name)
            if version.engine_name in self.refuse_probe:
                raise EngineLoadFailed(version.engine_name)

    async def unload(self, lora_id: int) -> bool:
        return await self.residency.unload(lora_id)

    async def untaken(self, modules: Collection[str]) -> frozenset[str]:
        return self.takes_no_lora & frozenset(modules)

    def new_blend_id(self) -> int:
        return next(self._blend_ids)

    async def pin(self, lora_id: int, *, pinned: bool) -> bool:
        return self.residency.pin(lora_id, pinned=pinned)

    def supports(self, endpoint: Endpoint) -> bool:
        return endpoint not in self.unsupported

    async def call(
        self, endpoint: Endpoint, body: dict[str, Any], raw_request: Any, profile: CallProfile | None = None
    ) -> Any:
        self._require_ready()
        if not self.supports(endpoint):
            raise EndpointUnsupported(endpoint)
        self.calls.append((endpoint, body))
        self.profiles.append(profile)
        if self.failure is not None:
            raise self.failure
        if body.get("stream"):
            return StreamingResponse(self.pieces(body), media_type="text/event-stream")
        tokens = tokens_of_current() if endpoint not in _WITHOUT_BATCH else TokenCount()
        self.counted.append(tokens)
        tokens.prompt += self.prompt_tokens
        with self._counted():
            # As vLLM does: a client that leaves ends the work.
            left = asyncio.ensure_future(_left(raw_request))
            await asyncio.wait({left}, timeout=self.chunk_pause_s)
            left.cancel()
        if left.done() or await raw_request.is_disconnected():
            return None
        answer = answer_to(endpoint, body, self.prompt_tokens, self.answer_tokens)
        tokens.completion += answer["usage"]["completion_tokens"]
        return JSONResponse(answer)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self.active += 1
        self.most = max(self.most, self.active)
        try:
            yield
        finally:
            self.active -= 1

    async def pieces(self, body: Mapping[str, Any]) -> AsyncIterator[str]:
        with self._counted():
            async for piece in self._pieces(body):
                yield piece

    async def _pieces(self, body: Mapping[str, Any]) -> AsyncIterator[str]:
        word, tokens = self.word, tokens_of_current()
        self.counted.append(tokens)
        tokens.prompt += self.prompt_tokens
        try:
            for index in range(self.chunks):
                if self.stream_error is not None and index == self.stream_error[0]:
                    yield self.stream_error[1]
                    break
                choice = {"index": 0, "delta": {"content": f"{word}{index} "}, "finish_reason": None}
                chunk = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": body["model"]}
                tokens.completion += 1
                yield f"data: {json.dumps(chunk | {'choices': [choice]})}\n\n"
                await asyncio.sleep(self.chunk_pause_s)
                if self.stream_failure is not None:
                    raise self.stream_failure
            yield "data: [DONE]\n\n"
        finally:
            self.streams_ended += 1

    def _require_ready(self) -> None:
        if self.current != "ready":
            raise EngineNotReady(self.current)


async def _left(raw_request: Any) -> None:
    while (await raw_request.receive())["type"] != "http.disconnect":
        continue


def answer_to(
    endpoint: Endpoint, body: Mapping[str, Any], prompt_tokens: int = 2, answer_tokens: int | None = 1
) -> dict[str, Any]:
    """A whole answer; of the right shape for chat, and for the others just something."""
    answer: dict[str, Any] = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": body["model"]}
    message = {"role": "assistant", "content": "words"}
    allowed = body.get("max_completion_tokens") or body.get("max_tokens") or body.get("max_output_tokens") or 1
    each = allowed if answer_tokens is None else min(allowed, answer_tokens)
    completion = each * (body.get("n") or 1)
    usage = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion,
        "total_tokens": prompt_tokens + completion,
    }
    if endpoint in ("tokenize", "count_tokens"):
        answer |= {"count": prompt_tokens, "input_tokens": prompt_tokens}
    return answer | {
        "endpoint": endpoint,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}],
        "usage": usage,
    }
