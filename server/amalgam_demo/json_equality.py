"""When two JSON values are the same."""

import json
from collections.abc import Sequence


def parse_json(text: str) -> object:
    """The value of ``text``, by the standard's rules.

    Raises:
        ValueError: It is not JSON, names a key twice, or holds ``NaN`` or an infinity.
    """
    return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)


def same_json(left: object, right: object) -> bool:
    """Whether two JSON values are equal: 3 and 3.0 are, 1 and true are not, keys have no order, list items have."""
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same_json(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(same_json(a, b) for a, b in zip(left, right, strict=True))
    return isinstance(left, bool) == isinstance(right, bool) and left == right


def _unique(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key occurs twice")
    return value


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")
