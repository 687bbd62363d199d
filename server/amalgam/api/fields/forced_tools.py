"""Arguments of forced tools, bound to their schemas where that takes nothing away.

A request that forces a call wants an object that the tool takes. vLLM binds the arguments to the schema only where the
tool says ``strict``, and otherwise takes any JSON value, down to a bare string, which no client reads. So a tool counts
as strict while it is forced: one that says that it is not only expects less, and many clients say so by themselves.
A schema that cannot be bound is left to the engine, which takes any object for it.
Where the choice is the model's nothing changes: a constraint on every request with tools would have to be compiled, and
could be refused, for calls that nobody asked for.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from amalgam.engine.protocol import Endpoint

_FORCING: Final = frozenset({"required", "any", "tool", "function", "custom"})
_BINDABLE: Final = frozenset({
    "$defs", "$ref", "$schema", "additionalProperties", "anyOf", "const", "default", "definitions", "deprecated",
    "description", "enum", "examples", "items", "maxItems", "maxLength", "maximum", "minItems", "minLength", "minimum",
    "nullable", "oneOf", "prefixItems", "properties", "readOnly", "required", "title", "type", "writeOnly",
})  # fmt: skip
"""Under these keywords the constraint allows what the schema does, or asks for nothing. Under others, such as patterns
and rules for names, the engine might refuse the schema or allow less, so that the tool stays as it was sent."""
_OF_NAMES: Final = frozenset({"properties", "$defs", "definitions"})
_OF_SCHEMAS: Final = frozenset({"items", "additionalProperties", "anyOf", "oneOf", "prefixItems"})


def bind_forced(endpoint: Endpoint, body: dict[str, Any]) -> None:
    """Set ``strict`` in ``body`` on the tools whose call is forced, unless they cannot be bound."""
    if "tools" not in body or not _forces(body.get("tool_choice")):
        return
    body["tools"] = [_bound(tool) for tool in body["tools"]]


def _forces(choice: Any) -> bool:
    if not isinstance(choice, Mapping):
        return bool(choice == "required")
    kind = choice.get("type")
    if kind != "allowed_tools":
        return isinstance(kind, str) and kind in _FORCING
    allowed = choice.get("allowed_tools", choice)
    return isinstance(allowed, Mapping) and allowed.get("mode") == "required"


def _bound(tool: Mapping[str, Any]) -> dict[str, Any]:
    if tool.get("type") == "namespace":
        return {**tool, "tools": [_bound(one) for one in tool["tools"]]}
    inner = tool.get("function")
    function = inner if isinstance(inner, Mapping) else tool
    schema = function.get("input_schema", function.get("parameters"))
    if function.get("strict") is True or not _is_bindable(schema):
        return dict(tool)
    strict = {**function, "strict": True}
    return {**tool, "function": strict} if function is inner else strict


def _is_bindable(schema: Any) -> bool:
    """Whether an answer under the constraint is an object, and can be everything that ``schema`` allows to be said."""
    is_object = isinstance(schema, Mapping) and ("properties" in schema or schema.get("type") == "object")
    return is_object and all(map(_is_plain, _schemas(schema)))


def _is_plain(schema: Any) -> bool:
    if not isinstance(schema, Mapping):
        return isinstance(schema, bool)
    is_open = schema.get("type") == "object" and "properties" not in schema and "additionalProperties" not in schema
    # Under the constraint an object has no keys but those that the schema names.
    return schema.keys() <= _BINDABLE and not is_open


def _schemas(root: Mapping[str, Any]) -> Iterator[Any]:
    """``root`` and every schema in it."""
    level: list[Any] = [root]
    while level:
        schema = level.pop()
        yield schema
        if not isinstance(schema, Mapping):
            continue
        for key, value in schema.items():
            if key in _OF_NAMES and isinstance(value, Mapping):
                level.extend(value.values())
            elif key in _OF_SCHEMAS:
                level.extend(value if isinstance(value, list) else [value])
