import time
from typing import Any

import pytest

from amalgam.api.fields.schema_references import reference_fault

TREE: dict[str, Any] = {
    "type": "object",
    "properties": {"left": {"$ref": "#"}, "right": {"anyOf": [{"$ref": "#"}, {}]}},
}


@pytest.mark.parametrize(
    "schema",
    [
        {}, TREE, {"type": "array", "items": {"$ref": "#"}},
        {"$ref": "#/$defs/a", "$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"}}}},
        {"$ref": "#/$defs/a~1b", "$defs": {"a/b": {"type": "string"}}}, {"$ref": "#/$defs/a%20b", "$defs": {"a b": {}}},
        {"anyOf": [{"$ref": "#/$defs/0"}, {"$ref": "#/$defs/0"}], "$defs": [{"type": "null"}]},
        {"properties": {"$ref": {"type": "string"}}},
    ],
)  # fmt: skip
def test_references_that_lead_somewhere(schema: dict[str, Any]) -> None:
    assert reference_fault(schema) is None


@pytest.mark.parametrize(
    ("schema", "fault"),
    [
        ({"$ref": "#"}, "itself"), ({"allOf": [{"$ref": "#"}]}, "itself"),
        ({"anyOf": [{"type": "null"}, {"$ref": "#"}]}, "itself"),
        ({"properties": {"x": {"$ref": "#/properties/x"}}}, "itself"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"oneOf": [{"$ref": "#/$defs/a"}]}}},
        "itself"),
        ({"items": {"$defs": {"a": {"$ref": "#/items/$defs/a"}}}}, "itself"),
        ({"$ref": "#/nope"}, "nowhere"), ({"$ref": "#/$defs/5", "$defs": [{}]}, "nowhere"), ({"$ref": "#x"}, "nowhere"),
        ({"$ref": "#/$defs/²", "$defs": [{}]}, "nowhere"),
        ({"items": {"$ref": "#/type/x"}, "type": "string"}, "nowhere"),
    ],
)  # fmt: skip
def test_references_that_do_not(schema: dict[str, Any], fault: str) -> None:
    assert fault in (reference_fault(schema) or "")


def test_many_references_cost_little() -> None:
    names = [f"d{index}" for index in range(60)]
    schema = {
        "$defs": {
            name: {"anyOf": [{"$ref": f"#/$defs/{after}"} for after in names[index + 1 :]]}
            for index, name in enumerate(names)
        }
    }
    began = time.perf_counter()
    assert reference_fault(schema) is None
    assert time.perf_counter() - began < 1
