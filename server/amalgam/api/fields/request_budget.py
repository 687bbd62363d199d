"""Bounds on what the fields of one request ask for together.

Each field may be small and their product large: prompts times choices times positions times alternatives. What is
made of them is made on the event loop in one go, so that the product decides how long all other streams stand still.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from amalgam.api.fields.checks import MAX_PROMPTS
from amalgam.api.fields.constraints import json_schemas
from amalgam.api.fields.contents import functions_of
from amalgam.engine.protocol import Endpoint
from amalgam.errors.requests import FieldRefused

MAX_LOGPROB_ENTRIES: Final = 1 << 14
"""It bounds the log-probabilities in one answer, all of which are in memory at once. Of an answer's own tokens one each
may fill a longer context."""
MAX_CHAT_ENTRIES: Final = 6144
"""It bounds the same in the answer to a chat, where each is an object with its bytes."""
MAX_DETOKENIZED: Final = 1 << 14
"""The tokenizer holds the interpreter's lock while it decodes, for a tenth of a second at 65,536 ids."""
MAX_TOKEN_IDS: Final = 1 << 17
"""All prompts of one request have at most so many token ids; or a context full, where that is more."""
CHARACTERS_PER_TOKEN: Final = 32
"""It is generous: prose has four, code three; a text that is longer than the context times this cannot fit it."""
_LEAST_TEXT: Final = 1 << 16
MAX_PARTS_TOGETHER: Final = 8192
MAX_FUNCTIONS: Final = 512
_LEAST_BODY_BYTES: Final[Mapping[str, int]] = {
    "completions": 1 << 20,
    "embeddings": 1 << 22,
    "tokenize": 1 << 20,
    "detokenize": 1 << 20,
}
_LEAST_CHAT_BYTES: Final = 1 << 18
_INCLUDED: Final = "message.output_text.logprobs"
"""A request in the Responses dialect includes this where it wants log-probabilities."""
_ANY_LENGTH: Final = 1 << 40
_LENGTHS: Final = ("max_completion_tokens", "max_tokens", "max_output_tokens")
UNSAID_COMPLETION: Final = 16
"""A completion that says nothing has so many tokens, in OpenAI's API and in vLLM."""
_LIMITS: Final[Mapping[Endpoint, tuple[str, ...]]] = {
    "chat_completions": ("max_completion_tokens", "max_tokens"),
    "responses": ("max_output_tokens",),
}
"""These fields say an answer's limit, the newest first, where one without a limit is as long as the context allows."""
_AT_MOST: Final = "must be at most %d; ask for fewer"
_TEMPLATE_TOKENS: Final = 64
"""A chat template adds about so many."""
_LISTS_OF_PARTS: Final = frozenset({"content", "tool_calls", "output", "summary"})


def body_limit(endpoint: Endpoint, context_tokens: int | None, general_bytes: int) -> int:
    """The largest body of a request to ``endpoint``, bytes: what the context can hold, generously.

    Args:
        endpoint: where batches of prompts come, the limit is higher.
        context_tokens: longest prompt plus answer; None where it is not known.
        general_bytes: never more than this.
    """
    if context_tokens is None:
        return general_bytes
    least = _LEAST_BODY_BYTES.get(endpoint, _LEAST_CHAT_BYTES)
    return min(general_bytes, max(least, context_tokens * CHARACTERS_PER_TOKEN))


