"""The bodies of inference as Pydantic models, made of the tables of fields: the OpenAPI document shows them.

They are for readers and for programs that write clients. A request is read with the checks of the same tables: these
are quicker, name the field at fault in one way, and count what no schema can (`amalgam.api.fields.by_endpoint`).
"""

from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, create_model
from pydantic.json_schema import WithJsonSchema

from amalgam.api.fields.by_endpoint import FIELDS
from amalgam.api.fields.table import IGNORED_HEADER, FieldSpec
from amalgam.engine.protocol import Endpoint

RULE: Final = "x-amalgam-rule"
"""This key of a schema's property says what becomes of the field."""
_RULES: Final = ("honoured", "without effect", "refused")
_NOTHING: Final[tuple[Any, ...]] = (None, False, 0, "", [], {})
"""These values ask for nothing, where a field is refused."""
REQUIRED: Final[Mapping[Endpoint, frozenset[str]]] = {
    "chat_completions": frozenset({"messages"}),
    "completions": frozenset({"prompt"}),
    "responses": frozenset({"input"}),
    "messages": frozenset({"messages", "max_tokens"}),
    "count_tokens": frozenset({"messages"}),
    "tokenize": frozenset(),
    "detokenize": frozenset({"tokens"}),
    "embeddings": frozenset({"input"}),
}
"""The engine's handlers miss these fields where they are not there. Without ``model`` the base model answers."""
_ABOUT: Final = (
    f"Each field with what becomes of it (`{RULE}`). Null is as if it were not there. A field that is not listed is "
    f"taken without effect and named in the header `{IGNORED_HEADER}`, unless AMALGAM_UNKNOWN_FIELDS is refuse."
)
_HI: Final = [{"role": "user", "content": "How many rows has the table users?"}]
_EXAMPLES: Final[Mapping[Endpoint, dict[str, Any]]] = {
    "chat_completions": {"model": "sql", "messages": _HI, "max_completion_tokens": 64},
    "completions": {"model": "sql", "prompt": "SELECT", "max_tokens": 16},
    "responses": {"model": "sql", "input": "How many rows has the table users?", "max_output_tokens": 64},
    "messages": {"model": "sql", "messages": _HI, "max_tokens": 64},
    "count_tokens": {"model": "sql", "messages": _HI},
    "tokenize": {"model": "sql", "prompt": "SELECT"},
    "detokenize": {"model": "sql", "tokens": [1, 2, 3]},
    "embeddings": {"model": "sql", "input": ["SELECT"]},
}


@cache
def request_model(endpoint: Endpoint) -> type[BaseModel]:
    """The body of ``endpoint``: every field of its table with its bounds, and what becomes of it."""
    table = sorted(FIELDS[endpoint].items(), key=lambda row: _RULES.index(row[1].rule))
    fields: dict[str, Any] = {
        name: (_required(spec) if name in REQUIRED[endpoint] else _optional(spec)) for name, spec in table
    }
    title = "".join(map(str.capitalize, endpoint.split("_"))) + "Body"

    def finished(schema: dict[str, Any]) -> None:
        schema["examples"] = [_EXAMPLES[endpoint]]
        for field in schema["properties"].values():
            # A title that repeats the name, and that what is not sent is null: they say nothing.
            field.pop("title", None)
            field.pop("default", None)

    config = ConfigDict(strict=True, extra="allow", frozen=True, json_schema_extra=finished)
    return create_model(title, __config__=config, __doc__=_ABOUT, **fields)


def bounds_schema(spec: FieldSpec) -> dict[str, Any]:
    """The bounds of a field as JSON schema, on their outermost level alone."""
    schema = TypeAdapter(spec.shape).json_schema()
    if "anyOf" in schema:
        schema["anyOf"] = [{"type": "object"} if "$ref" in one else one for one in schema["anyOf"]]
    return schema


def _required(spec: FieldSpec) -> tuple[Any, Any]:
    return spec.shape, Field(description=spec.says or None, json_schema_extra={RULE: spec.rule})


def _optional(spec: FieldSpec) -> tuple[Any, Any]:
    if spec.rule == "honoured":
        return spec.shape | None, Field(
            default=None, description=spec.says or None, json_schema_extra={RULE: spec.rule}
        )
    kind: Any = Any
    if spec.rule == "refused":
        kind = Annotated[Any, WithJsonSchema({"enum": [*_NOTHING, *spec.harmless]})]
    about = f"{spec.rule}: {spec.says}"
    return kind, Field(default=None, description=about, json_schema_extra={RULE: spec.rule})
