"""Answers with log-probabilities, made and written on a thread and not on the event loop.

VLLM makes an answer that is no stream in one go: an object for every alternative of every position, then all of them as
JSON. For a long answer that is seconds, in which every stream stands still. Here its handler gives what it has
gathered, and the same code of vLLM's makes the answer on a thread, where other threads get their turn. In the Responses
dialect the last events of a stream repeat all that went before, so that they are written there too.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from contextvars import ContextVar
from dataclasses import asdict, dataclass, is_dataclass
from functools import partial
from typing import Any, Final

from pydantic import BaseModel
from starlette.responses import JSONResponse

from amalgam.engine.cpu import patches
from amalgam.engine.plain_usage import make_plain

_THREADS: Final = 2
_FEW: Final = 64
"""A list may have so many entries and be made text with what is around it."""
_BY_ALIAS: Final[Mapping[str, Any]] = {"mode": "json", "by_alias": True}
"""Answers of the Responses dialect are dumped so by vLLM's route."""
_JSON: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_PUT_BY: Final = "put by"
"""It stands for an answer until it is made."""
_Found = tuple[BaseModel, str, list[Any], tuple[str | int, ...]]
_CHAT: Final = "vllm.entrypoints.openai.chat_completion.serving:OpenAIServingChat.chat_completion_full_generator"
_TEXT: Final = (
    "vllm.entrypoints.openai.completion.serving:OpenAIServingCompletion.request_output_to_completion_response"
)
_RESPONSES: Final = "vllm.entrypoints.openai.responses.serving:OpenAIServingResponses.responses_full_generator"
_CHAT_ENTRIES: Final = "vllm.entrypoints.openai.chat_completion.serving:OpenAIServingChat._create_chat_logprobs"
_RESPONSE_ENTRIES: Final = "vllm.entrypoints.openai.responses.serving:OpenAIServingResponses._create_response_logprobs"
_EMBEDDINGS: Final = "vllm.entrypoints.pooling.embed.serving:ServingEmbedding.json_response_cls"
_EVENTS: Final = "vllm.entrypoints.openai.responses.serving:OpenAIServingResponses.responses_stream_generator"


@dataclass
class PutBy:
    """What the handler of one request has left to be made: the answer, and the call that makes text of it."""

    make: Callable[[], bytes] | None = None


class Later(list[Any]):
    """Entries that are made when they are written, some at a time.

    All at once they would be millions of objects that live for as long as it takes, and whatever thread makes them, the
    collector of garbage looks at all of them with the interpreter's lock.

    Args:
        entries: makes them.
    """

    def __init__(self, entries: Callable[[], Iterator[Any]]) -> None:
        super().__init__()
        self.entries = entries


_put_by: ContextVar[PutBy | None] = ContextVar("amalgam_put_by", default=None)
_later: ContextVar[list[Later] | None] = ContextVar("amalgam_later", default=None)
"""It is set while an answer is made on a thread: the entries that it leaves to be made when they are written."""


class AnswerThreads:
    """Where answers are made and written."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="answer")

    def begin(self) -> PutBy:
        """Let the handler that this task calls next put its answer by."""
        put_by = PutBy()
        _put_by.set(put_by)
        return put_by

    async def write(self, make: Callable[[], bytes]) -> bytes:
        """What was put by, as text.

        Raises: what vLLM does while it makes an answer.
        """
        return await asyncio.get_running_loop().run_in_executor(self._threads, make)

    def close(self) -> None:
        """Take no more."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def let_write(app_state: Any, threads: AnswerThreads) -> None:
    """Let vLLM's handlers, as they were built, put by what has log-probabilities."""
    if (chat := getattr(app_state, "openai_serving_chat", None)) is not None:
        _hook_chat(chat)
    if (completion := getattr(app_state, "openai_serving_completion", None)) is not None:
        _hook_completion(completion)
    if (responses := getattr(app_state, "openai_serving_responses", None)) is not None:
        _hook_responses(responses, threads)
    if (embedding := getattr(app_state, "serving_embedding", None)) is not None:
        # It makes its answers on a thread already, and their text in one go.
        patches.put(_EMBEDDINGS, EntryByEntry, on=embedding)


