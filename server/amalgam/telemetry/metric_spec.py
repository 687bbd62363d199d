"""What is declared of a metric, and the three kinds that there are."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """One metric family.

    Attributes:
        name: as it is scraped; counters end in ``_total``.
        kind: Prometheus' type.
        help: one sentence, with the unit.
        labels: names of the labels, in the order their values are given.
        bounds: upper bounds of a histogram's buckets, ascending, without infinity.
    """

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()


def counter(name: str, text: str, *labels: str) -> MetricSpec:
    """A count that only grows; its name ends in ``_total``."""
    return MetricSpec(name, "counter", text, labels)


def gauge(name: str, text: str, *labels: str) -> MetricSpec:
    """A value as it is now."""
    return MetricSpec(name, "gauge", text, labels)


def histogram(name: str, text: str, bounds: tuple[float, ...], *labels: str) -> MetricSpec:
    """Counts of values up to each of ``bounds``, and their sum."""
    return MetricSpec(name, "histogram", text, labels, bounds)
