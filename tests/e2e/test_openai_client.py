"""The OpenAI plane through the real openai client, with adapters."""

import asyncio
import json
from typing import Any

import openai
import pytest

from tests.e2e.conftest import RunningServer

QUESTION: Any = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "population": {"type": "integer", "maximum": 99}},
    "required": ["city", "population"],
    "additionalProperties": False,
}
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "strict": True,
        "description": "weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 12}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


@pytest.mark.parametrize(
    ("model", "served"),
    [
        ("sql", "sql@1"),
        ("sql@1", "sql@1"),
        ("smollm2:json", "json@1"),
        ("smollm2:json@1", "json@1"),
        ("smollm2", "smollm2"),
        ("", "smollm2"),
    ],
)
def test_every_form_of_model_answers_as_the_exact_version(client: openai.OpenAI, model: str, served: str) -> None:
    raw = client.chat.completions.with_raw_response.create(model=model, messages=QUESTION, max_tokens=8, temperature=0)
    answer = raw.parse()
    assert answer.model == served
    assert raw.headers["x-amalgam-adapter"] == served
    assert answer.choices[0].message.content
    assert answer.usage is not None
    assert answer.usage.completion_tokens >= 1


def test_the_base_model_still_knows_the_capital(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="smollm2", messages=QUESTION, max_tokens=16, temperature=0)
    assert "Paris" in (answer.choices[0].message.content or "")


def test_adapters_change_what_is_said(client: openai.OpenAI) -> None:
    def first_logprob(model: str) -> float:
        answer = client.chat.completions.create(
            model=model, messages=QUESTION, max_tokens=1, temperature=0, logprobs=True, top_logprobs=2
        )
        logprobs = answer.choices[0].logprobs
        assert logprobs is not None
        assert logprobs.content is not None
        assert len(logprobs.content[0].top_logprobs) == 2
        return logprobs.content[0].logprob

    assert len({first_logprob(model) for model in ("smollm2", "sql", "json", "code")}) == 4


