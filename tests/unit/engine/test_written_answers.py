"""What is written beside the loop is what vLLM itself would have written, on a thread, and lets the loop go on."""

import asyncio
import gc
import json
import threading
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Message
from vllm.entrypoints.generate.base.protocol import RequestResponseMetadata
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
from vllm.entrypoints.openai.responses.api_router import _convert_stream_to_sse_events
from vllm.entrypoints.openai.responses.context import SimpleContext
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.logprobs import Logprob
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import SamplingParams

from amalgam.engine.plain_usage import make_plain
from amalgam.engine.protocol import Endpoint
from amalgam.engine.vllm_endpoints import answer, endpoint_table
from amalgam.engine.written_answers import AnswerThreads, as_json, let_write
from tests.api.nasty_requests import STALL_LIMIT_S, stall

CHAT = ChatCompletionRequest(messages=[{"role": "user", "content": "a"}], logprobs=True, top_logprobs=2, n=2)
TEXT = CompletionRequest(prompt="a", logprobs=2, prompt_logprobs=2, max_tokens=9)
RESPONSE = ResponsesRequest(
    input="a", include=["message.output_text.logprobs"], top_logprobs=2, store=False, request_id="resp_1"
)
PARAMS = SamplingParams(max_tokens=9, temperature=0.5, logprobs=2)
BY_ALIAS = {"mode": "json", "by_alias": True}
SERVED: dict[str, Any] = {
    "parser_cls": None, "enable_auto_tools": False, "system_fingerprint": "one", "response_role": "assistant",
    "return_tokens_as_token_ids": False, "enable_log_outputs": False, "request_logger": None, "use_harmony": False,
    "enable_per_request_metrics": False, "enable_prompt_tokens_details": False,
    "_include_reasoning_tokens_details": False,
}  # fmt: skip


class Tokenizer:
    """Never asked: every log-probability has its text."""


class State:
    """Of an application in which vLLM has built its handlers; each remembers the threads that it worked in."""

    def __init__(self) -> None:
        self.worked_in: set[str] = set()
        self.openai_serving_chat = self._built(OpenAIServingChat)
        self.openai_serving_completion = self._built(OpenAIServingCompletion)
        self.openai_serving_responses = self._built(OpenAIServingResponses)

    def _built(self, kind: type[Any]) -> Any:
        """Without an engine, which they do not need to write what it has said."""
        worked_in = self.worked_in

        class Built(kind):  # type: ignore[misc]
            def _get_decoded_token(self, logprob: Logprob, *_: Any, **__: Any) -> str:
                worked_in.add(threading.current_thread().name)
                assert logprob.decoded_token is not None
                return str(logprob.decoded_token)

        made = object.__new__(Built)
        made.__dict__.update(SERVED)
        return made


@pytest.fixture
def threads() -> Iterator[AnswerThreads]:
    made = AnswerThreads()
    yield made
    made.close()


def positions(count: int) -> list[dict[int, Logprob]]:
    """Two alternatives each, among them texts that JSON and UTF-8 take pains with."""
    texts = ['"', "é\n", "\ufffd", "\u2028", "\x00", "word"]
    return [
        {token: Logprob(-0.25 - token / 7, token + 1, texts[(at + token) % len(texts)]) for token in (1, 2, 3)}
        for at in range(count)
    ]


def output(count: int, choices: int = 1) -> RequestOutput:
    prompt = [None, *positions(3)]
    made = [CompletionOutput(at, "said", [1] * count, -1.0, positions(count), finish_reason="length")
            for at in range(choices)]  # fmt: skip
    return RequestOutput("one", "a", [1, 2, 3, 4], prompt, made, finished=True)


async def given(*results: Any) -> AsyncIterator[Any]:
    for result in results:
        yield result


def context(count: int) -> SimpleContext:
    made = SimpleContext()
    made.append_output(output(count))
    return made


async def asked(state: State, dialect: str, count: int) -> Any:
    """What vLLM's handler makes of an answer of ``count`` tokens in each choice."""
    metadata = RequestResponseMetadata(request_id="one")
    if dialect == "chat":
        return await state.openai_serving_chat.chat_completion_full_generator(
            CHAT, given(output(count, 2)), "one", "tiny", [], Tokenizer(), metadata
        )
    if dialect == "text":
        return state.openai_serving_completion.request_output_to_completion_response(
            [output(count), output(count)], TEXT, "one", 1, "tiny", Tokenizer(), metadata
        )
    return await state.openai_serving_responses.responses_full_generator(
        RESPONSE, PARAMS, given(), context(count), "tiny", Tokenizer(), metadata, 1
    )


def without_chance(content: Any) -> Any:
    """Without what is drawn anew for each answer."""
    content.pop("created", None)
    for item in content.get("output", ()):
        item.pop("id")
    make_plain(content)
    return content


@pytest.mark.parametrize("count", [1, 9, 70, 200])
@pytest.mark.parametrize("dialect", ["chat", "text", "responses"])
async def test_an_answer_is_what_vllm_writes(threads: AnswerThreads, dialect: str, count: int) -> None:
    state = State()
    how = BY_ALIAS if dialect == "responses" else {}
    plain = json.loads(bytes(JSONResponse((await asked(state, dialect, count)).model_dump(**how)).body))
    assert state.worked_in == {threading.current_thread().name}
    state.worked_in.clear()
    let_write(state, threads)
    put_by = threads.begin()
    assert isinstance(await asked(state, dialect, count), ErrorResponse), "stands for what is still to be made"
    assert not state.worked_in
    assert put_by.make is not None
    written = json.loads(await threads.write(put_by.make))
    assert without_chance(written) == without_chance(plain)
    assert all(name.startswith("answer") for name in state.worked_in)


