"""Requests that are small, or within the limit, and dear: what one of them costs, every stream and every probe pays.

Each is one kind: nesting, repetition, products of fields, large numbers, many of anything. None may keep the event loop
for longer than `STALL_LIMIT_S`, whether it is answered or refused.
"""

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

STALL_LIMIT_S: Final = 0.1
CHAT: Final = "/v1/chat/completions"
TEXT: Final = "/v1/completions"
RESPONSES: Final = "/v1/responses"
MESSAGES: Final = "/v1/messages"
_FOUR_MIB: Final = 4 << 20
_HI: Final = [{"role": "user", "content": "hi"}]


@dataclass(frozen=True, slots=True)
class Nasty:
    """One request; its body is built when it is asked for, and sent as it is."""

    name: str
    path: str
    build: Callable[[], bytes]
    headers: tuple[tuple[str, str], ...] = ()


def nasty_requests(model: str) -> list[Nasty]:
    """The corpus, for a server that has ``model``."""
    return [*_bodies(model), *_constraints(model), *_products(model), *_crowds(model)]


@contextmanager
def stall() -> Iterator[list[float]]:
    """The longest stall of this thread's event loop while the block runs, seconds, as the list's only entry at its end.

    A task wakes every millisecond; by how much it wakes too late is the stall. What this process did not work
    meanwhile, in any of its threads, is the machine's doing and does not count.
    """
    longest = [0.0]

    async def tick() -> None:
        while True:
            began, worked = time.perf_counter(), time.process_time()
            await asyncio.sleep(0.001)
            late = time.perf_counter() - began - 0.001
            longest[0] = max(longest[0], min(late, time.process_time() - worked))

    task = asyncio.ensure_future(tick())
    try:
        yield longest
    finally:
        task.cancel()


def _filled(head: str, piece: str, tail: str, size: int = _FOUR_MIB) -> bytes:
    """Valid JSON of nearly ``size`` bytes: ``piece`` over and over, with commas between."""
    count = (size - len(head) - len(tail)) // (len(piece) + 1)
    return (head + ",".join([piece] * count) + tail).encode()


def _bodies(model: str) -> Iterator[Nasty]:
    """What costs before anybody asks what it means."""
    head = f'{{"model":"{model}",'
    chat, text = head + '"messages":[', head + '"prompt":['
    pieces = {
        "empty objects": "{}", "empty lists": "[]", "objects of one key": '{"a":1}', "integers": "1",
        "long numbers": "1" * 4000, "floats": "1.5e-300", "long fractions": "0." + "7" * 4000, "nulls": "null",
        "huge exponents": "1e99999999", "escapes": '"' + "\\u00e9" * 500 + '"', "pairs of halves": '"\\ud83d\\ude00"',
        "nested lists": "[" * 30 + "]" * 30, "backslashes": '"' + "\\\\" * 500 + '"',
    }  # fmt: skip
    for name, piece in pieces.items():
        for path, start in ((CHAT, chat), (TEXT, text), ("/admin/v1/merges", '{"recipe":[')):
            yield Nasty(f"4 MiB of {name} at {path}", path, partial(_filled, start, piece, "]}"))
    yield Nasty("deep lists", CHAT, lambda: b"[" * 2_000_000)
    yield Nasty("deep objects", CHAT, lambda: b'{"a":' * 800_000)
    yield Nasty("one integer of 4 MiB", TEXT, lambda: (head + '"seed":' + "9" * (_FOUR_MIB - 100) + "}").encode())
    yield Nasty("one text of 4 MiB", TEXT, lambda: (head + '"prompt":"' + "a" * (_FOUR_MIB - 100) + '"}').encode())
    yield Nasty("a million keys", CHAT, lambda: (head + ",".join(f'"k{i}":1' for i in range(350_000)) + "}").encode())
    yield Nasty("spaces", CHAT, lambda: b" " * (_FOUR_MIB - 10) + b"{}")


