"""Messages in Anthropic's dialect from vLLM's own converter: well formed whatever became of a call's arguments."""

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.entrypoints.anthropic.serving import AnthropicServingMessages
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionResponse

from amalgam.engine.whole_messages import tell_whatever_was_said


def message(*arguments: str, finish_reason: str = "tool_calls", stop_reason: Any = None, content: str = "") -> Any:
    """What vLLM's converter, and ours before it, make of an answer with these calls."""
    calls = [
        {"id": f"call_{i}", "type": "function", "function": {"name": "weather", "arguments": text}}
        for i, text in enumerate(arguments)
    ]
    said = {"role": "assistant", "content": content or None, "tool_calls": calls}
    choice = {"index": 0, "message": said, "finish_reason": finish_reason, "stop_reason": stop_reason}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    answer = ChatCompletionResponse(model="m", choices=[choice], usage=usage)
    handler = SimpleNamespace()
    handler.messages_full_converter = lambda given: AnthropicServingMessages.messages_full_converter(handler, given)
    tell_whatever_was_said(handler)
    return handler.messages_full_converter(answer)


def blocks(of: Any) -> list[tuple[str, Any]]:
    return [(block.type, block.input if block.type == "tool_use" else block.text) for block in of.content]


def test_whole_calls_stay_as_they_are() -> None:
    made = message('{"city": "Oslo"}', '{"city": "Rome"}', content="Let me look.")
    assert blocks(made) == [("text", "Let me look."), ("tool_use", {"city": "Oslo"}), ("tool_use", {"city": "Rome"})]
    assert made.stop_reason == "tool_use"


CUT = [
    ("{", {}),
    ('{"city', {}),
    ('{"city": "Os', {}),
    ('{"city": "Oslo", "days": [1, 2', {"city": "Oslo", "days": [1, 2]}),
    ('{"where": {"city": "Oslo"', {"where": {"city": "Oslo"}}),
]


@pytest.mark.parametrize(("cut", "left"), CUT)
def test_a_call_that_the_limit_cut_keeps_what_is_whole(cut: str, left: Any) -> None:
    made = message('{"city": "Rome"}', cut, finish_reason="length")
    assert blocks(made) == [("tool_use", {"city": "Rome"}), ("tool_use", left)]
    assert (made.stop_reason, made.stop_sequence) == ("max_tokens", None)


@pytest.mark.parametrize(("cut", "left"), CUT)
@pytest.mark.parametrize("finish_reason", ["stop", "tool_calls"])
def test_a_call_that_a_stop_sequence_cut_must_not_be_run(cut: str, left: Any, finish_reason: str) -> None:
    made = message(cut, finish_reason=finish_reason, stop_reason="lo")
    assert blocks(made) == [("tool_use", left)]
    assert (made.stop_reason, made.stop_sequence) == ("stop_sequence", "lo")


@pytest.mark.parametrize("said", ['"Oslo"', "7", "null", "[1, 2]", "true", "nonsense", '{"city": "Os'])
@pytest.mark.parametrize("finish_reason", ["stop", "tool_calls"])
def test_arguments_that_the_model_ended_and_that_are_no_object_are_no_call(said: str, finish_reason: str) -> None:
    made = message(said, finish_reason=finish_reason, content="So: ")
    assert blocks(made) == [("text", f"So: {said}")]
    assert made.stop_reason == "end_turn"
    beside = message('{"city": "Rome"}', said)
    assert beside.stop_reason == "tool_use"
    assert blocks(beside) == [("text", said), ("tool_use", {"city": "Rome"})]


@pytest.mark.parametrize("said", ['"Osl', "[1, 2", "nonsense", "7"])
def test_what_was_cut_and_is_no_objects_beginning_is_text(said: str) -> None:
    made = message(said, finish_reason="length")
    assert blocks(made) == [("text", said)]
    assert made.stop_reason == "max_tokens"


def test_a_call_without_arguments_has_none() -> None:
    made = message("")
    assert blocks(made) == [("tool_use", {})]
    assert made.stop_reason == "tool_use"


def test_a_server_without_that_dialect_is_left_alone() -> None:
    tell_whatever_was_said(None)
