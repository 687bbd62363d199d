"""The tables against what others read and send: each field of vLLM's and of the clients' newest releases is there."""

from collections.abc import Iterator
from typing import Any, get_args

import pytest
from anthropic.types import message_count_tokens_params, message_create_params
from anthropic.types.beta import message_count_tokens_params as beta_count_params
from anthropic.types.beta import message_create_params as beta_create_params
from openai.types import completion_create_params, embedding_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params

from amalgam.api.fields.by_endpoint import FIELDS, HONOURED
from amalgam.engine.protocol import Endpoint

CLIENTS: list[tuple[Endpoint, Any]] = [
    ("chat_completions", chat_create_params.CompletionCreateParamsBase),
    ("completions", completion_create_params.CompletionCreateParamsBase),
    ("responses", response_create_params.ResponseCreateParamsBase),
    ("embeddings", embedding_create_params.EmbeddingCreateParams),
    ("messages", message_create_params.MessageCreateParamsBase),
    ("messages", beta_create_params.MessageCreateParamsBase),
    ("count_tokens", message_count_tokens_params.MessageCountTokensParams),
    ("count_tokens", beta_count_params.MessageCountTokensParams),
]


def vllm_classes() -> Iterator[tuple[Endpoint, Any]]:
    """The request classes that this server passes bodies to, and those of their unions."""
    from amalgam.engine.vllm_endpoints import endpoint_table

    for endpoint, spec in endpoint_table().items():
        for kind in _members(spec.request._type):
            yield endpoint, kind


def _members(kind: Any) -> Iterator[Any]:
    """The classes of a union of unions."""
    if hasattr(kind, "model_fields"):
        yield kind
    for inner in get_args(kind):
        yield from _members(inner)


@pytest.mark.parametrize(("endpoint", "params"), CLIENTS, ids=lambda value: getattr(value, "__module__", value))
def test_every_parameter_of_the_clients_is_classified(endpoint: Endpoint, params: Any) -> None:
    new = set(params.__annotations__) - FIELDS[endpoint].keys()
    assert not new, f"{endpoint}: say in the tables what becomes of {sorted(new)}"


def test_every_field_of_vllms_request_classes_is_classified() -> None:
    seen = set()
    for endpoint, kind in vllm_classes():
        seen.add(endpoint)
        new = set(kind.model_fields) - FIELDS[endpoint].keys()
        assert not new, f"{endpoint}: say in the tables what becomes of {sorted(new)}"
    assert seen == FIELDS.keys()


REWRITTEN: dict[Endpoint, set[str]] = {"messages": {"output_format"}}
"""Brought into another field's form before vLLM sees them."""


def test_what_is_honoured_is_read_by_vllm() -> None:
    read: dict[Endpoint, set[str]] = {}
    for endpoint, kind in vllm_classes():
        read.setdefault(endpoint, set()).update(kind.model_fields)
    for endpoint, table in HONOURED.items():
        assert table.keys() - read[endpoint] == REWRITTEN.get(endpoint, set()), endpoint


def test_every_row_says_what_its_reader_has_to_know() -> None:
    for endpoint, table in FIELDS.items():
        for name, spec in table.items():
            assert (spec.check is not None) == (spec.rule == "honoured"), (endpoint, name)
            assert spec.says or spec.rule == "honoured", (endpoint, name)
            assert not spec.says.endswith("."), (endpoint, name)