def _constraints(model: str) -> Iterator[Nasty]:
    """What compiles into large automata."""

    def schema(name: str, value: Any) -> Nasty:
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": value}}
        return _posted(name, CHAT, model, messages=_HI, response_format=form, max_tokens=2)

    def patterns(name: str, pattern: str, count: int = 4) -> Nasty:
        keys = [f"k{i}" for i in range(count)]
        properties = {key: {"type": "string", "pattern": pattern} for key in keys}
        return schema(name, {"type": "object", "properties": properties, "required": keys})

    yield patterns("four patterns of nested repetitions", "^(((a|b){1,1000}c){1,1000}d){1,1000}$")
    yield patterns("patterns at the limit of copies", "^.{1,500}$")
    yield patterns("one long pattern", "^(a|b){1,1000}$", 1)
    yield patterns("loops in loops", r"^(\w*\s*){1,50}$")
    yield patterns("loops in loops at the limit", r"^(\w+\s?){1,4}$")
    yield patterns("stars of stars", "^((((a*)*)*)*b)*$")
    yield patterns("alternatives", "^(" + "|".join(["a", "ab", "abc", "abcd"] * 30) + ")*$", 1)
    yield schema("an enum of 1e5", {"enum": [f"x{i}" for i in range(100_000)]})
    yield schema("an enum at the limit", {"enum": ["x" * 50 + str(i) for i in range(1000)]})
    yield schema("many properties", {"type": "object", "properties": {f"k{i}": {} for i in range(250)}})
    yield schema("nested arrays", _nested_arrays(5))
    yield schema("lengths", {"properties": {f"k{i}": {"type": "string", "maxLength": 8192} for i in range(16)}})
    yield schema("references", {"$defs": {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(900)}})
    yield schema("unions of unions", {"anyOf": [{"anyOf": [{"const": i}] * 7} for i in range(8)]})
    yield schema("huge bounds", {"type": "integer", "minimum": -(1 << 63), "maximum": (1 << 63) - 1})
    yield _posted("choices", CHAT, model, messages=_HI, structured_outputs={"choice": ["ab" * 7] * 1024}, max_tokens=2)
    regex = {"regex": r"((\w{1,9}){1,9}){1,9}"}
    yield _posted("a regular expression", CHAT, model, messages=_HI, structured_outputs=regex, max_tokens=2)
    parameters = {"type": "object", "properties": {f"p{j}": {"type": "string"} for j in range(50)}}
    tools = [{"type": "function", "function": {"name": f"f{i}", "parameters": parameters}} for i in range(128)]
    yield _posted("all tools required", CHAT, model, messages=_HI, tools=tools, tool_choice="required", max_tokens=2)
    yield _posted("all tools", CHAT, model, messages=_HI, tools=tools, max_tokens=2)


def _products(model: str) -> Iterator[Nasty]:
    """Fields whose product is large."""
    words = "word " * 1000
    yield _posted("log-probs of 16 prompts", TEXT, model, prompt=[words] * 16, prompt_logprobs=20, max_tokens=1)
    yield _posted("log-probs of a prompt", TEXT, model, prompt=words, prompt_logprobs=5, max_tokens=1)
    yield _posted(
        "log-probs of a prompt in 16 choices", TEXT, model, prompt=words, prompt_logprobs=5, n=16, max_tokens=1
    )
    yield _posted("log-probs at the prompt's limit", TEXT, model, prompt=[5] * 1000, prompt_logprobs=15, max_tokens=1)
    yield _posted("echoed at the limit", TEXT, model, prompt=[5] * 800, echo=True, logprobs=19, max_tokens=1)
    yield _posted("a prompt told twice", TEXT, model, prompt=[5] * 500, prompt_logprobs=15, n=2, max_tokens=1)
    broken = "😀🦜🫠" * 150
    yield _posted("log-probs of cut characters", TEXT, model, prompt=broken, prompt_logprobs=10, max_tokens=1)
    yield _posted("echoed log-probs", TEXT, model, prompt=words, echo=True, logprobs=5, max_tokens=1)
    many = {"logprobs": True, "top_logprobs": 20, "n": 16, "ignore_eos": True}
    yield _posted("log-probs of 16 answers", CHAT, model, messages=_HI, max_tokens=128, **many)
    yield _posted("log-probs at the limit", CHAT, model, messages=_HI, max_tokens=18, **many)
    told = {"include": ["message.output_text.logprobs"], "top_logprobs": 20, "max_output_tokens": 96}
    yield _posted("log-probs of a response", RESPONSES, model, input="Count to one thousand.", **told)
    yield _posted("log-probs of a streamed response", RESPONSES, model, input="Count.", stream=True, **told)
    bias = {str(i): -1 for i in range(1000)}
    yield _posted("biased choices", TEXT, model, prompt=["a"] * 4, n=16, logit_bias=bias, stop=["x" * 200] * 16,
    max_tokens=4)  # fmt: skip
    yield _posted("a huge bias", TEXT, model, prompt="a", logit_bias={str(i): 1 for i in range(100_000)})
    yield _posted("many stops", TEXT, model, prompt="a", stop=["x"] * 100_000)
    yield _posted("64 prompts of ids", TEXT, model, prompt=[[5] * 1900] * 64, max_tokens=1)
    yield _posted("a prompt of lists of lists", TEXT, model, prompt=[[[5]] * 1000] * 64)


