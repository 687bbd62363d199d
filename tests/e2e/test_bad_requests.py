"""Bad requests on the real engine: each is told what is wrong, and the next good one is answered as ever."""

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from tests.adapter_factory import write_lora
from tests.e2e.conftest import API_KEY, RunningServer

CHAT = "/v1/chat/completions"
HI: list[dict[str, Any]] = [{"role": "user", "content": "Say one word."}]
QUICK = {"max_tokens": 2, "temperature": 0}


def schema(inner: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": inner}}}


def deep_call(arguments: str) -> list[dict[str, Any]]:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return [*HI, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "1", "content": "x"}]


REFUSED: list[tuple[str, dict[str, Any]]] = [
    # What stops an engine that trusts its callers.
    ("/v1/completions", {"prompt": "a", "min_tokens": 1, "stop_token_ids": [10**6]}),
    ("/v1/completions", {"prompt": [10**6]}),
    ("/v1/completions", {"prompt": [49152]}),
    ("/v1/completions", {"prompt": "a", "logit_bias": {"49152": 1}}),
    ("/v1/completions", {"prompt": "a", "n": 10**6}),
    ("/v1/completions", {"prompt": ["a"] * 1000}),
    ("/v1/completions", {"prompt": "a", "min_tokens": 9, "max_tokens": 2}),
    ("/v1/completions", {"prompt": "a", "logprobs": 1000}),
    ("/v1/completions", {"prompt": "a", "prompt_logprobs": -1}),
    ("/v1/completions", {"prompt": "a", "cache_salt": "x"}),
    ("/v1/completions", {"prompt": "a", "use_beam_search": True}),
    ("/v1/completions", {"prompt": "a", "priority": 5}),
    ("/v1/completions", {"prompt": ""}),
    ("/v1/completions", {"prompt": "word " * 20_000}),
    ("/v1/completions", {"prompt": "a", "max_tokens": 100_000}),
    ("/v1/completions", {"prompt": "a", "top_k": -5}),
    ("/v1/completions", {"prompt": "a", "suffix": "b"}),
    ("/v1/completions", {"prompt": "a", "echo": "yes"}),
    ("/v1/completions", {}),
    (CHAT, {"messages": []}),
    (CHAT, {"messages": HI, "chat_template": "{{ 1 }}"}),
    (CHAT, {"messages": HI, "chat_template_kwargs": {"tools": "x"}}),
    (CHAT, {"messages": HI, "kv_transfer_params": {"a": 1}}),
    (CHAT,
    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:1"}}]}]}),
    (CHAT, {"messages": deep_call("[" * 100_000)}),
    (CHAT, {"messages": HI, "tool_choice": {"type": "function", "function": {"name": "none"}}, "tools": []}),
    (CHAT, {"messages": HI, "top_logprobs": 30, "logprobs": True}),
    # Constraints that no automaton can be made of.
    (CHAT, {"messages": HI, "structured_outputs": {"regex": "("}}),
    (CHAT, {"messages": HI, "structured_outputs": {"regex": "[z-a]"}}),
    (CHAT, {"messages": HI, "structured_outputs": {"regex": "(?=a)b\\1"}}),
    (CHAT, {"messages": HI, "structured_outputs": {"regex": "(a|aa|aaa)*" * 200}}),
    (CHAT, {"messages": HI, "structured_outputs": {"choice": []}}),
    (CHAT, {"messages": HI, "structured_outputs": {"regex": "a", "choice": ["a"]}}),
    (CHAT, {"messages": HI, "structured_outputs": {"grammar": "root ::= root"}}),
    (CHAT, {"messages": HI, "structured_outputs": {"json_object": False}}),
    (CHAT, {"messages": HI} | schema({"type": "nonsense"})),
    (CHAT, {"messages": HI} | schema({"$ref": "#/nope"})),
    (CHAT, {"messages": HI} | schema({"$ref": "#"})),
    (CHAT, {"messages": HI} | schema({"anyOf": [{"$ref": "#"}, {"type": "null"}]})),
    (CHAT, {"messages": HI} | schema({"type": "string", "pattern": "("})),
    (CHAT, {"messages": HI} | schema({"type": "object", "minProperties": 5, "maxProperties": 1})),
    (CHAT,
    {"messages": HI} | schema({"type": "object", "properties": {f"k{i}": {"type": "string"} for i in range(3000)}})),
    (CHAT, {"messages": HI} | schema({"anyOf": [{"type": "string", "maxLength": i} for i in range(1, 200)]})),
    (CHAT, {"messages": HI} | schema({"type": "string", "maxLength": 10**9})),
    # What the compiler cannot honour is refused, not dropped.
    (CHAT, {"messages": HI} | schema({"type": "array", "uniqueItems": True, "items": {"enum": [1, 2]}})),
    (CHAT, {"messages": HI} | schema({"type": ["string", "null"], "minLength": 5, "maxLength": 2})),
    (CHAT, {"messages": HI} | schema({"type": "string", "pattern": "^a+$", "maxLength": 4})),
    (CHAT, {"messages": HI, "response_format": {"type": "structural_tag", "structures": []}}),
    ("/v1/responses", {"input": []}),
    ("/v1/responses",
    {"input": "a", "tools": [{"type": "mcp", "server_label": "x", "server_url": "http://127.0.0.1:1"}],
    "tool_choice": "required"}),
    ("/v1/responses", {"input": "a", "background": True}),
    ("/v1/messages", {"messages": HI}),
    ("/v1/messages", {"messages": [], "max_tokens": 2}),
    ("/tokenize", {}),
    ("/detokenize", {"tokens": [10**6]}),
    ("/detokenize", {"tokens": "x"}),
]  # fmt: skip
STRANGE: list[tuple[str, dict[str, Any]]] = [
    # Odd, and allowed: an answer or a refusal, but no fault.
    ("/v1/completions", {"prompt": "a", "min_tokens": 2, "stop_token_ids": [0, 49151]}),
    ("/v1/completions", {"prompt": "a", "top_p": 0, "temperature": 2}),
    ("/v1/completions", {"prompt": "\x00\u202e😀", "seed": -(1 << 63)}),
    ("/v1/completions", {"prompt": "a", "logit_bias": {"0": -100, "49151": 100}, "logprobs": 20}),
    ("/v1/completions", {"prompt": [[0], [49151, 1]], "n": 2, "temperature": 2}),
    ("/v1/completions", {"prompt": "a", "repetition_penalty": 0.01, "frequency_penalty": -2, "temperature": 2}),
    ("/v1/completions", {"prompt": "a", "stop": ["\x00"], "echo": True, "prompt_logprobs": 20}),
    (CHAT, {"messages": [{"role": "", "content": ""}]}),
    (CHAT, {"messages": [{"role": "nobody", "content": "hi", "name": "x"}]}),
    (CHAT, {"messages": [{"role": "assistant", "content": None}]}),
    (CHAT, {"messages": deep_call("not json")}),
    (CHAT, {"messages": deep_call("")}),
    (CHAT, {"messages": HI, "continue_final_message": True, "add_generation_prompt": True}),
    (CHAT, {"messages": HI, "structured_outputs": {"regex": ""}}),
    (CHAT, {"messages": HI, "structured_outputs": {"regex": "(a?)" * 8}}),
    (CHAT, {"messages": HI} | schema({})),
    (CHAT, {"messages": HI} | schema({"type": "array", "items": {"$ref": "#"}, "maxItems": 2})),
    (CHAT, {"messages": HI} | schema({"type": "array", "maxItems": 8192, "items": {"type": "integer"}})),
    (CHAT, {"messages": HI, "tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "required"}),
    ("/v1/responses", {"input": "a", "previous_response_id": None, "max_output_tokens": 2}),
    ("/tokenize", {"prompt": ""}),
    ("/detokenize", {"tokens": []}),
]  # fmt: skip


@pytest.fixture
def session(server: RunningServer) -> Iterator[httpx.Client]:
    with server.client() as opened:
        yield opened


@pytest.fixture(scope="module")
def golden(standard_server: RunningServer) -> dict[str, Any]:
    with standard_server.client() as session:
        return good(session)


def good(session: httpx.Client) -> dict[str, Any]:
    answer = session.post(CHAT, json={"model": "sql", "messages": HI, "logprobs": True} | QUICK)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()["choices"][0]["message"]
    return found


def check_next(session: httpx.Client, golden: dict[str, Any]) -> None:
    began = time.monotonic()
    assert good(session) == golden
    assert time.monotonic() - began < 10


def post(session: httpx.Client, path: str, body: dict[str, Any]) -> httpx.Response:
    quick = QUICK if path in (CHAT, "/v1/completions") else {}
    return session.post(path, json={"model": "sql"} | quick | body)


def judge(answer: httpx.Response, what: Any) -> None:
    assert answer.status_code < 500, (what, answer.text)
    if answer.status_code >= 400:
        error = answer.json()["error"]
        assert error.keys() == {"message", "type", "param", "code", "request_id"}, what
        for private in ("Traceback", "/project/", "site-packages", "/tmp", "/root", "0x7f", "object at"):
            assert private not in answer.text, what


def test_every_refusal_is_a_400_and_the_next_request_is_answered(session: httpx.Client, golden: dict[str, Any]) -> None:
    for path, body in REFUSED:
        answer = post(session, path, body)
        what = (path, json.dumps(body)[:200], answer.text[:300])
        assert answer.status_code == 400, what
        judge(answer, what)
    check_next(session, golden)


def test_what_is_odd_but_allowed_is_no_fault(session: httpx.Client, golden: dict[str, Any]) -> None:
    for path, body in STRANGE:
        judge(post(session, path, body), (path, json.dumps(body)[:200]))
    check_next(session, golden)


def test_streams_that_are_refused_say_so_before_they_begin(session: httpx.Client, golden: dict[str, Any]) -> None:
    for body in ({"structured_outputs": {"regex": "("}}, schema({"type": "nonsense"}), {"n": 0}):
        answer = post(session, CHAT, {"messages": HI, "stream": True} | body)
        assert answer.status_code == 400, answer.text
        assert answer.headers["content-type"] == "application/json"
    check_next(session, golden)


def test_others_are_answered_while_a_constraint_compiles(server: RunningServer, golden: dict[str, Any]) -> None:
    costly = schema(
        {"type": "object", "properties": {f"k{i}": {"type": "string", "maxLength": 90 + i} for i in range(12)}}
    )

    def constrained() -> int:
        with server.client() as session:
            return post(session, CHAT, {"messages": HI} | costly).status_code

    def plain() -> float:
        with server.client() as session:
            began = time.monotonic()
            assert good(session) == golden
            return time.monotonic() - began

    with ThreadPoolExecutor(4) as pool:
        compiling = pool.submit(constrained)
        time.sleep(0.3)
        waits = list(pool.map(lambda _: plain(), range(6)))
        assert compiling.result() == 200
    assert max(waits) < 8


def test_raw_bytes(server: RunningServer, session: httpx.Client, golden: dict[str, Any]) -> None:
    host, port = server.url.removeprefix("http://").split(":")

    def raw(request: bytes) -> bytes:
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(request)
            answer = b""
            while piece := connection.recv(65536):
                answer += piece
            return answer

    close = b"Connection: close\r\n\r\n"
    for head in (
        b"GET /v1/models HTTP/1.1\r\nHost: x/?\r\n",
        b"GET http://livez/v1/models HTTP/1.1\r\nHost: localhost/livez\r\n",
        b"GET //v1/models HTTP/1.1\r\nHost: localhost\r\n",
        b"GET /%76%31/models HTTP/1.1\r\nHost: localhost\r\n",
        b"GET /livez/../v1/models HTTP/1.1\r\nHost: localhost\r\n",
        b"HEAD /admin/v1/adapters HTTP/1.1\r\nHost: localhost\r\n",
        b"GET /v1/models HTTP/1.0\r\n",
    ):
        assert raw(head + close)[9:12] == b"401", head
    key = f"Authorization: Bearer {API_KEY}\r\n".encode()
    assert raw(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n" + key + close)[9:12] == b"200"
    assert raw(b"GET /admin/v1/jobs HTTP/1.1\r\nHost: localhost\r\n" + key + close)[9:12] == b"403"
    assert raw(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 70_000 + b"\r\n" + close)[9:12] == b"431"
    assert raw(b"\x16\x03\x01\x02\x00\x01" + b"\r\n\r\n")[9:12] == b"400"
    check_next(session, golden)


@pytest.mark.parametrize("model", ["sql", "json@1", "smollm2"])
def test_the_anthropic_dialect_with_adapters(session: httpx.Client, model: str) -> None:
    body = {
        "model": model,
        "max_tokens": 4,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
    }
    served = {"sql": "sql@1", "json@1": "json@1", "smollm2": "smollm2"}[model]
    answer = session.post("/v1/messages", json=body | {"system": "Be short.", "temperature": 0})
    assert answer.status_code == 200, answer.text
    assert answer.json()["type"] == "message"
    assert answer.json()["model"] == served
    assert answer.headers["x-amalgam-adapter"] == served
    with session.stream("POST", "/v1/messages", json=body | {"stream": True}) as stream:
        events = [line[7:] for line in stream.iter_lines() if line.startswith("event: ")]
    assert events[0] == "message_start"
    assert events[-1] == "message_stop"


def test_text_becomes_tokens_and_text_again(session: httpx.Client) -> None:
    for model in ("sql", "smollm2"):
        tokens = session.post("/tokenize", json={"model": model, "prompt": "Paris is in France."}).json()
        assert tokens["count"] == len(tokens["tokens"]) >= 4
        text = session.post("/detokenize", json={"model": model, "tokens": tokens["tokens"]}).json()
        assert text["prompt"] == "Paris is in France."
    chat = session.post("/tokenize", json={"model": "sql", "messages": HI}).json()
    assert chat["count"] > tokens["count"]


def test_what_the_model_cannot_do_is_said_clearly(session: httpx.Client, golden: dict[str, Any]) -> None:
    for model in ("sql", "smollm2"):
        answer = session.post("/v1/embeddings", json={"model": model, "input": "a"})
        judge(answer, "embeddings")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "endpoint_unsupported")
    messages = {"messages": [{"role": "user", "content": "a"}]}
    for path, body in (
        (CHAT, messages),
        ("/v1/messages", messages | {"max_tokens": 1}),
        ("/v1/responses", {"input": "a"}),
        ("/tokenize", {"prompt": "a"}),
        ("/detokenize", {"tokens": [1]}),
        ("/v1/completions", {"prompt": "a"}),
        ("/v1/embeddings", {"input": "a"}),
    ):
        answer = session.post(path, json={"model": "nope"} | body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found"), path
    check_next(session, golden)


def test_answers_are_exactly_of_openais_types(server: RunningServer) -> None:
    with openai.OpenAI(
        base_url=f"{server.url}/v1", api_key=API_KEY, max_retries=0, timeout=120, _strict_response_validation=True
    ) as client:
        messages: Any = HI
        for model in ("sql", "smollm2"):
            chat = client.chat.completions.create(
                model=model, messages=messages, max_tokens=4, logprobs=True, top_logprobs=2, n=2
            )
            assert len(chat.choices) == 2
            options: Any = {"include_usage": True}
            chunks = list(
                client.chat.completions.create(
                    model=model, messages=messages, max_tokens=4, stream=True, stream_options=options
                )
            )
            assert chunks[-1].usage is not None
            assert client.completions.create(model=model, prompt="One", max_tokens=4, logprobs=2).choices[0].text
            assert client.responses.create(model=model, input="Hi", max_output_tokens=16).output_text
            assert [
                event.type
                for event in client.responses.create(model=model, input="Hi", max_output_tokens=16, stream=True)
            ][-1] == "response.completed"
        assert {model.id for model in client.models.list()} >= {"smollm2", "sql", "json", "code"}


def test_vllms_adapter_routes_on_the_real_engine(
    server: RunningServer, admin: httpx.Client, session: httpx.Client
) -> None:
    folder = write_lora(server.sources / "compat", rank=2, seed=77)
    body = {"lora_name": "compat", "lora_path": str(folder)}
    loaded = admin.post("/v1/load_lora_adapter", json=body)
    assert (loaded.status_code, loaded.text) == (200, "Success: LoRA adapter 'compat' added successfully.")
    answer = session.post(CHAT, json={"model": "compat", "messages": HI} | QUICK)
    assert answer.json()["model"] == "compat@1"
    assert admin.post("/v1/load_lora_adapter", json=body).json()["error"]["code"] == "lora_already_loaded"
    assert session.post("/v1/unload_lora_adapter", json={"lora_name": "compat"}).status_code == 403
    gone = admin.post("/v1/unload_lora_adapter", json={"lora_name": "compat"})
    assert (gone.status_code, gone.text) == (200, "Success: LoRA adapter 'compat' removed successfully.")
    assert session.post(CHAT, json={"model": "compat", "messages": HI} | QUICK).status_code == 404