@pytest.mark.parametrize("dialect", ["chat_completions", "completions"])
async def test_vllms_route_gives_the_answer_that_was_made(threads: AnswerThreads, dialect: Endpoint) -> None:
    """From a checked body to what is sent; what stands for the answer meanwhile is seen by nobody."""
    state, app = State(), FastAPI()
    let_write(state, threads)

    async def chat(*_: Any) -> Any:
        return await asked(state, "chat", 9)

    async def completion(*_: Any) -> Any:
        return await asked(state, "text", 9)

    state.openai_serving_chat.create_chat_completion = chat
    state.openai_serving_completion.create_completion = completion
    for name, value in vars(state).items():
        setattr(app.state, name, value)
    gone = asyncio.Event()

    async def receive() -> Message:
        await gone.wait()
        return {"type": "http.disconnect"}

    request = Request({"type": "http", "app": app, "headers": [], "state": {}}, receive)
    asks: dict[str, Any] = {"prompt": "a"} if dialect == "completions" else {"messages": CHAT.messages}
    body = {"model": "tiny"} | asks
    response = await answer(endpoint_table()[dialect], body, request, threads)
    assert (response.status_code, response.media_type) == (200, "application/json")
    assert json.loads(response.body)["usage"]["prompt_tokens"] in (4, 8)


async def test_a_request_without_log_probabilities_is_answered_at_once(threads: AnswerThreads) -> None:
    state = State()
    let_write(state, threads)
    put_by = threads.begin()
    plain = CHAT.model_copy(update={"logprobs": False})
    answer = await state.openai_serving_chat.chat_completion_full_generator(
        plain, given(output(9)), "one", "tiny", [], Tokenizer(), RequestResponseMetadata(request_id="one")
    )
    assert answer.choices[0].message.content == "said"
    assert put_by.make is None


async def events(state: State, count: int) -> list[tuple[str, Any]]:
    """A stream of one-token answers, as vLLM's route writes it."""
    streaming = RESPONSE.model_copy(update={"stream": True})
    made = SimpleContext()

    async def steps() -> AsyncIterator[SimpleContext]:
        for at in range(count):
            step = output(1)
            step.outputs[0].finish_reason = "length" if at == count - 1 else None
            made.append_output(step)
            yield made

    stream = state.openai_serving_responses.responses_stream_generator(
        streaming, PARAMS, steps(), made, "tiny", Tokenizer(), RequestResponseMetadata(request_id="one"), 1
    )
    found = []
    async for text in _convert_stream_to_sse_events(stream):
        kind, _, data = text.removesuffix("\n\n").partition("\ndata: ")
        found.append((kind, json.loads(data)))
    return found


def unnumbered(content: Any) -> Any:
    """Without the ids of messages, which are drawn anew."""
    if isinstance(content, dict):
        make_plain(content)
        return {key: unnumbered(value) for key, value in content.items() if key not in ("id", "item_id")}
    return [unnumbered(one) for one in content] if isinstance(content, list) else content


@pytest.mark.parametrize("count", [3, 80])
async def test_the_last_events_of_a_stream_are_what_vllm_writes(threads: AnswerThreads, count: int) -> None:
    state = State()
    plain = await events(state, count)
    let_write(state, threads)
    written = await events(state, count)
    assert [kind for kind, _ in written] == [kind for kind, _ in plain]
    assert unnumbered([data for _, data in written]) == unnumbered([data for _, data in plain])


def test_what_is_written_stays_as_it_was() -> None:
    """Events of one stream share the list that each of them repeats."""
    answer = CHAT.model_copy(update={"stop": ["x"] * 100})
    before = answer.stop
    assert json.loads(as_json(answer))["stop"] == before
    assert answer.stop is before


def test_embeddings_are_what_vllm_writes(threads: AnswerThreads) -> None:
    state = SimpleNamespace(serving_embedding=SimpleNamespace(json_response_cls=JSONResponse))
    let_write(state, threads)
    data = [{"index": at, "object": "embedding", "embedding": [at / 3, 1e-9, -0.5]} for at in range(3)]
    for content in ({"id": "one", "data": data, "usage": {"prompt_tokens": 4}}, {"id": "é", "data": []}):
        assert state.serving_embedding.json_response_cls(content=content).body == JSONResponse(content).body


@pytest.mark.alone
@pytest.mark.parametrize("dialect", ["chat", "text", "responses"])
async def test_the_loop_goes_on_while_a_long_answer_is_written(threads: AnswerThreads, dialect: str) -> None:
    """Twelve thousand tokens, which take vLLM half a second in one go."""
    state = State()
    let_write(state, threads)
    put_by = threads.begin()
    await asked(state, dialect, 12_000)
    assert put_by.make is not None
    # As the server does at its start: a collection looks at what came since, and not at all that other tests left.
    gc.collect()
    gc.freeze()
    try:
        with stall() as longest:
            body = await threads.write(put_by.make)
    finally:
        gc.unfreeze()
    assert len(body) > 1_000_000
    assert longest[0] <= STALL_LIMIT_S
