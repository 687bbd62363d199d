"""The recorded requests of coding agents and chat front ends, on the real engine: answered, streamed, counted."""

import json
from typing import Any

import httpx
import pytest

from tests.clients.recorded_bodies import Recorded, ignored_names, recorded_bodies
from tests.e2e.conftest import RunningServer

CHAT = "/v1/chat/completions"
HI: list[dict[str, Any]] = [{"role": "user", "content": "Say one word."}]


@pytest.mark.parametrize("recorded", recorded_bodies(), ids=lambda recorded: recorded.name)
def test_a_recorded_request_is_answered(server: RunningServer, recorded: Recorded) -> None:
    with server.client() as session:
        answer = session.post(recorded.path, json=recorded.body_for("sql", 8), headers=recorded.headers)
    assert answer.status_code == 200, answer.text
    assert ignored_names(answer.headers.get("x-amalgam-ignored")) == recorded.ignored
    if not recorded.streams:
        assert answer.json()
        return
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    assert events
    assert not any("error" in event for event in events), answer.text[-500:]
    last = answer.text.rstrip().splitlines()[-1]
    ends = {CHAT: "[DONE]", "/v1/completions": "[DONE]", "/v1/responses": "response.", "/v1/messages": "message_stop"}
    assert ends[recorded.path.partition("?")[0]] in last


def count(session: httpx.Client, **fields: Any) -> int:
    answer = session.post("/v1/messages/count_tokens", json={"model": "sql", "messages": HI} | fields)
    assert answer.status_code == 200, answer.text
    found: int = answer.json()["input_tokens"]
    return found


def test_tokens_are_counted_as_the_answer_counts_them(server: RunningServer) -> None:
    with server.client() as session:
        alone = count(session)
        assert 0 < alone < count(session, messages=[{"role": "user", "content": "Say one word. " * 20}])
        answer = session.post("/v1/messages", json={"model": "sql", "messages": HI, "max_tokens": 2})
        assert answer.json()["usage"]["input_tokens"] == alone


def test_values_reach_the_template_and_cannot_take_its_place(server: RunningServer) -> None:
    with server.client() as session:
        body = {"model": "sql", "messages": HI, "max_tokens": 2, "temperature": 0}
        for values in ({"enable_thinking": False}, {"anything": "x", "share": 0.5}):
            answer = session.post(CHAT, json=body | {"chat_template_kwargs": values})
            assert answer.status_code == 200, answer.text
        refused = session.post(CHAT, json=body | {"chat_template_kwargs": {"chat_template": "{{ 1 }}"}})
        assert refused.status_code == 400


def test_a_json_object_with_a_schema_has_that_shape(server: RunningServer) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [7]}}, "required": ["n"], "additionalProperties": False}
    with server.client() as session:
        asked = {"model": "sql", "messages": HI, "response_format": {"type": "json_object", "schema": schema}}
        answer = session.post(CHAT, json=asked | {"max_tokens": 32, "temperature": 0})
        content = answer.json()["choices"][0]["message"]["content"]
        # A small model may fill its tokens with blanks, which JSON allows.
        assert '{"n":7}'.startswith("".join(content.split()))


