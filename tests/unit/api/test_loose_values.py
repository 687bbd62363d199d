"""Numbers and switches as clients write them, and bodies of another dialect."""

from typing import Any

import pytest

from amalgam.api.fields.loose_values import plain_values, require_dialect
from amalgam.api.inference.request_models import REQUIRED
from amalgam.engine.protocol import Endpoint
from amalgam.errors.requests import FieldRefused


@pytest.mark.parametrize(("field", "sent", "read"), [
    ("max_tokens", "256", 256), ("max_tokens", " 256 ", 256), ("max_tokens", 256.0, 256), ("seed", "-7", -7),
    ("top_k", 40.0, 40), ("n", "1", 1), ("temperature", "0.7", 0.7), ("temperature", "1", 1.0), ("top_p", ".5", 0.5),
    ("presence_penalty", "-1e0", -1.0), ("stream", 1, True), ("stream", 0, False), ("stream", "true", True),
    ("stream", "False", False), ("logprobs", 1, True), ("parallel_tool_calls", "0", False),
])  # fmt: skip
def test_what_can_mean_one_thing_is_read_as_that(field: str, sent: Any, read: Any) -> None:
    body = {"model": "m", field: sent}
    plain = plain_values("chat_completions", body)
    assert plain[field] == read
    assert type(plain[field]) is type(read)
    assert body[field] == sent, "the client's own body is not changed"


def test_a_count_of_log_probabilities_may_be_a_switch() -> None:
    assert plain_values("completions", {"logprobs": True})["logprobs"] == 1
    assert plain_values("completions", {"logprobs": False})["logprobs"] is None


@pytest.mark.parametrize(("field", "value"), [
    ("max_tokens", 1.5), ("max_tokens", "1.5"), ("max_tokens", "ten"), ("max_tokens", ""), ("max_tokens", 1e300),
    ("max_tokens", "9" * 400), ("max_tokens", [1]), ("max_tokens", {}), ("temperature", "nan"), ("temperature", "inf"),
    ("temperature", "1_0"), ("temperature", True), ("temperature", "1e999"), ("stream", 2), ("stream", "yes"),
    ("stream", 1.0), ("stream", [True]), ("max_tokens", "٣"), ("user", 5), ("model", 5), ("stop", 5),
])  # fmt: skip
def test_anything_else_is_left_for_the_checks(field: str, value: Any) -> None:
    body = {field: value}
    assert plain_values("chat_completions", body) is body


def test_what_is_of_its_type_costs_no_copy() -> None:
    body = {"max_tokens": 5, "temperature": 1, "top_p": 0.5, "stream": True, "seed": None}
    assert plain_values("chat_completions", body) is body


@pytest.mark.parametrize(("endpoint", "body", "route"), [
    ("chat_completions", {"input": "a"}, "/v1/responses"), ("chat_completions", {"prompt": "a"}, "/v1/completions"),
    ("responses", {"messages": []}, "/v1/chat/completions"), ("completions", {"messages": []}, "/v1/chat/completions"),
    ("messages", {"prompt": "a"}, "/v1/completions"),
])  # fmt: skip
def test_a_body_of_another_route_is_refused_with_that_routes_name(
    endpoint: Endpoint, body: dict[str, Any], route: str
) -> None:
    with pytest.raises(FieldRefused) as caught:
        require_dialect(endpoint, body)
    assert caught.value.message.endswith(f"send this body to {route}")


def test_what_is_there_is_enough() -> None:
    require_dialect("chat_completions", {"messages": [], "input": "a"})
    require_dialect("tokenize", {"prompt": "a"})
    with pytest.raises(FieldRefused, match="messages: is missing; send it"):
        require_dialect("chat_completions", {"messages": None})
    for endpoint, needed in REQUIRED.items():
        for name in needed:
            body: dict[str, Any] = {key: [] for key in needed - {name}}
            with pytest.raises(FieldRefused, match=f"^{name}: is missing; send it"):
                require_dialect(endpoint, body)
    with pytest.raises(FieldRefused, match="prompt: is missing"):
        require_dialect("tokenize", {})
