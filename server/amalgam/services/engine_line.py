"""The line in front of the engine: its bounds, from the settings and from how large the engine's batch is."""

import math

from amalgam.engine.protocol import Engine
from amalgam.services.admission import Admission, RequestBounds
from amalgam.services.fair_queue import FairQueue, Places
from amalgam.settings import Settings
from amalgam.telemetry.metrics import Metrics


def open_line(settings: Settings, batch: int, slots: int, metrics: Metrics) -> tuple[FairQueue, Admission]:
    """Whose turn it is, and how many may be in progress.

    Args:
        settings: of this process.
        batch: sequences in a full batch, as far as it is known.
        slots: different adapters in a batch.
        metrics: told of waits and refusals.
    """
    bounds, places = _bounds(settings, batch)
    # An adapter's turn may begin as many requests as are its slot's share of a full batch.
    quantum = -(-batch // slots)
    taken = slots if settings.queue.fair_queue else math.inf
    queue = FairQueue(taken, quantum, settings.queue.fair_queue_wait_s, metrics=metrics, places=places)
    return queue, Admission(bounds, metrics=metrics)


async def fit_to_engine(
    engine: Engine, settings: Settings, queue: FairQueue, admission: Admission, timeout_s: float
) -> None:
    """Where the engine chose the size of its batch by itself, it is known once the engine is there."""
    await engine.wait_ready(timeout_s)
    batch = engine.info().sequences
    if batch:
        bounds, places = _bounds(settings, batch)
        admission.resize(bounds)
        queue.resize(places)


def _bounds(settings: Settings, batch: int) -> tuple[RequestBounds, Places]:
    keys = len(settings.access.api_keys) + (settings.access.admin_key is not None)
    bounds = RequestBounds.of(batch, settings.queue.max_requests, settings.queue.max_requests_per_key, keys=keys)
    return bounds, Places.of(batch, keys=keys)
