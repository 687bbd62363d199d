"""litellm as a client of a server that speaks OpenAI's dialect."""

import json
from typing import Any

import litellm
import pytest

HI: Any = [{"role": "user", "content": "Say one word."}]
CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": "Of a city.", "parameters": CITY, "strict": True},
}


@pytest.fixture
def to(url: str, key: str) -> dict[str, Any]:
    return {"api_base": url, "api_key": key, "num_retries": 0, "timeout": 120, "temperature": 0}


@pytest.mark.parametrize("model", ["smollm2", "sql", "sql@1", "0.5*sql + 0.5*json"])
@pytest.mark.parametrize("provider", ["openai", "hosted_vllm", "litellm_proxy"])
def test_a_chat(to: dict[str, Any], provider: str, model: str) -> None:
    answer = litellm.completion(f"{provider}/{model}", messages=HI, max_tokens=4, **to)
    assert answer.usage.completion_tokens >= 1


async def test_a_chat_in_a_loop_of_events(to: dict[str, Any]) -> None:
    answer = await litellm.acompletion("hosted_vllm/sql", messages=HI, max_tokens=4, **to)
    assert answer.choices[0].finish_reason in ("stop", "length")


def test_a_stream_with_usage(to: dict[str, Any]) -> None:
    whole = litellm.completion("hosted_vllm/sql", messages=HI, max_tokens=8, **to)
    chunks = list(
        litellm.completion(
            "hosted_vllm/sql", messages=HI, max_tokens=8, stream=True, stream_options={"include_usage": True}, **to
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    usage = [chunk.usage for chunk in chunks if getattr(chunk, "usage", None)]
    assert usage[-1].total_tokens == whole.usage.total_tokens


def test_a_tool_and_its_result(to: dict[str, Any]) -> None:
    choice = {"type": "function", "function": {"name": "weather"}}
    first = litellm.completion("hosted_vllm/sql", messages=HI, tools=[TOOL], tool_choice=choice, max_tokens=128, **to)
    message = first.choices[0].message
    assert json.loads(message.tool_calls[0].function.arguments)["city"] in ("Oslo", "Rome")
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "Rain."}
    turns = [*HI, message.model_dump(), result]
    second = litellm.completion("hosted_vllm/sql", messages=turns, tools=[TOOL], max_tokens=4, **to)
    assert second.choices


def test_a_schema(to: dict[str, Any]) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY, "strict": True}}
    answer = litellm.completion("hosted_vllm/sql", messages=HI, response_format=form, max_tokens=32, **to)
    assert json.loads(answer.choices[0].message.content)["city"] in ("Oslo", "Rome")


def test_log_probabilities(to: dict[str, Any]) -> None:
    answer = litellm.completion("openai/sql", messages=HI, logprobs=True, top_logprobs=2, max_tokens=2, **to)
    assert len(answer.choices[0].logprobs.content[0].top_logprobs) == 2


def test_responses(to: dict[str, Any]) -> None:
    answer = litellm.responses(model="openai/sql", input="Say hello.", max_output_tokens=8, **to)
    assert answer.usage.output_tokens >= 1


def test_refusals_are_its_own_errors(to: dict[str, Any]) -> None:
    with pytest.raises(litellm.NotFoundError, match="sqll"):
        litellm.completion("hosted_vllm/sqll", messages=HI, **to)
    with pytest.raises(litellm.BadRequestError, match="top_p"):
        litellm.completion("hosted_vllm/sql", messages=HI, top_p=9, **to)
    with pytest.raises(litellm.AuthenticationError):
        litellm.completion("hosted_vllm/sql", messages=HI, **to | {"api_key": "wrong"})
