"""The endpoints that vLLM's own handlers answer: request class and handler, one row each.

Streaming, cancellation when the client leaves, tools, structured output, log-probs and usage are all theirs.
Importing this module imports vLLM, so it is imported when the engine starts and not before.
"""

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError
from starlette.responses import Response, StreamingResponse
from vllm.entrypoints.anthropic import api_router as anthropic
from vllm.entrypoints.openai.chat_completion import api_router as chat
from vllm.entrypoints.openai.completion import api_router as completion
from vllm.entrypoints.openai.responses import api_router as responses
from vllm.entrypoints.pooling.embed import api_router as embed
from vllm.entrypoints.serve import create_error_response
from vllm.entrypoints.serve.tokenize import api_router as tokenize
from vllm.exceptions import VLLMError
from vllm.v1.engine.exceptions import EngineDeadError

from amalgam.engine.constraint_failures import constraint_of, explained_stream
from amalgam.engine.media_failures import media_failure
from amalgam.engine.object_arguments import bind_to_objects
from amalgam.engine.own_templates import begin, let_in
from amalgam.engine.plain_usage import with_plain_usage
from amalgam.engine.protocol import CallProfile, Endpoint
from amalgam.engine.stripped_request import stripped_request
from amalgam.engine.whole_messages import tell_whatever_was_said
from amalgam.engine.written_answers import AnswerThreads, let_write
from amalgam.errors import AmalgamError
from amalgam.errors.engine import EngineNotReady, EngineRefused
from amalgam.errors.internal import SoundUnusable
from amalgam.errors.requests import MediaUnsupported
from amalgam.errors.type_words import told

# What vLLM's own exception handlers turn into answers; anything else is a fault of the server and stays one.
ANSWERED: Final = (VLLMError, ValueError, TypeError, OverflowError, NotImplementedError)


@dataclass(frozen=True, slots=True)
class EndpointSpec:
    """One row: how a body is read, who answers, and which attribute of the app's state shows that someone does.

    ``shaped`` brings an answer into the shape that clients know.
    """

    request: TypeAdapter[Any]
    handler: Callable[[Any, Any], Awaitable[Any]]
    state_attribute: str
    shaped: Callable[[Any], Any] = lambda response: response


def prepared_endpoints(app_state: Any, threads: AnswerThreads) -> Mapping[Endpoint, EndpointSpec]:
    """All rows, for the handlers that vLLM has put into ``app_state``."""
    tell_whatever_was_said(getattr(app_state, "anthropic_serving_messages", None))
    let_in(app_state)
    bind_to_objects()
    let_write(app_state, threads)
    return endpoint_table()


def endpoint_table() -> Mapping[Endpoint, EndpointSpec]:
    """All rows. Built on call, because the request classes are heavy to adapt."""
    return {
        "chat_completions": EndpointSpec(
            TypeAdapter(chat.ChatCompletionRequest), chat.create_chat_completion, "openai_serving_chat"
        ),
        "completions": EndpointSpec(
            TypeAdapter(completion.CompletionRequest), completion.create_completion, "openai_serving_completion"
        ),
        "responses": EndpointSpec(
            TypeAdapter(responses.ResponsesRequest),
            responses.create_responses,
            "openai_serving_responses",
            with_plain_usage,
        ),
        "messages": EndpointSpec(
            TypeAdapter(anthropic.AnthropicMessagesRequest), anthropic.create_messages, "anthropic_serving_messages"
        ),
        "count_tokens": EndpointSpec(
            TypeAdapter(anthropic.AnthropicCountTokensRequest), anthropic.count_tokens, "anthropic_serving_messages"
        ),
        "tokenize": EndpointSpec(TypeAdapter(tokenize.TokenizeRequest), tokenize.tokenize, "serving_tokenization"),
        "detokenize": EndpointSpec(
            TypeAdapter(tokenize.DetokenizeRequest), tokenize.detokenize, "serving_tokenization"
        ),
        "embeddings": EndpointSpec(TypeAdapter(embed.EmbeddingRequest), embed.create_embedding, "serving_embedding"),
    }


async def answer(
    spec: EndpointSpec,
    body: dict[str, Any],
    raw_request: Any,
    threads: AnswerThreads,
    profile: CallProfile | None = None,
) -> Any:
    """Read ``body`` with vLLM's request class and let vLLM's handler answer; see `Engine.call`."""
    try:
        request = spec.request.validate_python(body)
    except ValidationError as error:
        raise _refused_field(error) from None
    except ANSWERED as error:
        raise _refused(create_error_response(error).error) from None
    asked, put_by = begin(profile), threads.begin()
    try:
        response = await spec.handler(request, stripped_request(raw_request))
        if put_by.make is not None and response is not None:
            response = Response(await threads.write(put_by.make), media_type="application/json")
    except EngineDeadError:
        raise EngineNotReady("restarting") from None
    except AmalgamError:
        raise
    except ANSWERED as error:
        raise _refused_error(error, body) from None
    if asked.failure is not None:
        raise asked.failure
    if response is not None and response.status_code >= 400:
        raise _refused_body(response.status_code, response.body, body)
    if isinstance(response, StreamingResponse) and (constraint := constraint_of(body)) is not None:
        pieces = explained_stream(response.body_iterator, constraint)
        response = StreamingResponse(pieces, response.status_code, response.headers, background=response.background)
    return spec.shaped(response)


def _refused(info: Any) -> EngineRefused:
    return EngineRefused(int(info.code), info.message, info.param)


def _refused_error(error: Exception, asked: Mapping[str, Any]) -> AmalgamError:
    if isinstance(error, SoundUnusable):
        return MediaUnsupported(_media_field(asked), error.why, error.step)
    if isinstance(error, ValidationError):
        return _refused_field(error)
    info = create_error_response(error).error
    return media_failure(_media_field(asked), info.message, error.__cause__) or _refused(info)


def _refused_body(status: int, body: bytes, asked: Mapping[str, Any]) -> AmalgamError:
    error = json.loads(body).get("error") or {}
    message = str(error.get("message", "The request was refused."))
    return media_failure(_media_field(asked), message) or EngineRefused(status, message, error.get("param"))


def _media_field(asked: Mapping[str, Any]) -> str:
    return "messages" if "messages" in asked else "input"


def _refused_field(error: ValidationError) -> EngineRefused:
    """The first field at fault, by its name in the body; the value itself is not repeated."""
    first = error.errors(include_input=False, include_url=False)[0]
    # Union members add class names, and wrappers their own, to the location; a field is a word in lower case.
    path = [str(part) for part in first["loc"] if isinstance(part, int) or (part.isidentifier() and part.islower())]
    param = ".".join(path) or None
    return EngineRefused(400, f"{param or 'body'}: {told(first)}", param)