def _crowds(model: str) -> Iterator[Nasty]:
    """Many of one thing."""
    yield _posted("a text to tokenize", "/tokenize", model, prompt="word " * 800_000)
    yield _posted("a text at the limit", "/tokenize", model, prompt="word " * 13_000, return_token_strs=True)
    yield _posted("a text without blanks", "/tokenize", model, prompt="a" * 65_000)
    yield _posted("1e6 ids", "/detokenize", model, tokens=[5] * 900_000)
    yield _posted("ids at the limit", "/detokenize", model, tokens=[5] * 16_000)
    yield _posted("1e5 messages", CHAT, model, messages=[{"role": "user", "content": "a"}] * 100_000)
    yield _posted("1e3 messages", CHAT, model, messages=[{"role": "user", "content": "a"}] * 1000, max_tokens=1)
    parts = [{"type": "text", "text": "a"}] * 1024
    yield _posted("many parts", CHAT, model, messages=[{"role": "user", "content": parts}] * 80, max_tokens=1)
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a":' * 9 + "1" + "}" * 9}}
    yield _posted("many calls", CHAT, model, messages=[{"role": "assistant", "tool_calls": [call] * 100}] * 20)
    item = {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"}
    yield _posted("many items", RESPONSES, model, input=[item] * 1024, max_output_tokens=1)
    block = {"type": "tool_result", "tool_use_id": "1", "content": [{"type": "text", "text": "a"}] * 1000}
    yield _posted("many blocks", MESSAGES, model, messages=[{"role": "user", "content": [block] * 100}], max_tokens=1)
    yield _posted("a long user", CHAT, model, messages=_HI, user="u" * 200_000)
    yield _posted("large metadata", CHAT, model, messages=_HI, metadata={f"k{i}": "v" * 500 for i in range(400)})
    yield _posted("2048 inputs", "/v1/embeddings", model, input=["a few words"] * 2048)
    expression = " + ".join(f"{i}*{model}" for i in range(2000))
    yield _posted("a long expression", CHAT, expression, messages=_HI)
    yield _posted("a deep expression", CHAT, "(" * 2000 + model + ")" * 2000, messages=_HI)
    yield _posted("a long name", CHAT, "x" * 100_000, messages=_HI)
    headers = tuple((f"x-h{i}", "v" * 40) for i in range(1000))
    body = {"model": model, "messages": _HI, "max_tokens": 1}
    yield Nasty("a thousand headers", CHAT, lambda: json.dumps(body).encode(), headers)


def _nested_arrays(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string", "maxLength": 8192}
    for _ in range(levels):
        schema = {"type": "array", "minItems": 8192, "maxItems": 8192, "items": schema}
    return schema


def _posted(name: str, path: str, model: str, **fields: Any) -> Nasty:
    return Nasty(f"{name} at {path}", path, lambda: json.dumps({"model": model} | fields).encode())
