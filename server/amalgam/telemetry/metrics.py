"""Every metric of ours: name, label and unit. vLLM's own stand beside them on the same page.

Label values that come from users are capped: after `MAX_ADAPTER_LABELS` names, further ones count as ``other``.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

MAX_ADAPTER_LABELS: Final = 512
_LATENCY_BUCKETS_S: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


@dataclass(slots=True)
class Observed:
    """What a request says of itself when it ends."""

    status: int = 500


class Metrics:
    """All metrics of one server, in a registry of their own."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._registry = CollectorRegistry()
        self._labels: set[str] = set()
        self.requests = Counter(
            "amalgam_requests_total",
            "Requests answered, by endpoint, adapter version and HTTP status",
            ("endpoint", "adapter", "code"),
            registry=self._registry,
        )
        self.request_seconds = Histogram(
            "amalgam_request_duration_seconds",
            "Seconds from admission to the last byte",
            ("endpoint", "adapter"),
            buckets=_LATENCY_BUCKETS_S,
            registry=self._registry,
        )
        self.running = Gauge(
            "amalgam_requests_running", "Requests being answered", ("endpoint",), registry=self._registry
        )
        self.resident = Gauge(
            "amalgam_adapters_resident", "Adapter versions in the engine's memory", registry=self._registry
        )
        self.registered = Gauge(
            "amalgam_adapter_versions_registered", "Adapter versions that can be served", registry=self._registry
        )
        self.revision = Gauge(
            "amalgam_registry_revision", "Revision of the registry that requests are resolved against",
            registry=self._registry,
        )  # fmt: skip
        self.engine_ready = Gauge("amalgam_engine_ready", "1 while the engine answers", registry=self._registry)
        self.engine_restarts = Gauge(
            "amalgam_engine_restarts", "Times the engine was restarted after its core died", registry=self._registry
        )
        self.jobs = Counter("amalgam_jobs_total", "Merge jobs by final state", ("state",), registry=self._registry)

    def adapter_label(self, name: str) -> str:
        """``name``, or ``other`` once the cap is reached."""
        if name in self._labels:
            return name
        if len(self._labels) >= MAX_ADAPTER_LABELS:
            return "other"
        self._labels.add(name)
        return name

    @contextmanager
    def observe(self, endpoint: str, adapter: str) -> Iterator[Observed]:
        """Count and time one request; an exception's ``status`` attribute is its code."""
        began = self._clock()
        observed = Observed()
        label = self.adapter_label(adapter)
        self.running.labels(endpoint).inc()
        try:
            yield observed
        except BaseException as error:
            observed.status = getattr(error, "status", 500)
            raise
        finally:
            self.running.labels(endpoint).dec()
            self.requests.labels(endpoint, label, str(observed.status)).inc()
            self.request_seconds.labels(endpoint, label).observe(self._clock() - began)

    def page(self) -> bytes:
        """The text exposition of ours and of everything in the process's default registry, where vLLM's are."""
        return generate_latest(self._registry) + generate_latest(REGISTRY)