def check_together(endpoint: Endpoint, body: Mapping[str, Any], context_tokens: int | None) -> None:
    """Refuse what is too much together, or contradicts itself; every field has passed its own check.

    Raises:
        FieldRefused: on the field to lower first.
    """
    prompt = body.get("prompt") if endpoint != "embeddings" else body.get("input")
    count = prompt_count(prompt) if prompt is not None else 1
    choices: int = body.get("n") or 1
    if endpoint == "completions" and choices * count > MAX_PROMPTS:
        raise FieldRefused("n", f"prompts times n must be at most {MAX_PROMPTS}")
    if body.get("stream_options") is not None and not body.get("stream"):
        raise FieldRefused("stream_options", "needs stream to be true")
    longest = next((body[name] for name in _LENGTHS if body.get(name) is not None), None)
    if longest is not None and (body.get("min_tokens") or 0) > longest:
        raise FieldRefused("min_tokens", "must not be larger than max_tokens")
    if body.get("top_logprobs") and body.get("logprobs") is False:
        raise FieldRefused("top_logprobs", "needs logprobs to be true")
    if body.get("structured_outputs") and (body.get("response_format") or {}).get("type", "text") != "text":
        raise FieldRefused("structured_outputs", "cannot stand beside response_format; send one of the two")
    if endpoint == "completions" and longest == 0 and not body.get("echo"):
        raise FieldRefused("max_tokens", "must not be 0 without echo")
    _check_lengths(body, context_tokens)
    if longest is None and endpoint == "completions":
        longest = UNSAID_COMPLETION
    _check_logprobs(endpoint, body, count, choices, longest, context_tokens)
    for name in ("messages", "input"):
        _check_parts(name, body.get(name))
    _check_compiled_tools(body)


def bounded_answer(endpoint: Endpoint, body: dict[str, Any], context_tokens: int | None) -> dict[str, Any]:
    """``body``, with a limit of tokens where it has none and its answer tells log-probabilities.

    Who asks for them seldom says how long it may be. It ends with the reason ``length`` where the limit cuts it.

    Args:
        endpoint: of the request.
        body: checked.
        context_tokens: longest prompt plus answer; None where it is not known.
    """
    names = _LIMITS.get(endpoint, ())
    alternatives = alternatives_of(endpoint, body) if names else None
    if alternatives is None or not _is_whole(endpoint, body) or any(body.get(name) is not None for name in names):
        return body
    longest = _most_entries(endpoint, context_tokens) // (alternatives * (body.get("n") or 1))
    return body if context_tokens is not None and longest >= context_tokens else {**body, names[0]: longest}


def prompt_count(value: Any) -> int:
    """How many prompts a checked value is."""
    return len(value) if isinstance(value, list) and not isinstance(value[0], int) else 1


def _check_lengths(body: Mapping[str, Any], context_tokens: int | None) -> None:
    if context_tokens is None:
        return
    characters = max(_LEAST_TEXT, context_tokens * CHARACTERS_PER_TOKEN)
    ids = max(MAX_TOKEN_IDS, context_tokens)
    for name in ("prompt", "input", "tokens"):
        value = body.get(name)
        if value is None:
            continue
        if max(map(len, _texts(value)), default=0) > characters:
            raise FieldRefused(name, f"must have at most {characters} characters, many times the model's context")
        most = MAX_DETOKENIZED if name == "tokens" else ids
        if sum(map(len, _id_lists(value))) > most:
            raise FieldRefused(name, f"must have at most {most} token ids in all; send them in several requests")


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        yield from (text for text in value if isinstance(text, str))


def _id_lists(value: Any) -> Iterator[list[int]]:
    if isinstance(value, list) and value:
        if isinstance(value[0], int):
            yield value
        elif isinstance(value[0], list):
            yield from value


def _check_logprobs(
    endpoint: Endpoint,
    body: Mapping[str, Any],
    prompts: int,
    choices: int,
    longest: int | None,
    context_tokens: int | None,
) -> None:
    """Bound the log-probabilities of the answer, and of the prompts that it repeats."""
    alternatives = alternatives_of(endpoint, body)
    in_prompt = body.get("prompt_logprobs")
    if alternatives is None and in_prompt is None:
        return
    if in_prompt is None and body.get("echo") and alternatives is not None:
        in_prompt = alternatives - 1
    entries = 0
    if in_prompt is not None:
        # Each choice of a completion tells those of its prompt again.
        told = choices if "prompt" in body else 1
        entries = told * _prompt_positions(body, context_tokens or _ANY_LENGTH) * (in_prompt + 1)
        if entries > MAX_LOGPROB_ENTRIES:
            name = "prompt_logprobs" if body.get("prompt_logprobs") is not None else "echo"
            limit = _AT_MOST % MAX_LOGPROB_ENTRIES
            raise FieldRefused(name, f"n times prompts times tokens times log-probabilities {limit}, or send less")
    if alternatives is not None and _is_whole(endpoint, body):
        most = _most_entries(endpoint, context_tokens)
        # An answer without a limit gets one, by `bounded_answer`.
        positions = min(1 if longest is None else longest, context_tokens or _ANY_LENGTH)
        entries += prompts * choices * positions * alternatives
        if entries > most:
            if endpoint == "responses":
                raise FieldRefused("top_logprobs", f"max_output_tokens times log-probabilities {_AT_MOST % most}")
            name = "top_logprobs" if body.get("top_logprobs") is not None else "logprobs"
            raise FieldRefused(name, f"n times max_tokens times log-probabilities {_AT_MOST % most}, or stream")


