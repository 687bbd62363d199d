"""Bounds on what constrains an answer: JSON schemas, regular expressions, choices.

The engine compiles each into an automaton over its whole vocabulary, on a thread that serves everybody. Its cost grows
with repetitions, lengths and branches, so these are bounded here: what passes compiles in seconds, not in hours.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from amalgam.api.fields.checks import array, boolean, mapping, shallow, text
from amalgam.api.fields.pattern_cost import pattern_cost
from amalgam.api.fields.schema_references import reference_fault
from amalgam.errors.requests import FieldRefused

MAX_SCHEMA_CHARACTERS: Final = 1 << 16
MAX_SCHEMA_NODES: Final = 4096
MAX_PROPERTIES: Final = 256
MAX_ENUM: Final = 1024
MAX_BRANCHES: Final = 64
MAX_REPEAT: Final = 8192
MAX_AUTOMATA: Final = 16
"""One schema has at most so many strings with a length or a pattern; each quantifier of a pattern counts as one more.
"""
MAX_REGEX_CHARACTERS: Final = 512
MAX_QUANTIFIERS: Final = 16
MAX_REGEX_REPEAT: Final = 1000
MAX_PATTERN_COPIES: Final = 2048
"""It bounds the characters and classes of all patterns of one constraint, with every repetition written out."""
MAX_NESTED_WEIGHT: Final = 128
"""It bounds the weight of what stands below a repetition of a repetition; see `amalgam.api.fields.pattern_cost`."""
MAX_CHOICE: Final = 4096
MAX_CHOICES_CHARACTERS: Final = 1 << 14

_EXPRESSION: Final = text(MAX_REGEX_CHARACTERS).check
_CHOICES: Final = array(MAX_ENUM, text(MAX_CHOICE)).check
_QUANTIFIER: Final = re.compile(r"(?<!\\)(?:\\\\)*(?:[*+?]|\{(\d*)(?:,(\d*))?\})")
_COUNTS: Final = frozenset(
    {"maxLength", "minLength", "maxItems", "minItems", "minProperties", "maxProperties", "minContains", "maxContains"}
)
_UNIONS: Final = frozenset({"anyOf", "oneOf", "allOf", "prefixItems"})
_STRUCTURED: Final = frozenset({"json", "regex", "choice", "json_object", "disable_any_whitespace"})
_JSON_INTEGERS: Final = 1 << 63
_NODES: Final = "nodes"
_CHARACTERS: Final = "characters"
_AUTOMATA: Final = "strings with a length or pattern"
_COPIES: Final = "characters in patterns whose repetitions are written out"
_NESTED: Final = "units of nested repetition in patterns"
_PATTERN_BUDGET: Final[Mapping[str, int]] = {_COPIES: MAX_PATTERN_COPIES, _NESTED: MAX_NESTED_WEIGHT}
_SIZE_BUDGET: Final[Mapping[str, int]] = {
    _NODES: MAX_SCHEMA_NODES,
    _CHARACTERS: MAX_SCHEMA_CHARACTERS,
    "properties": MAX_PROPERTIES,
    "enum values": MAX_ENUM,
    "branches": MAX_BRANCHES,
}
_SIZE_OF_SHOWN: Final[Mapping[str, int]] = {what: _SIZE_BUDGET[what] for what in (_NODES, _CHARACTERS)}
_BUDGET: Final[Mapping[str, int]] = {**_SIZE_BUDGET, _AUTOMATA: MAX_AUTOMATA, **_PATTERN_BUDGET}
_BUDGET_TOGETHER: Final[Mapping[str, int]] = dict(_BUDGET) | {what: 4 * most for what, most in _SIZE_BUDGET.items()}


def regex(name: str, value: Any) -> None:
    """A regular expression whose automaton stays small."""
    _EXPRESSION(name, value)
    if not value.isprintable():
        raise FieldRefused(name, "must not hold control characters; write \\n for a line's end")
    if _quantifiers(value) > MAX_QUANTIFIERS:
        raise FieldRefused(name, f"must have at most {MAX_QUANTIFIERS} quantifiers")
    for found in _QUANTIFIER.finditer(value):
        for count in (found[1], found[2]):
            if count and (len(count) > 6 or int(count) > MAX_REGEX_REPEAT):
                raise FieldRefused(name, f"must not repeat anything more than {MAX_REGEX_REPEAT} times")
    for what, cost in _pattern_costs(value):
        if cost > _PATTERN_BUDGET[what]:
            raise FieldRefused(name, _too_large(what, _PATTERN_BUDGET[what]))


def json_schema(name: str, value: Any) -> None:
    """A JSON schema whose automaton stays small; true and false are schemas as well."""
    shallow(name, value)
    schema_within(name, value)


def schema_within(name: str, value: Any) -> None:
    """`json_schema` of a schema that is part of something that has been found `shallow`."""
    _Spending(name, _BUDGET).take(value)


def shown_schema_within(name: str, value: Any) -> None:
    """A shallow JSON schema that the model is shown and nothing is compiled from: bounded in its size alone."""
    spending = _Spending(name, _SIZE_OF_SHOWN)
    for node in _objects(mapping(name, value)):
        spending.take_size(node)


def json_schemas(name: str, schemas: Sequence[Any]) -> None:
    """Shallow schemas that share one budget: it is larger than that of one schema, but not in its patterns.

    Raises:
        FieldRefused: says what there is too much of.
    """
    spending = _Spending(name, _BUDGET_TOGETHER)
    for schema in schemas:
        spending.take(schema)


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
        schema_within(name, inner["schema"])
    elif given["type"] == "json_object" and given.get("schema") is not None:
        schema_within(name, given["schema"])


class _Spending:
    """What is left of a budget while schemas are read that share it."""

    __slots__ = ("_budget", "_characters", "_left", "_name", "_nodes")

    def __init__(self, name: str, budget: Mapping[str, int]) -> None:
        self._name = name
        self._budget = budget
        self._left = dict(budget)
        # The two that every object adds to; counted apart, because that is quicker.
        self._nodes = budget[_NODES]
        self._characters = budget[_CHARACTERS]

    def take(self, schema: Any) -> None:
        """Read one schema. Raises FieldRefused where the budget does not reach."""
        if isinstance(schema, bool):
            return
        mapping(self._name, schema)
        refers = False
        for node in _objects(schema):
            refers = self._take_object(node) or refers
        if refers and (fault := reference_fault(schema)):
            raise FieldRefused(self._name, fault)

    def take_size(self, node: Mapping[str, Any]) -> None:
        """Take what one object of a schema adds to its text."""
        self._nodes -= 1 + len(node)
        if self._nodes < 0:
            self._refuse(_NODES)
        characters = 0
        for key, value in node.items():
            characters += len(key)
            if isinstance(value, str):
                characters += len(value)
            elif key == "" and isinstance(value, list):
                characters += self._entries(value)
            else:
                characters += _scalar_length(self._name, value)
        self._characters -= characters
        if self._characters < 0:
            self._refuse(_CHARACTERS)

    def _take_object(self, node: Mapping[str, Any]) -> bool:
        """Take what one object of a schema adds to the automaton; whether it may hold a reference.

        Keys are read by what they hold, so that a property that is called ``pattern`` is none.
        """
        self.take_size(node)
        for key in node.keys() & _READ:
            self._take_keyword(key, node[key])
        if "pattern" in node and isinstance(pattern := node["pattern"], str):
            self._take_pattern(pattern)
        elif isinstance(node.get("maxLength"), int) or isinstance(node.get("minLength"), int):
            self._spend(_AUTOMATA, 1)
        return "$ref" in node

    def _entries(self, values: list[Any]) -> int:
        if len(values) > self._characters:
            self._refuse(_CHARACTERS)
        return sum(len(v) if isinstance(v, str) else _scalar_length(self._name, v) for v in values)

    def _take_keyword(self, key: str, value: Any) -> None:
        if isinstance(value, list):
            if key == "enum":
                self._spend("enum values", len(value))
            elif key in _UNIONS:
                self._spend("branches", len(value))
        elif isinstance(value, dict):
            if key == "properties":
                self._spend("properties", len(value))
            elif key == "patternProperties":
                for expression in value:
                    self._take_pattern(expression)
        elif key in _COUNTS and isinstance(value, int) and not 0 <= value <= MAX_REPEAT:
            raise FieldRefused(self._name, f"{key} must be between 0 and {MAX_REPEAT}")
        if key == "$ref" and not isinstance(value, dict) and not (isinstance(value, str) and value[:1] == "#"):
            raise FieldRefused(self._name, "$ref must point into the schema itself")

    def _take_pattern(self, expression: str) -> None:
        regex(self._name, expression)
        self._spend(_AUTOMATA, 1 + _quantifiers(expression))
        for what, cost in _pattern_costs(expression):
            self._spend(what, cost)

    def _spend(self, what: str, cost: int) -> None:
        self._left[what] -= cost
        if self._left[what] < 0:
            self._refuse(what)

    def _refuse(self, what: str) -> None:
        raise FieldRefused(self._name, _too_large(what, self._budget[what]))


_READ: Final = _COUNTS | _UNIONS | {"properties", "enum", "$ref", "patternProperties"}
"""The values under these keys of a schema are counted."""


def _choices(name: str, value: Any) -> None:
    _CHOICES(name, value)
    if not value or sum(map(len, value)) > MAX_CHOICES_CHARACTERS:
        raise FieldRefused(name, f"choices must have 1 to {MAX_CHOICES_CHARACTERS} characters in all")


def _quantifiers(expression: str) -> int:
    return sum(1 for _ in _QUANTIFIER.finditer(expression))


def _objects(schema: Any) -> Iterator[Mapping[str, Any]]:
    """Every object of a schema; a list is shown as an object with one key that is empty."""
    level = [schema]
    while level:
        node = level.pop()
        if isinstance(node, dict):
            yield node
            level.extend(child for child in node.values() if isinstance(child, _CONTAINERS))
        else:
            yield {"": node}
            level.extend(child for child in node if isinstance(child, _CONTAINERS))


_CONTAINERS: Final = (dict, list)


def _pattern_costs(expression: str) -> Iterator[tuple[str, int]]:
    cost = pattern_cost(expression)
    yield _COPIES, cost.copies
    yield _NESTED, cost.nested


def _too_large(what: str, most: int) -> str:
    hint = "; repeat less, and no repetition inside of another" if what in _PATTERN_BUDGET else ""
    return f"must have at most {most} {what}{hint}"


def _scalar_length(name: str, value: Any) -> int:
    if isinstance(value, int) and not -_JSON_INTEGERS <= value < _JSON_INTEGERS:
        raise FieldRefused(name, "must not hold integers beyond 64 bits")
    return len(value) if isinstance(value, str) else 1
