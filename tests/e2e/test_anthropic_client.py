"""Anthropic's own Python client on the real server: judged by protocol, not by what a small model answers."""

from collections.abc import Iterator
from typing import Any

import anthropic
import pytest

from tests.e2e.conftest import API_KEY, RunningServer

HI: Any = [{"role": "user", "content": "Say one word."}]
WEATHER: Any = {
    "name": "weather",
    "description": "The weather in a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


CITIES: Any = {"type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"]}


@pytest.fixture
def claude(server: RunningServer) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key=API_KEY, max_retries=0, timeout=120) as session:
        yield session


def test_a_message_is_answered(claude: anthropic.Anthropic) -> None:
    answer = claude.messages.create(model="sql", messages=HI, max_tokens=4)
    assert answer.type == "message"
    assert answer.stop_reason in ("end_turn", "max_tokens")
    assert answer.usage.output_tokens > 0


def test_a_stream_ends_with_a_message(claude: anthropic.Anthropic) -> None:
    with claude.messages.stream(
        model="sql", messages=HI, max_tokens=4, system=[{"type": "text", "text": "Hi."}]
    ) as stream:
        texts = list(stream.text_stream)
        final = stream.get_final_message()
    assert "".join(texts) == "".join(block.text for block in final.content if block.type == "text")


def test_tools_may_be_used(claude: anthropic.Anthropic) -> None:
    answer = claude.messages.create(
        model="sql", messages=HI, max_tokens=8, tools=[WEATHER], tool_choice={"type": "auto"}
    )
    assert all(block.name == "weather" for block in answer.content if block.type == "tool_use")
    assert answer.stop_reason in ("tool_use", "max_tokens", "end_turn")


@pytest.mark.parametrize(
    "choice", [{"type": "any"}, {"type": "tool", "name": "weather"}], ids=lambda choice: choice["type"]
)
def test_a_forced_tool_gets_an_object_of_its_schema(claude: anthropic.Anthropic, choice: Any) -> None:
    """Without ``strict``, as Anthropic's own examples send it."""
    cities = WEATHER | {"input_schema": CITIES}
    asked: Any = {"model": "sql", "messages": HI, "max_tokens": 64, "tools": [cities], "tool_choice": choice}
    asked |= {"extra_body": {"temperature": 0}}
    answer = claude.messages.create(**asked)
    with claude.messages.stream(**asked) as stream:
        streamed = stream.get_final_message()
    for message in (answer, streamed):
        assert message.stop_reason == "tool_use"
        [call] = [block for block in message.content if block.type == "tool_use"]
        assert getattr(call, "input", None) in ({"city": "Oslo"}, {"city": "Rome"})


@pytest.mark.parametrize("kind", [{"type": "string"}, {"type": "string", "format": "city"}], ids=["bound", "unbound"])
@pytest.mark.parametrize("tokens", [1, 3, 8, 12, 16, 20, 24, 32])
def test_a_forced_tool_that_is_cut_is_a_whole_message(
    claude: anthropic.Anthropic, tokens: int, kind: dict[str, str]
) -> None:
    """The unbound one's arguments may be any JSON value, such as a text without end.

    What a stream has said of it cannot be taken back, so that one is asked for whole alone.
    """
    weather = WEATHER | {"input_schema": {"type": "object", "properties": {"city": kind}, "required": ["city"]}}
    asked: Any = {"model": "sql", "messages": HI, "max_tokens": tokens, "tools": [weather]}
    asked |= {"tool_choice": {"type": "tool", "name": "weather"}, "extra_body": {"temperature": 0}}
    answer = claude.messages.create(**asked)
    assert (answer.type, answer.role) == ("message", "assistant")
    assert answer.content
    assert all(isinstance(block.input, dict) for block in answer.content if block.type == "tool_use")
    if answer.usage.output_tokens == tokens:
        assert answer.stop_reason == "max_tokens"
    if "format" in kind:
        return
    with claude.messages.stream(**asked) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    assert "message_stop" in kinds
    assert final.usage.output_tokens == answer.usage.output_tokens
    if answer.usage.output_tokens == tokens:
        assert final.stop_reason == "max_tokens"


def test_tokens_are_counted(claude: anthropic.Anthropic) -> None:
    longer: Any = [{"role": "user", "content": "Say one word. " * 20}]
    counted = claude.messages.count_tokens(model="sql", messages=longer, tools=[WEATHER])
    assert counted.input_tokens > claude.messages.count_tokens(model="sql", messages=HI).input_tokens


def test_fields_of_the_beta_are_taken(claude: anthropic.Anthropic) -> None:
    answer = claude.beta.messages.with_raw_response.create(
        model="sql",
        messages=HI,
        max_tokens=4,
        betas=["context-management-2025-06-27"],
        context_management={"edits": [{"type": "clear_tool_uses_20250919"}]},
        metadata={"user_id": "u"},
        service_tier="auto",
    )
    assert answer.parse().type == "message"
    assert "context_management" in answer.headers["x-amalgam-ignored"]


def test_what_is_refused_is_the_clients_own_error(claude: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError):
        claude.messages.create(model="nobody", messages=HI, max_tokens=4)
    with pytest.raises(anthropic.BadRequestError, match="mcp_servers"):
        claude.beta.messages.create(
            model="sql", messages=HI, max_tokens=4, mcp_servers=[{"type": "url", "url": "http://x", "name": "x"}]
        )
