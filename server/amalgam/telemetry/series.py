"""The numbers behind the metrics: plain dictionaries, written by the event loop alone, so without a lock.

prometheus_client's own classes take three times as long for an observation and 18 times as long for a page of many
adapters (`loadtests/results/metrics_cost.md`), during which token streams would wait for the interpreter. These also
add a whole stream's gaps in one call, and forget a label value.
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Final, Protocol

from amalgam.telemetry.metric_spec import MetricSpec

_ESCAPES: Final = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})

Labels = tuple[str, ...]


class Frozen(Protocol):
    """A copy of a series that another thread may write out."""

    spec: MetricSpec

    def lines(self) -> Iterator[str]:
        """Its samples in Prometheus' text format."""


class Values:
    """A counter or a gauge: one number per combination of label values."""

    def __init__(self, spec: MetricSpec, values: Mapping[Labels, float] | None = None) -> None:
        self.spec = spec
        self._values: dict[Labels, float] = dict(values or {})

    def add(self, labels: Labels = (), amount: float = 1.0) -> None:
        """Count ``amount`` more."""
        self._values[labels] = self._values.get(labels, 0.0) + amount

    def put(self, value: float, labels: Labels = ()) -> None:
        """Set the number."""
        self._values[labels] = value

    def get(self, labels: Labels = ()) -> float:
        """The number; 0 where it was never set."""
        return self._values.get(labels, 0.0)

    def total(self) -> float:
        """The sum over all combinations."""
        return sum(self._values.values())

    def clear(self) -> None:
        """Forget all; before a gauge is set anew from a snapshot."""
        self._values.clear()

    def drop(self, **labels: str) -> None:
        """Forget every combination with these values; nothing where the family lacks one of the labels."""
        _drop(self._values, self.spec, labels)

    def frozen(self) -> "Values":
        """A copy."""
        return Values(self.spec, self._values)

    def lines(self) -> Iterator[str]:
        """See `Frozen`."""
        for labels, value in self._values.items():
            shown = _labels(self.spec, labels)
            yield f"{self.spec.name}{{{shown}}} {value!r}\n" if shown else f"{self.spec.name} {value!r}\n"


class Distribution:
    """A histogram: counts per bucket and a sum per combination of label values."""

    def __init__(self, spec: MetricSpec, rows: Mapping[Labels, Sequence[float]] | None = None) -> None:
        self.spec = spec
        self._bounds = spec.bounds
        # The counts of each bucket, the last one beyond every bound, and then the sum.
        self._rows: dict[Labels, list[float]] = {labels: list(row) for labels, row in (rows or {}).items()}

    def observe(self, value: float, labels: Labels = ()) -> None:
        """Count one value."""
        row = self._row(labels)
        row[bisect_left(self._bounds, value)] += 1
        row[-1] += value

    def add(self, counts: Sequence[int], total: float, labels: Labels = ()) -> None:
        """Count many values at once.

        Args:
            counts: by bucket, one more than there are bounds.
            total: the sum of the values.
            labels: as in `observe`.
        """
        row = self._row(labels)
        for index, count in enumerate(counts):
            row[index] += count
        row[-1] += total

    def count(self, labels: Labels = ()) -> float:
        """How many values were counted."""
        return sum(self._rows[labels][:-1]) if labels in self._rows else 0.0

    def _row(self, labels: Labels) -> list[float]:
        row = self._rows.get(labels)
        if row is None:
            row = self._rows[labels] = [0.0] * (len(self._bounds) + 2)
        return row

    def drop(self, **labels: str) -> None:
        """Forget every combination with these values; nothing where the family lacks one of the labels."""
        _drop(self._rows, self.spec, labels)

    def frozen(self) -> "Distribution":
        """A copy."""
        return Distribution(self.spec, self._rows)

    def lines(self) -> Iterator[str]:
        """See `Frozen`."""
        name = self.spec.name
        edges = [f'le="{bound!r}"}} ' for bound in self._bounds] + ['le="+Inf"} ']
        for labels, row in self._rows.items():
            shown = _labels(self.spec, labels)
            before, around = (f"{name}_bucket{{{shown},", f"{{{shown}}}") if shown else (f"{name}_bucket{{", "")
            total = 0.0
            for edge, total in zip(edges, accumulate(row[:-1]), strict=True):
                yield f"{before}{edge}{total!r}\n"
            yield f"{name}_sum{around} {row[-1]!r}\n{name}_count{around} {total!r}\n"


def exposition(series: Sequence[Frozen]) -> bytes:
    """A page of ``series`` in Prometheus' text format."""
    parts: list[str] = []
    for one in series:
        parts.append(f"# HELP {one.spec.name} {one.spec.help}\n# TYPE {one.spec.name} {one.spec.kind}\n")
        parts.extend(one.lines())
    return "".join(parts).encode()


def _labels(spec: MetricSpec, values: Labels) -> str:
    return ",".join(f'{name}="{value.translate(_ESCAPES)}"' for name, value in zip(spec.labels, values, strict=True))


def _drop(rows: dict[Labels, float] | dict[Labels, list[float]], spec: MetricSpec, wanted: Mapping[str, str]) -> None:
    if not wanted.keys() <= set(spec.labels):
        return
    places = [(spec.labels.index(label), value) for label, value in wanted.items()]
    for labels in [labels for labels in rows if all(labels[place] == value for place, value in places)]:
        del rows[labels]
