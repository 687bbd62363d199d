"""How many tokens a checked request may take: a bound that its body alone gives, and the count of the engine itself.

The bound costs nothing and is generous, so that what is reserved by it is never too little: no tokenizer makes more
tokens of a text than it has bytes. Where it is more than is left of a limit, the prompt is counted as it will be.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from starlette.requests import Request

from amalgam.api.fields.request_budget import UNSAID_COMPLETION, prompt_count
from amalgam.api.fields.strict_json import parse_object
from amalgam.engine.protocol import Endpoint, Engine

_TEMPLATE_TOKENS: Final = 512
"""A chat template may add so many by itself: a system prompt of its own, and how tools are to be called."""
_SPECIAL_TOKENS: Final = 8
"""A tokenizer may add so many to a text."""
ANSWER_FIELDS: Final[Mapping[Endpoint, tuple[str, ...]]] = {
    "chat_completions": ("max_completion_tokens", "max_tokens"),
    "completions": ("max_tokens",),
    "responses": ("max_output_tokens",),
    "messages": ("max_tokens",),
    "embeddings": (),
}
"""By endpoint that computes, these fields say how long its answer may be; the first that is set counts."""
_CHAT_FIELDS: Final = ("messages", "tools", "add_generation_prompt", "continue_final_message", "chat_template_kwargs")
_COUNT_FIELDS: Final = ("messages", "tools", "system", "tool_choice", "thinking")


@dataclass(frozen=True, slots=True)
class TokenCost:
    """What a request may take.

    Attributes:
        prompt: tokens of all its prompts, at most; each counts once, however many choices there are.
        sequences: choices of all prompts.
        answer: tokens of each, at most; None: the request does not say.
    """

    prompt: int
    sequences: int
    answer: int | None

    def total(self, answer: int | None = None) -> int:
        """The tokens of the whole request, where each answer has at most ``answer``; None: what the request says."""
        each = self.answer if answer is None else answer
        return self.prompt + self.sequences * (each or 0)


def cost_of(
    endpoint: Endpoint, body: Mapping[str, Any], sequences: int, text_bytes: int, context_tokens: int | None
) -> TokenCost:
    """The bound.

    Args:
        endpoint: one of `ANSWER_FIELDS`.
        body: of the request, checked.
        sequences: that it has the engine run at once.
        text_bytes: size of the body without its media.
        context_tokens: longest prompt plus answer; None where it is not known.
    """
    given = body.get("prompt" if endpoint == "completions" else "input")
    prompts = prompt_count(given) if given and endpoint in ("completions", "embeddings") else 1
    is_chat = endpoint not in ("completions", "embeddings")
    prompt = text_bytes + (_TEMPLATE_TOKENS if is_chat else _SPECIAL_TOKENS * prompts)
    if context_tokens is not None:
        prompt = min(prompt, prompts * context_tokens)
    answer = _answer_tokens(endpoint, body)
    if answer is not None and context_tokens is not None:
        answer = min(answer, context_tokens)
    return TokenCost(prompt, sequences, answer)


def _answer_tokens(endpoint: Endpoint, body: Mapping[str, Any]) -> int | None:
    names = ANSWER_FIELDS[endpoint]
    if not names:
        return 0
    said = next((body[name] for name in names if body.get(name) is not None), None)
    if said is None and endpoint == "completions":
        return UNSAID_COMPLETION
    return None if said is None else int(said)


async def counted_prompt(
    endpoint: Endpoint, body: Mapping[str, Any], engine: Engine, model: str, request: Request
) -> int | None:
    """Tokens of all prompts, as the engine will count them; None where nobody can say.

    Args:
        endpoint: one of `ANSWER_FIELDS`.
        body: of the request, checked.
        engine: with the tokenizer.
        model: the base model's name.
        request: that asks.
    """
    if endpoint in ("completions", "embeddings"):
        return await _counted_texts(body, "prompt" if endpoint == "completions" else "input", engine, model, request)
    if endpoint == "messages":
        asked = {name: body[name] for name in _COUNT_FIELDS if body.get(name) is not None}
        return _number(await _told(engine, "count_tokens", {"model": model} | asked, request), "input_tokens")
    asked = {name: body[name] for name in _CHAT_FIELDS if body.get(name) is not None}
    if endpoint == "responses":
        messages = _as_messages(body)
        if messages is None:
            return None
        asked["messages"] = messages
    return _number(await _told(engine, "tokenize", {"model": model} | asked, request), "count")


async def _counted_texts(
    body: Mapping[str, Any], field: str, engine: Engine, model: str, request: Request
) -> int | None:
    given = body.get(field)
    prompts = given if isinstance(given, list) and given and not isinstance(given[0], int) else [given]
    total = 0
    for prompt in prompts:
        if isinstance(prompt, list):
            total += len(prompt)
            continue
        asked = {
            "model": model,
            "prompt": str(prompt or ""),
            "add_special_tokens": body.get("add_special_tokens", True),
        }
        count = _number(await _told(engine, "tokenize", asked, request), "count")
        if count is None:
            return None
        total += count
    return total


async def _told(engine: Engine, endpoint: Endpoint, body: dict[str, Any], request: Request) -> Any:
    return await engine.call(endpoint, body, request)


def _number(response: Any, field: str) -> int | None:
    """A number in the answer of the engine; None where it has none."""
    if response is None or not getattr(response, "body", b""):
        return None
    value = parse_object(bytes(response.body)).get(field)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _as_messages(body: Mapping[str, Any]) -> Sequence[Mapping[str, Any]] | None:
    """The input of the Responses dialect as messages, where it is nothing but texts."""
    given = body.get("input")
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    if not isinstance(items, list):
        return None
    if any(not isinstance(item, Mapping) or not isinstance(item.get("content"), str) for item in items):
        return None
    before = [{"role": "system", "content": body["instructions"]}] if body.get("instructions") else []
    return [*before, *({"role": item.get("role", "user"), "content": item["content"]} for item in items)]
