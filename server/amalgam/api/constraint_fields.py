"""Bounds on what constrains an answer: JSON schemas, regular expressions, choices.

The engine compiles each into an automaton over its whole vocabulary, on a thread that serves everybody. Its cost grows
with repetitions, lengths and branches, so these are bounded here: what passes compiles in seconds, not in hours.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from amalgam.api.field_checks import array, boolean, mapping, shallow, text
from amalgam.api.schema_references import reference_fault
from amalgam.errors.requests import FieldRefused

MAX_SCHEMA_CHARACTERS: Final = 1 << 16
MAX_SCHEMA_NODES: Final = 4096
MAX_PROPERTIES: Final = 256
MAX_ENUM: Final = 1024
MAX_BRANCHES: Final = 64
MAX_REPEAT: Final = 8192
MAX_AUTOMATA: Final = 16
"""Strings with a length or a pattern in one schema; each quantifier of a pattern counts as one more."""
MAX_REGEX_CHARACTERS: Final = 512
MAX_QUANTIFIERS: Final = 16
MAX_REGEX_REPEAT: Final = 1000
MAX_CHOICES_CHARACTERS: Final = 1 << 14

_QUANTIFIER: Final = re.compile(r"(?<!\\)(?:\\\\)*(?:[*+?]|\{(\d*)(?:,(\d*))?\})")
_COUNTS: Final = frozenset(
    {"maxLength", "minLength", "maxItems", "minItems", "minProperties", "maxProperties", "minContains", "maxContains"}
)
_UNIONS: Final = frozenset({"anyOf", "oneOf", "allOf", "prefixItems"})
_STRUCTURED: Final = frozenset({"json", "regex", "choice", "json_object", "disable_any_whitespace"})
_JSON_INTEGERS: Final = 1 << 63


def regex(name: str, value: Any) -> None:
    """A regular expression whose automaton stays small."""
    text(MAX_REGEX_CHARACTERS)(name, value)
    if not value.isprintable():
        raise FieldRefused(name, "must not hold control characters; write \\n for a line's end")
    if _quantifiers(value) > MAX_QUANTIFIERS:
        raise FieldRefused(name, f"must have at most {MAX_QUANTIFIERS} quantifiers")
    for found in _QUANTIFIER.finditer(value):
        for count in (found[1], found[2]):
            if count and (len(count) > 6 or int(count) > MAX_REGEX_REPEAT):
                raise FieldRefused(name, f"must not repeat anything more than {MAX_REGEX_REPEAT} times")


def json_schema(name: str, value: Any) -> None:
    """A JSON schema whose automaton stays small; true and false are schemas as well."""
    if isinstance(value, bool):
        return
    mapping(name, value)
    shallow(name, value)
    budget = {"nodes": MAX_SCHEMA_NODES, "characters": MAX_SCHEMA_CHARACTERS, "properties": MAX_PROPERTIES}
    budget |= {"enum values": MAX_ENUM, "branches": MAX_BRANCHES, "strings with a length or pattern": MAX_AUTOMATA}
    left = dict(budget)
    for node in _objects(value):
        for what, cost in _costs(name, node):
            left[what] -= cost
            if left[what] < 0:
                raise FieldRefused(name, f"must have at most {budget[what]} {what}")
    if fault := reference_fault(value):
        raise FieldRefused(name, fault)


def structured_outputs(name: str, value: Any) -> None:
    """VLLM's own spelling: one of json, regex, choice, json_object."""
    given = mapping(name, value)
    if not given.keys() <= _STRUCTURED:
        raise FieldRefused(name, f"may hold {', '.join(sorted(_STRUCTURED))}")
    for key, part in given.items():
        if part is None:
            continue
        if key == "json":
            json_schema(name, part)
        elif key == "regex":
            regex(name, part)
        elif key == "choice":
            _choices(name, part)
        else:
            boolean(name, part)


def response_format(name: str, value: Any) -> None:
    """OpenAI's ``{"type": "text" | "json_object" | "json_schema", …}``."""
    shallow(name, value)
    given = mapping(name, value)
    if given.get("type") not in ("text", "json_object", "json_schema"):
        raise FieldRefused(name, "type must be text, json_object or json_schema")
    if given["type"] == "json_schema":
        # Chat puts the schema one object deeper than the Responses dialect does.
        inner = mapping(name, given["json_schema"]) if "json_schema" in given else given
        if inner.get("schema") is None:
            raise FieldRefused(name, "json_schema needs a schema")
        json_schema(name, inner["schema"])


def _choices(name: str, value: Any) -> None:
    array(MAX_ENUM, text(4096))(name, value)
    if not value or sum(map(len, value)) > MAX_CHOICES_CHARACTERS:
        raise FieldRefused(name, f"choices must have 1 to {MAX_CHOICES_CHARACTERS} characters in all")


def _quantifiers(expression: str) -> int:
    return sum(1 for _ in _QUANTIFIER.finditer(expression))


def _objects(schema: Any) -> Iterator[Mapping[str, Any]]:
    level = [schema]
    while level:
        node = level.pop()
        if isinstance(node, dict):
            yield node
            level.extend(node.values())
        elif isinstance(node, list):
            yield {"": node}
            level.extend(child for child in node if isinstance(child, dict | list))


def _costs(name: str, node: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """What one object of a schema adds to the automaton.

    Keys are read by what they hold, so that a property that is called ``pattern`` is none.
    """
    yield "nodes", 1 + len(node)
    for key, value in node.items():
        yield "characters", len(key)
        for scalar in value if key == "" and isinstance(value, list) else (value,):
            yield "characters", _scalar_length(name, scalar)
        if key == "properties" and isinstance(value, dict):
            yield "properties", len(value)
        elif key == "enum" and isinstance(value, list):
            yield "enum values", len(value)
        elif key in _UNIONS and isinstance(value, list):
            yield "branches", len(value)
        elif key in _COUNTS and isinstance(value, int) and not 0 <= value <= MAX_REPEAT:
            raise FieldRefused(name, f"{key} must be between 0 and {MAX_REPEAT}")
        elif key == "$ref" and not (isinstance(value, str | dict) and (isinstance(value, dict) or value[:1] == "#")):
            raise FieldRefused(name, "$ref must point into the schema itself")
        elif key == "patternProperties" and isinstance(value, dict):
            for expression in value:
                regex(name, expression)
                yield "strings with a length or pattern", 1 + _quantifiers(expression)
    yield "strings with a length or pattern", _automata(name, node)


def _automata(name: str, node: Mapping[str, Any]) -> int:
    count = int(any(isinstance(node.get(key), int) for key in ("maxLength", "minLength")))
    if isinstance(pattern := node.get("pattern"), str):
        regex(name, pattern)
        count = 1 + _quantifiers(pattern)
    return count


def _scalar_length(name: str, value: Any) -> int:
    if isinstance(value, int) and not -_JSON_INTEGERS <= value < _JSON_INTEGERS:
        raise FieldRefused(name, "must not hold integers beyond 64 bits")
    return len(value) if isinstance(value, str) else 1
