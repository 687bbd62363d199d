"""Metrics for parts that are used without a page of metrics: every number is taken, and none is kept."""

from collections.abc import Sequence
from typing import Final

from amalgam.telemetry.metrics import Metrics
from amalgam.telemetry.series import Distribution, Labels, Values


class _Unkept(Values):
    def add(self, labels: Labels = (), amount: float = 1.0) -> None:
        """See `Values`."""

    def put(self, value: float, labels: Labels = ()) -> None:
        """See `Values`."""


class _UnkeptDistribution(Distribution):
    def observe(self, value: float, labels: Labels = ()) -> None:
        """See `Distribution`."""

    def add(self, counts: Sequence[int], total: float, labels: Labels = ()) -> None:
        """See `Distribution`."""


class NoMetrics(Metrics):
    """Keeps nothing, so that one may be shared by all."""

    def __init__(self) -> None:
        super().__init__()
        self._values = {spec: _Unkept(spec) for spec in self._values}
        self._distributions = {spec: _UnkeptDistribution(spec) for spec in self._distributions}

    def adapter_label(self, engine_name: str | None) -> str:
        """See `Metrics`; no name is remembered."""
        return engine_name or ""

    def _alias_pair(self, alias: str, adapter: str) -> tuple[str, str]:
        return alias, adapter


NO_METRICS: Final = NoMetrics()