def _hook_chat(handler: Any) -> None:
    full, create = handler.chat_completion_full_generator, handler._create_chat_logprobs

    async def put_by(request: Any, results: Any, *args: Any, **named: Any) -> Any:
        call = _put_by.get()
        if call is None or not (request.logprobs or request.prompt_logprobs is not None):
            return await full(request, results, *args, **named)
        last = [result async for result in results][-1:]
        call.make = lambda: as_json(_made(lambda: _driven(full(request, _given(last), *args, **named))))
        return handler.create_error_response(_PUT_BY)

    def later(*, token_ids: Any, top_logprobs: Any, **named: Any) -> Any:
        if _later.get() is None:
            return create(token_ids=token_ids, top_logprobs=top_logprobs, **named)
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionLogProbs

        def entries() -> Iterator[Any]:
            for some in _slices(len(token_ids)):
                yield from create(token_ids=token_ids[some], top_logprobs=top_logprobs[some], **named).content

        return ChatCompletionLogProbs.model_construct(content=Later(entries))

    patches.put(_CHAT, put_by, on=handler)
    patches.put(_CHAT_ENTRIES, later, on=handler)


def _hook_completion(handler: Any) -> None:
    full = handler.request_output_to_completion_response

    def put_by(results: Any, request: Any, *args: Any, **named: Any) -> Any:
        call = _put_by.get()
        if call is None or (request.logprobs is None and request.prompt_logprobs is None):
            return full(results, request, *args, **named)
        call.make = lambda: as_json(full(results, request, *args, **named))
        return handler.create_error_response(_PUT_BY)

    patches.put(_TEXT, put_by, on=handler)


def _hook_responses(handler: Any, threads: AnswerThreads) -> None:
    full, streamed = handler.responses_full_generator, handler.responses_stream_generator
    create = handler._create_response_logprobs

    async def put_by(request: Any, params: Any, results: Any, *args: Any, **named: Any) -> Any:
        call = _put_by.get()
        # A stream makes the whole answer too, for its last event.
        if call is None or request.stream or not request.is_include_output_logprobs():
            return await full(request, params, results, *args, **named)
        async for _ in results:
            continue
        call.make = lambda: as_json(
            _made(lambda: _driven(full(request, params, _given([]), *args, **named))), **_BY_ALIAS
        )
        return handler.create_error_response(_PUT_BY)

    def later(*, token_ids: Any, logprobs: Any, **named: Any) -> Any:
        put_off = _later.get()
        if put_off is None:
            return create(token_ids=token_ids, logprobs=logprobs, **named)

        def entries() -> Iterator[Any]:
            for some in _slices(len(token_ids)):
                yield from create(token_ids=token_ids[some], logprobs=logprobs[some], **named)

        put_off.append(Later(entries))
        return []

    async def written(*args: Any, **named: Any) -> AsyncIterator[Any]:
        async with aclosing(streamed(*args, **named)) as events:
            async for event in events:
                if not any(_long_lists(event)):
                    yield event
                    continue
                text = await threads.write(partial(as_json, event, **_BY_ALIAS))
                yield WrittenEvent(event.type, text.decode())

    patches.put(_RESPONSES, put_by, on=handler)
    patches.put(_RESPONSE_ENTRIES, later, on=handler)
    patches.put(_EVENTS, written, on=handler)


@dataclass(frozen=True, slots=True)
class WrittenEvent:
    """An event of the Responses dialect that is text already, for vLLM's route, which asks events for their text."""

    type: str
    text: str

    def model_dump_json(self, **_: Any) -> str:
        """The text."""
        return self.text


async def _given(results: Iterable[Any]) -> AsyncIterator[Any]:
    """Results that are all there."""
    for result in results:
        yield result