def _is_whole(endpoint: Endpoint, body: Mapping[str, Any]) -> bool:
    """Whether all log-probabilities of the answer are in memory at once.

    The parts of a stream go out as they are made; in the Responses dialect its end repeats all of them.
    """
    return endpoint == "responses" or not body.get("stream")


def _most_entries(endpoint: Endpoint, context_tokens: int | None) -> int:
    are_objects = endpoint != "completions"
    return max(MAX_CHAT_ENTRIES if are_objects else MAX_LOGPROB_ENTRIES, context_tokens or 0)


def alternatives_of(endpoint: Endpoint, body: Mapping[str, Any]) -> int | None:
    """Log-probabilities at one position of the answer; None where none are asked for."""
    if endpoint == "responses":
        return (body.get("top_logprobs") or 0) + 1 if _INCLUDED in (body.get("include") or ()) else None
    asked = body.get("logprobs")
    if asked is True:
        return (body.get("top_logprobs") or 0) + 1
    if asked is None or asked is False:
        return body["top_logprobs"] + 1 if body.get("top_logprobs") else None
    return int(asked) + 1


def _prompt_positions(body: Mapping[str, Any], context: int) -> int:
    """Tokens of all prompts: exact of ids, a third of a text's characters, and a context full at most each."""
    value = body.get("prompt")
    if value is None:
        return min(_TEMPLATE_TOKENS + sum(map(_tokens, _contents(body.get("messages")))), context)
    ids = sum(min(len(one), context) for one in _id_lists(value))
    return ids or sum(min(_tokens(text), context) for text in _texts(value))


def _tokens(text: str) -> int:
    return -(-len(text) // 3)


def _contents(messages: Any) -> Iterator[str]:
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content")
        yield from _texts(content)
        if isinstance(content, list):
            yield from (
                part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)
            )


def _check_parts(name: str, messages: Any) -> None:
    if not isinstance(messages, list):
        return
    parts = 0
    for message in messages:
        if isinstance(message, dict):
            for key, value in message.items():
                if isinstance(value, list) and key in _LISTS_OF_PARTS:
                    parts += len(value)
    if parts > MAX_PARTS_TOGETHER:
        raise FieldRefused(name, f"must have at most {MAX_PARTS_TOGETHER} parts and calls in all")


def _check_compiled_tools(body: Mapping[str, Any]) -> None:
    """The schemas of tools that the answer is constrained to become one automaton."""
    tools, choice = body.get("tools"), body.get("tool_choice")
    if not tools:
        return
    kind = choice.get("type") if isinstance(choice, dict) else choice
    functions = list(functions_of(tools))
    if len(functions) > MAX_FUNCTIONS:
        raise FieldRefused("tools", f"functions of all namespaces together {_AT_MOST % MAX_FUNCTIONS}")
    if isinstance(choice, dict) and kind in ("tool", "function"):
        # The one by its name is compiled, and so are the strict ones by some parsers.
        inner = choice.get("function")
        named = (inner if isinstance(inner, dict) else choice).get("name")
        # In a namespace its name may be asked for alone, or after the namespace's.
        asked = str(named)
        functions = [f for f in functions if f.get("strict") or asked.endswith(str(f.get("name")))]
    elif kind not in ("required", "any", "allowed_tools"):
        functions = [function for function in functions if function.get("strict")]
    if not functions:
        return
    json_schemas("tools", [f[key] for f in functions for key in ("parameters", "input_schema") if f.get(key)])
