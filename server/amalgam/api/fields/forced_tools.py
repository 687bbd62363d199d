"""Arguments of forced tools, bound to their schemas where that takes nothing away.

A request that forces a call wants an object that the tool takes. vLLM binds the arguments to the schema only where the
tool says ``strict``, and otherwise takes any JSON value, down to a bare string, which no client reads. So a tool counts
as strict while it is forced: one that says that it is not only expects less, and many clients say so by themselves.
A schema that cannot be bound is left to the engine, which takes any object for it.
Where the choice is the model's nothing changes: a constraint on every request with tools would have to be compiled, and
could be refused, for calls that nobody asked for.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, Final

from amalgam.engine.protocol import Endpoint

_FORCING: Final = frozenset({"required", "any", "tool", "function", "custom"})
_BINDABLE: Final = frozenset({
    "$defs", "$ref", "$schema", "additionalProperties", "anyOf", "const", "default", "definitions", "deprecated",
    "description", "enum", "examples", "exclusiveMaximum", "exclusiveMinimum", "items", "maxItems", "maxLength",
    "maximum", "minItems", "minLength", "minimum", "nullable", "oneOf", "prefixItems", "properties", "readOnly",
    "required", "title", "type", "writeOnly",
})  # fmt: skip
"""Under these keywords the constraint allows what the schema does, or asks for nothing. Under others, such as patterns
and rules for names, the engine might refuse the schema or allow less, so that the tool stays as it was sent."""
_LOWER: Final[Mapping[str, int]] = {"minimum": 0, "exclusiveMinimum": 1}
_UPPER: Final[Mapping[str, int]] = {"maximum": 0, "exclusiveMaximum": 1}
"""By the keyword of a bound, it says whether what is allowed begins beyond it."""
_SMALLEST: Final = 1e-6
_LARGEST: Final = 1 << 53
"""Magnitudes of bounds, but for 0, that the engine's constraint tells from their neighbours."""
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
    return schema.keys() <= _BINDABLE and not is_open and _has_takeable_range(schema)


def _has_takeable_range(schema: Mapping[str, Any]) -> bool:
    """Whether the engine takes the bounds of a number as they are, which it refuses where no value lies between them.

    In earlier drafts of JSON Schema the exclusive bounds were switches.
    """
    kind = schema.get("type")
    of_integers = "integer" in (kind if isinstance(kind, list) else [kind])
    bounds = {key: schema[key] for key in (*_LOWER, *_UPPER) if key in schema}
    if not all(_is_takeable_bound(bound, of_integers) for bound in bounds.values()):
        return False
    # The next integer, or just beyond.
    step = 1 if of_integers else _SMALLEST / 2
    lowest = max((bounds[key] + step * past for key, past in _LOWER.items() if key in bounds), default=-math.inf)
    highest = min((bounds[key] - step * past for key, past in _UPPER.items() if key in bounds), default=math.inf)
    return bool(lowest <= highest)


def _is_takeable_bound(bound: Any, of_integers: bool) -> bool:
    if type(bound) not in (int, float) or not (bound == 0 or _SMALLEST <= abs(bound) <= _LARGEST):
        return False
    return not of_integers or bound == int(bound)


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
