"""One page of metrics, as it was at a moment."""

from collections.abc import Sequence

from prometheus_client import REGISTRY, CollectorRegistry, generate_latest

from amalgam.telemetry.series import Frozen, exposition


class Scrape:
    """One page, not yet written."""

    def __init__(self, series: Sequence[Frozen]) -> None:
        self._series = series

    def text(self, others: CollectorRegistry = REGISTRY) -> bytes:
        """Prometheus' text format: ours, then the process's default registry, where vLLM's are."""
        return exposition(self._series) + generate_latest(others)