def test_streaming_says_the_same_as_not_streaming(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="sql", messages=QUESTION, max_tokens=12, temperature=0)
    pieces, usage, models = [], None, set()
    stream = client.chat.completions.create(
        model="sql",
        messages=QUESTION,
        max_tokens=12,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    for chunk in stream:
        models.add(chunk.model)
        usage = chunk.usage or usage
        pieces += [choice.delta.content or "" for choice in chunk.choices]
    assert "".join(pieces) == whole.choices[0].message.content
    assert models == {"sql@1"}
    assert usage is not None
    assert usage == whole.usage


async def test_the_async_client_gets_each_adapters_own_answer(async_client: openai.AsyncOpenAI) -> None:
    async def ask(model: str) -> tuple[str, str]:
        answer = await async_client.chat.completions.create(model=model, messages=QUESTION, max_tokens=8, temperature=0)
        return answer.model, answer.choices[0].message.content or ""

    models = ["sql", "json", "code", "smollm2"]
    alone = [await ask(model) for model in models]
    together = await asyncio.gather(*(ask(model) for model in models * 2))
    assert list(together) == alone * 2


def test_several_choices_and_plain_completions(client: openai.OpenAI) -> None:
    chat = client.chat.completions.create(model="json", messages=QUESTION, max_tokens=4, n=3, temperature=1.0, seed=7)
    assert [choice.index for choice in chat.choices] == [0, 1, 2]
    text = client.completions.create(model="json", prompt="Once upon a time", max_tokens=5, temperature=0, logprobs=2)
    assert text.model == "json@1"
    assert text.choices[0].logprobs is not None
    assert len(text.choices[0].logprobs.tokens or []) == 5


def test_json_schema_binds_an_adapter(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="code",
        messages=[{"role": "user", "content": "Name a city and a number as JSON."}],
        max_tokens=60,
        temperature=0,
        response_format={"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA, "strict": True}},
    )
    assert answer.model == "code@1"
    assert set(json.loads(answer.choices[0].message.content or "")) == {"city", "population"}


def test_a_named_tool_is_called_with_an_adapter(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="json",
        messages=[{"role": "user", "content": "What is the weather in Oslo?"}],
        tools=[TOOL],
        tool_choice={"type": "function", "function": {"name": "get_weather"}},
        max_tokens=60,
        temperature=0,
    )
    calls = answer.choices[0].message.tool_calls
    assert calls
    assert calls[0].type == "function"
    assert calls[0].function.name == "get_weather"
    assert set(json.loads(calls[0].function.arguments)) == {"city"}


def test_responses_whole_and_streamed(client: openai.OpenAI) -> None:
    whole = client.responses.create(model="sql", input="Say hello.", max_output_tokens=8, temperature=0)
    assert whole.model == "sql@1"
    assert whole.output_text
    events = list(
        client.responses.create(model="sql", input="Say hello.", max_output_tokens=8, temperature=0, stream=True)
    )
    kinds = [event.type for event in events]
    assert kinds[0] == "response.created"
    assert "response.output_text.delta" in kinds
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == whole.output_text


def test_models_name_root_and_parent(client: openai.OpenAI) -> None:
    models = {model.id: model.model_dump() for model in client.models.list()}
    assert {"smollm2", "sql", "json", "code"} <= set(models)
    assert models["smollm2"]["parent"] is None
    assert models["sql"]["root"] == "sql@1"
    assert models["sql"]["parent"] == "smollm2"
    assert client.models.retrieve("sql@1").model_dump()["root"] == "sql@1"


def test_an_unknown_model_is_a_404_with_near_names(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="sqll", messages=QUESTION)
    error: Any = caught.value.body
    assert error["code"] == "model_not_found"
    assert error["param"] == "model"
    assert "sql" in error["message"].split("Did you mean")[1]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 10_000),
        ("temperature", 9.0),
        ("max_tokens", 0),
        ("logit_bias", {"x": 1}),
        ("chat_template", "{{ 1 }}"),
        ("kv_transfer_params", {"a": 1}),
        ("cache_salt", "a"),
        ("top_logprobs", 50),
        ("stop", ["x"] * 99),
    ],
)
def test_a_field_out_of_bounds_is_a_400_that_names_it(client: openai.OpenAI, field: str, value: Any) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="sql", messages=QUESTION, extra_body={field: value})
    error: Any = caught.value.body
    assert error["param"] == field
    assert set(error) >= {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"


def test_what_vllm_refuses_arrives_in_the_same_shape(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="sql", messages=QUESTION, max_tokens=100_000)
    error: Any = caught.value.body
    assert error["code"] == "invalid_request"
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="sql", messages="hello")  # type: ignore[arg-type]
    assert client.chat.completions.create(model="sql", messages=QUESTION, max_tokens=2).choices


async def test_a_client_that_leaves_frees_the_engine(server: RunningServer, async_client: openai.AsyncOpenAI) -> None:
    prompt: Any = [{"role": "user", "content": "Count from one to one thousand in words."}]
    stream = await async_client.chat.completions.create(
        model="sql", messages=prompt, max_tokens=1500, stream=True, extra_body={"ignore_eos": True}
    )
    async for _ in stream:
        break
    await stream.close()
    pending = asyncio.create_task(
        async_client.chat.completions.create(
            model="json", messages=prompt, max_tokens=1500, extra_body={"ignore_eos": True}
        )
    )
    await asyncio.sleep(0.5)
    pending.cancel()
    for _ in range(40):
        running = server.metric("vllm:num_requests_running") + server.metric("vllm:num_requests_waiting")
        if running == 0 and server.metric('amalgam_requests_running{endpoint="chat_completions"}') == 0:
            break
        await asyncio.sleep(0.1)
    else:
        pytest.fail("the engine still works for clients that left")
    with server.admin() as admin:
        engine = admin.get("/admin/v1/engine").json()
    assert all(resident["held"] == 0 for resident in engine["residents"])