def _driven(work: Coroutine[Any, Any, Any]) -> Any:
    """What ``work`` returns, which waits for nothing: it needs no event loop."""
    try:
        work.send(None)
    except StopIteration as ended:
        return ended.value
    work.close()
    raise RuntimeError("an answer whose results are all there waits for something")


def _made(make: Callable[[], BaseModel]) -> BaseModel:
    """The answer that ``make`` makes, whose log-probabilities are left to be made when they are written."""
    put_off: list[Later] = []
    before = _later.set(put_off)
    try:
        answer = make()
    finally:
        _later.reset(before)
    for entries, part in zip(put_off, _parts_without_entries(answer), strict=False):
        part.__dict__["logprobs"] = entries
    return answer


def _parts_without_entries(answer: BaseModel) -> Iterator[BaseModel]:
    """The texts of an answer in the Responses dialect that have log-probabilities, which are still to come."""
    for item in getattr(answer, "output", ()):
        yield from (part for part in getattr(item, "content", None) or () if getattr(part, "logprobs", None) == [])


def _slices(count: int) -> Iterator[slice]:
    return (slice(start, start + _FEW) for start in range(0, count, _FEW))


class EntryByEntry(JSONResponse):
    """An answer with a list of ``data``, each entry of which is made text by itself."""

    def render(self, content: Any) -> bytes:
        """The text."""
        return "".join(_written(content | {"data": Later(lambda: iter(content["data"]))})).encode()


def as_json(answer: BaseModel, **how: Any) -> bytes:
    """``answer`` as JSON; each entry of a long list is made text by itself, so that other threads run in between.

    Args:
        how: what ``model_dump`` is to be told.
    """
    apart = list(_long_lists(answer))
    for holder, name, _, _ in apart:
        holder.__dict__[name] = []
    try:
        content = answer.model_dump(**how)
    finally:
        # Events of a stream share what they repeat.
        for holder, name, entries, _ in apart:
            holder.__dict__[name] = entries
    for _, name, entries, path in apart:
        place: Any = content
        for step in path:
            place = place[step]
        place[name] = Later(partial(_dumped_each, entries, how))
    make_plain(content.get("response", content))
    return "".join(_written(content)).encode()


def _long_lists(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[_Found]:
    """The lists of ``value`` that are longer than a few entries: holder, field, entries, and the way to the holder."""
    if isinstance(value, BaseModel):
        for name, inner in value.__dict__.items():
            if isinstance(inner, Later) or (isinstance(inner, list) and len(inner) > _FEW):
                yield value, name, inner, path
            else:
                yield from _long_lists(inner, (*path, name))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _long_lists(inner, (*path, index))


def _dumped_each(entries: list[Any], how: Mapping[str, Any]) -> Iterator[Any]:
    return (_dumped(entry, how) for entry in (entries.entries() if isinstance(entries, Later) else entries))


def _dumped(entry: Any, how: Mapping[str, Any]) -> Any:
    """One entry, as pydantic dumps it in its list."""
    if isinstance(entry, BaseModel):
        return entry.model_dump(**how)
    if isinstance(entry, dict):
        return {key: _dumped(value, how) for key, value in entry.items()}
    return asdict(entry) if is_dataclass(entry) and not isinstance(entry, type) else entry


def _written(value: Any) -> Iterator[str]:
    """The text of ``value``, in parts."""
    if isinstance(value, dict):
        yield "{"
        for index, (key, inner) in enumerate(value.items()):
            yield f"{',' if index else ''}{_JSON.encode(str(key))}:"
            yield from _written(inner)
        yield "}"
    elif isinstance(value, Later):
        yield "["
        for index, entry in enumerate(value.entries()):
            yield f"{',' if index else ''}{_JSON.encode(entry)}"
        yield "]"
    elif isinstance(value, list):
        yield "["
        for index, inner in enumerate(value):
            if index:
                yield ","
            yield from _written(inner)
        yield "]"
    else:
        yield _JSON.encode(value)