def streamed(session: httpx.Client, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """Every event of an answer's stream, the client's end marker left out."""
    answer = session.post(path, json=body | {"stream": True})
    assert answer.status_code == 200, answer.text
    return [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]


def recorded(name: str) -> dict[str, Any]:
    [found] = [one for one in recorded_bodies() if one.name == name]
    return found.body_for("sql")


def turn(session: httpx.Client, body: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The answer of a Codex request at its stream's end; its items are those that came one by one."""
    events = streamed(session, "/v1/responses", body | more)
    last = events[-1]
    assert last["type"] in ("response.completed", "response.incomplete"), last
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert [item["id"] for item in done] == [item["id"] for item in last["response"]["output"]]
    assert last["response"]["usage"]["output_tokens"] > 0
    answer: dict[str, Any] = last["response"]
    return answer


@pytest.mark.parametrize("name", ["codex_stream", pytest.param("codex_developer", marks=pytest.mark.slow)])
def test_codex_calls_a_command_and_answers_what_came_of_it(server: RunningServer, name: str) -> None:
    """To the end of both streams; the model of the tests calls where it has to."""
    body = recorded(name)
    with server.client() as session:
        forced = {"type": "function", "name": "exec_command"}
        # What stands in an argument is drawn, and once in a while it has no end.
        tries = (turn(session, body, tool_choice=forced, max_output_tokens=256) for _ in range(6))
        called = next((one for one in tries if one["status"] == "completed"), None)
        assert called is not None
        [call] = [item for item in called["output"] if item["type"] == "function_call"]
        assert isinstance(json.loads(call["arguments"]), dict)
        history = [*body["input"], call, {"type": "function_call_output", "call_id": call["call_id"], "output": "a.md"}]
        said = turn(session, body | {"input": history}, max_output_tokens=16)
        assert said["usage"]["input_tokens"] > called["usage"]["input_tokens"]


def test_codex_edits_with_a_tool_of_free_text(server: RunningServer) -> None:
    body = recorded("codex_stream")
    with server.client() as session:
        called = turn(session, body, tool_choice={"type": "custom", "name": "apply_patch"}, max_output_tokens=512)
        [call] = [item for item in called["output"] if item["type"] == "custom_tool_call"]
        assert isinstance(call["input"], str)
        output = {"type": "custom_tool_call_output", "call_id": call["call_id"], "output": "Done."}
        said = turn(session, body | {"input": [*body["input"], call, output]}, max_output_tokens=16)
        # What it says is the model's own affair, and may be nothing; it has read what came of the call.
        assert said["usage"]["input_tokens"] > called["usage"]["input_tokens"]


def test_claude_code_calls_a_tool_and_answers_what_came_of_it(server: RunningServer) -> None:
    body = recorded("claude_code_stream") | {"max_tokens": 256}
    body.pop("thinking", None)
    tool = next(one for one in body["tools"] if "input_schema" in one)
    with server.client() as session:
        events = streamed(session, "/v1/messages", body | {"tool_choice": {"type": "tool", "name": tool["name"]}})
        kinds = [event["type"] for event in events]
        assert (kinds[0], kinds[-1]) == ("message_start", "message_stop")
        parts = [event["delta"] for event in events if event["type"] == "content_block_delta"]
        said = "".join(part["partial_json"] for part in parts if part["type"] == "input_json_delta")
        assert isinstance(json.loads(said), dict)
        use = {"type": "tool_use", "id": "toolu_1", "name": tool["name"], "input": json.loads(said)}
        result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "a.md"}]}
        turns = [{"role": "assistant", "content": [use]}, {"role": "user", "content": [result]}]
        answered = streamed(session, "/v1/messages", body | {"messages": [*body["messages"], *turns], "max_tokens": 8})
        assert answered[-1]["type"] == "message_stop"
        assert [event["delta"]["stop_reason"] for event in answered if event["type"] == "message_delta"][-1]


OPEN: dict[str, Any] = {"type": "object", "properties": {"when": {"type": "string", "pattern": "^[0-9]{4}$"}}}
"""A schema that a constraint could not hold to the letter, so that it is left to the engine."""


@pytest.mark.slow
@pytest.mark.parametrize("schema", [OPEN, {"type": "object"}, {}], ids=["pattern", "open", "any"])
def test_a_forced_tool_streams_an_object_whatever_its_schema(server: RunningServer, schema: dict[str, Any]) -> None:
    chat_tool = {"type": "function", "function": {"name": "look", "parameters": schema}}
    flat_tool = {"type": "function", "name": "look", "parameters": schema}
    with server.client() as session:
        for seed in range(3):
            asked = {"model": "sql", "max_tokens": 64, "temperature": 2, "top_p": 1, "seed": seed}
            chat = asked | {"messages": HI, "tools": [chat_tool], "tool_choice": "required"}
            calls = [
                call["function"].get("arguments") or ""
                for event in streamed(session, CHAT, chat)
                for choice in event["choices"]
                for call in choice["delta"].get("tool_calls") or ()
            ]
            assert "".join(calls).lstrip().startswith("{"), calls
            choice = {"type": "tool", "name": "look"}
            message = asked | {
                "messages": HI,
                "tools": [{"name": "look", "input_schema": schema}],
                "tool_choice": choice,
            }
            message.pop("seed")
            events = streamed(session, "/v1/messages", message)
            said = "".join(
                event["delta"].get("partial_json", "") for event in events if event["type"] == "content_block_delta"
            )
            assert said.lstrip().startswith("{"), said
        response = {"model": "sql", "input": "Hi", "max_output_tokens": 64, "tools": [flat_tool]}
        events = streamed(session, "/v1/responses", response | {"tool_choice": "required", "temperature": 2})
        said = "".join(event["delta"] for event in events if event["type"] == "response.function_call_arguments.delta")
        assert said.lstrip().startswith("{"), said
