"""The models of the OpenAPI document take and refuse what the checks do, but for what only counting tells."""

import json
import re
from typing import Any, Final

import jsonschema_rs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from amalgam.api.fields.by_endpoint import FIELDS, HONOURED, check_fields
from amalgam.api.fields.loose_values import plain_values
from amalgam.api.inference.openai import ENDPOINT_PATHS, router
from amalgam.api.inference.request_models import REQUIRED, RULE, request_model
from amalgam.engine.protocol import Endpoint
from amalgam.errors.requests import FieldRefused
from tests.api.nasty_requests import nasty_requests
from tests.clients.recorded_bodies import Recorded, recorded_bodies
from tests.unit.api.test_constraint_fields import REFUSED as SCHEMAS_REFUSED
from tests.unit.api.test_constraint_fields import TAKEN as SCHEMAS_TAKEN
from tests.unit.api.test_field_table import vllm_classes
from tests.unit.api.test_fields import BOUNDS

ENDPOINTS: Final = tuple(FIELDS)
SCHEMAS: Final = {endpoint: request_model(endpoint).model_json_schema() for endpoint in ENDPOINTS}
VALIDATORS: Final = {endpoint: jsonschema_rs.Draft202012Validator(schema) for endpoint, schema in SCHEMAS.items()}
FILLED: Final[dict[str, Any]] = {
    "messages": [{"role": "user", "content": "a"}], "prompt": "a", "input": "a", "max_tokens": 1, "tokens": [1],
}  # fmt: skip
COUNTED: Final = re.compile(
    r"must not be nested deeper than|nested too deeply|prompts times n|needs stream|needs logprobs|must be at most"
    r"|must not be larger than max_tokens|must not be 0 without echo|parts and calls in all|asks for tools"
)
"""Messages of what no schema says: nesting, products, and fields that bound each other."""
BUDGETS: Final = re.compile(
    r"must have at most \d+ (nodes|characters|properties|enum values|branches|strings with|units of|quantifiers)"
    r"|must be between 0 and 8192|\$ref|must not repeat anything|beyond 64 bits|control characters|choices must have"
    r"|json_schema needs a schema"
)
"""Messages of the budgets of what constrains an answer."""
CONSTRAINTS: Final = ("tools", "response_format", "structured_outputs", "text", "output_config")


def refusal(endpoint: Endpoint, body: dict[str, Any]) -> FieldRefused | None:
    try:
        check_fields(endpoint, body)
    except FieldRefused as error:
        return error
    return None


def counted(error: FieldRefused) -> bool:
    of_budget = error.param in CONSTRAINTS and BUDGETS.search(error.message)
    return bool(COUNTED.search(error.message) or of_budget)


def has_whole_fraction(value: Any) -> bool:
    """Whether there is a number like 1.0, which JSON schema takes for an integer."""
    if isinstance(value, dict | list):
        return any(map(has_whole_fraction, value.values() if isinstance(value, dict) else value))
    return isinstance(value, float) and value.is_integer()


def compare(endpoint: Endpoint, body: dict[str, Any]) -> None:
    """Fill in what is required, and ask both."""
    body = {name: FILLED[name] for name in REQUIRED[endpoint]} | body
    if any(body[name] is None for name in REQUIRED[endpoint]):
        return
    error, shown = refusal(endpoint, body), VALIDATORS[endpoint].is_valid(body)
    if error is None:
        assert shown, f"the document refuses what the server takes: {endpoint} {str(body)[:300]}"
    elif not counted(error) and not ("must be an integer" in error.message and has_whole_fraction(body)):
        assert not shown, f"the document takes what the server refuses: {error.message} {endpoint} {str(body)[:300]}"


@pytest.mark.parametrize("recorded", recorded_bodies(), ids=lambda recorded: recorded.name)
def test_bodies_of_clients_fit_the_document(recorded: Recorded) -> None:
    endpoint = ENDPOINT_PATHS[recorded.path.partition("?")[0]]
    body = dict(plain_values(endpoint, recorded.body_for("sql")))
    assert refusal(endpoint, body) is None
    compare(endpoint, body)


@pytest.mark.parametrize(
    ("endpoint", "field", "taken", "refused"), BOUNDS, ids=lambda v: v if isinstance(v, str) else ""
)
def test_bounds_of_fields_are_those_of_the_document(
    endpoint: Endpoint, field: str, taken: list[Any], refused: list[Any]
) -> None:
    for value in [*taken, *refused]:
        if "nan" not in repr(value) and "inf" not in repr(value):
            compare(endpoint, {field: value})


