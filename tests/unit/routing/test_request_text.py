"""What a user says in a body, in every dialect."""

from typing import Any

import pytest

from amalgam.domain.routing import Said
from amalgam.routing.request_text import said_in


def turn(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


@pytest.mark.parametrize(("body", "said"), [
    ({"prompt": " a text "}, Said("a text")),
    ({"prompt": ["one", "two"]}, Said("one\ntwo")),
    ({"prompt": [1, 2, 3]}, Said()),
    ({"prompt": [[1, 2], [3]]}, Said()),
    ({"input": "a text"}, Said("a text")),
    ({"input": ["one", "two"]}, Said("one\ntwo")),
    ({"input": [turn("user", "first"), turn("assistant", "x"), turn("user", [{"type": "input_text", "text": "last"}])]},
     Said("last", "first")),
    ({"input": [turn("user", "first"), {"type": "function_call_output", "output": "found"}]}, Said("first")),
    ({"messages": [turn("system", "be kind"), turn("user", "a text")]}, Said("a text")),
    ({"messages": [turn("user", "one"), turn("user", "two"), turn("user", "three")]}, Said("three", "one\ntwo")),
    ({"messages": [turn("user", "what is it?"), turn("assistant", None), turn("tool", "a result")]},
     Said("what is it?")),
    ({"messages": [turn("user", "ask"), turn("user", [{"type": "tool_result", "content": "a result"}])]}, Said("ask")),
    ({"messages": [turn("user", [{"type": "image_url"}, {"type": "text", "text": "what?"}])]},
     Said("what?")),
    ({"messages": []}, Said()),
    ({"tokens": [1, 2]}, Said()),
    ({}, Said()),
])  # fmt: skip
def test_the_users_own_texts_are_found(body: dict[str, Any], said: Said) -> None:
    assert said_in(body) == said


def test_long_texts_are_read_at_both_ends_and_of_many_turns_the_latest() -> None:
    long = "begin " + "x" * 5000 + " end"
    found = said_in({"messages": [turn("user", f"{place} " + "y" * 900) for place in range(50)] + [turn("user", long)]})
    assert found.last.startswith("begin")
    assert found.last.endswith("end")
    assert len(found.last) < 1100
    assert "49 " in found.earlier
    assert "40 " not in found.earlier
    assert len(found.earlier) < 2100
