"""How an answer is measured against what was wanted. Adding a metric is adding a row to the table."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from amalgam.domain.pattern import Pattern

Need = Literal["reference", "JSON reference", "pattern", "nothing"]
LOG_LIKELIHOOD: Final = "log_likelihood"
KEPT: Final = "kept"
"""It is measured in sweeps alone: it needs an adapter whose answers are to be kept."""
KEPT_LIKELIHOOD: Final = "kept_likelihood"
"""It is told beside `KEPT`: probability of the own answer over its own adapter's, a token, geometric mean, at most 1.
"""


@dataclass(frozen=True, slots=True)
class AnswerMetric:
    """One row.

    Attributes:
        name: as clients ask for it.
        summary: one sentence.
        needs: what an item must have; items without it are not measured by this metric.
        score: 1.0 or 0.0 of an answer, given what the item needs; None where no answer is looked at.
    """

    name: str
    summary: str
    needs: Need
    score: Callable[[str, str], float] | None


def exact_match(answer: str, reference: str) -> float:
    """1 where both are the same text, blanks around them aside."""
    return float(answer.strip() == reference.strip())


def contains(answer: str, reference: str) -> float:
    """1 where the reference, blanks around it aside, is somewhere in the answer."""
    return float(reference.strip() in answer)


def regex(answer: str, pattern: str) -> float:
    """1 where the pattern is found in the answer.

    Raises:
        InvalidPattern: see `Pattern`.
    """
    return float(Pattern(pattern).is_in(answer))


def json_valid(answer: str, _: str = "") -> float:
    """1 where the whole answer is one JSON value."""
    return float(_read(answer) is not _BROKEN)


def json_equal(answer: str, reference: str) -> float:
    """1 where both are the same JSON value: keys in any order, 1 and 1.0 alike, true and 1 not."""
    read, wanted = _read(answer), _read(reference)
    return float(read is not _BROKEN and wanted is not _BROKEN and _equal(read, wanted))


def _table(*rows: AnswerMetric) -> Mapping[str, AnswerMetric]:
    table = {row.name: row for row in rows}
    assert len(table) == len(rows), "two metrics share a name"
    return table


ANSWER_METRICS: Final = _table(
    AnswerMetric("exact_match", "the answer is the reference, blanks around both aside", "reference", exact_match),
    AnswerMetric("contains", "the reference is somewhere in the answer", "reference", contains),
    AnswerMetric("regex", "the item's pattern is found in the answer", "pattern", regex),
    AnswerMetric("json_valid", "the whole answer is one JSON value", "nothing", json_valid),
    AnswerMetric("json_equal", "the answer is the reference as a JSON value", "JSON reference", json_equal),
    AnswerMetric(LOG_LIKELIHOOD, "mean log-probability of the reference's tokens, nats", "reference", None),
    AnswerMetric(KEPT, "the merge would give the task's own adapter's answer alike to the end", "nothing", None),
)
"""It has every metric by name. All are shares of items but log-probabilities, of which higher is better too, up to 0.
"""


def given(metric: AnswerMetric, reference: str | None, pattern: str | None) -> str | None:
    """What an item has for ``metric``; None where the metric does not apply to it."""
    if metric.needs == "nothing":
        return ""
    if metric.needs == "pattern":
        return pattern
    if metric.needs == "JSON reference" and (reference is None or _read(reference) is _BROKEN):
        return None
    return reference


_BROKEN: Final = object()


def _refuse(name: str) -> float:
    raise ValueError(name)


def _read(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return _BROKEN


def _equal(one: Any, other: Any) -> bool:
    """Compare without recursion: a model may nest as deep as it likes."""
    pairs = [(one, other)]
    while pairs:
        a, b = pairs.pop()
        if isinstance(a, dict) and isinstance(b, dict):
            if a.keys() != b.keys():
                return False
            pairs += [(a[key], b[key]) for key in a]
        elif isinstance(a, list) and isinstance(b, list):
            if len(a) != len(b):
                return False
            pairs += zip(a, b, strict=True)
        elif not _same_kind(a, b) or a != b:
            return False
    return True


def _same_kind(a: Any, b: Any) -> bool:
    return type(a) is type(b) or {type(a), type(b)} == {int, float}