def test_schemas_that_constrain_an_answer_fit() -> None:
    for schema in [*SCHEMAS_TAKEN, *SCHEMAS_REFUSED]:
        tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
        compare("chat_completions", {"tools": [tool]})
        compare("messages", {"tools": [{"name": "f", "input_schema": schema}]})
        compare("chat_completions", {"structured_outputs": {"json": schema}})
        compare("messages", {"output_config": {"format": {"type": "json_schema", "schema": schema}}})
        for form in (
            {"type": "json_schema", "json_schema": {"schema": schema}},
            {"type": "json_object", "schema": schema},
        ):
            compare("chat_completions", {"response_format": form})
            compare("responses", {"text": {"format": {"type": "json_schema", "name": "f", "schema": schema}}})


def test_nasty_requests_are_refused_or_taken_by_both() -> None:
    """Those of them that are small; the large ones are nasty by their size alone."""
    seen = 0
    for nasty in nasty_requests("sql"):
        raw = nasty.build()
        if nasty.path not in ENDPOINT_PATHS or len(raw) > 1 << 18 or nasty.headers:
            continue
        try:
            body = json.loads(raw)
        except (ValueError, RecursionError):
            continue
        seen += 1
        compare(ENDPOINT_PATHS[nasty.path], body)
    assert seen >= 10


PIECES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 300), st.integers(-(10**18), 10**18),
    st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=8),
    st.sampled_from(["", "sql", "user", "text", "function", "custom", "json_schema", "auto", "tool_result", "x" * 300]),
)  # fmt: skip
KEYS = [
    "role",
    "content",
    "type",
    "text",
    "name",
    "function",
    "schema",
    "json_schema",
    "parameters",
    "tool_calls",
    "json",
]
VALUES = st.recursive(
    PIECES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=12,
)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_any_value_of_any_field_is_judged_alike(endpoint: Endpoint) -> None:
    fields = st.sampled_from(sorted(FIELDS[endpoint]))

    @settings(max_examples=150, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(field=fields, value=VALUES)
    def attack(field: str, value: Any) -> None:
        compare(endpoint, {field: value})

    attack()


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_every_field_is_shown_with_what_becomes_of_it(endpoint: Endpoint) -> None:
    properties = SCHEMAS[endpoint]["properties"]
    assert {name: field[RULE] for name, field in properties.items()} == {n: s.rule for n, s in FIELDS[endpoint].items()}
    for name, spec in FIELDS[endpoint].items():
        assert spec.rule == "honoured" or properties[name]["description"] == f"{spec.rule}: {spec.says}"
    assert VALIDATORS[endpoint].is_valid(SCHEMAS[endpoint]["examples"][0])
    assert VALIDATORS[endpoint].is_valid(SCHEMAS[endpoint]["examples"][0] | {"of_no_table": {"a": 1}})


def test_bounds_are_shown_where_they_are() -> None:
    properties = SCHEMAS["chat_completions"]["properties"]
    assert {"type": "number", "minimum": 0, "maximum": 2} in properties["temperature"]["anyOf"]
    assert properties["n"]["anyOf"][0]["maximum"] == 16
    assert properties["messages"]["maxItems"] == 2048
    assert {"$ref": "#/$defs/ChatMessage"} in properties["messages"]["items"]["anyOf"]
    assert "guided_json" in properties
    assert [name for name, field in properties.items() if field[RULE] == "honoured"] == list(
        HONOURED["chat_completions"]
    )


def test_what_is_required_is_what_vllm_requires() -> None:
    needed: dict[Endpoint, list[set[str]]] = {}
    for endpoint, kind in vllm_classes():
        required = {name for name, field in kind.model_fields.items() if field.is_required()}
        if required <= HONOURED[endpoint].keys():
            # Embeddings of a chat need messages, which are refused here.
            needed.setdefault(endpoint, []).append(required)
    for endpoint, kinds in needed.items():
        always = set.intersection(*kinds) - {"model"}
        # A completion may have embeddings in place of its prompt in vLLM; here it may not.
        assert REQUIRED[endpoint] == always | ({"prompt"} if endpoint == "completions" else set()), endpoint


def test_the_routes_show_their_models() -> None:
    shown = {route.path: route.body_field for route in router(0.0).routes if route.path in ENDPOINT_PATHS}  # type: ignore[attr-defined]
    for path, endpoint in ENDPOINT_PATHS.items():
        assert shown[path].field_info.annotation.__name__.lower() == f"{endpoint.replace('_', '')}body"


def test_kinds_that_are_no_text_are_refused_and_no_fault() -> None:
    """A list cannot be looked up in a set of names."""
    kinds: list[Any] = [[], {}, ["text"], 5]
    for kind in kinds:
        for endpoint in ("chat_completions", "messages", "tokenize"):
            body = {"messages": [{"role": "user", "content": [{"type": kind, "text": "a"}]}]}
            assert (error := refusal(endpoint, body)) is not None
            assert error.param == "messages"
        for item in ({"type": kind}, {"type": "message", "content": [{"type": kind}]}):
            assert (error := refusal("responses", {"input": [item]})) is not None
            assert error.param == "input"
