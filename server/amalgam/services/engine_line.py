"""The line in front of the engine: its bounds, from the settings, the engine's batch, and how many keys there are."""

import asyncio
import math
from typing import Final

from amalgam.domain.tenant import BUILT_IN_TENANT
from amalgam.engine.protocol import Engine
from amalgam.services.admission import Admission, RequestBounds
from amalgam.services.fair_queue import FairQueue, Places
from amalgam.services.key_directory import KeyDirectory
from amalgam.settings import Settings
from amalgam.telemetry.metrics import Metrics

LOOK_S: Final = 0.5
"""It lies between two looks at how many engines there are."""


class EngineLine:
    """Whose turn it is, and how many may be in progress.

    Args:
        settings: of this process.
        batch: sequences in a full batch, as far as it is known.
        slots: different adapters in a batch.
        keys: those of the registry; what one key or tenant may have depends on whether there are others.
        metrics: told of waits and refusals.
    """

    def __init__(self, settings: Settings, batch: int, slots: int, keys: KeyDirectory, metrics: Metrics) -> None:
        self._settings = settings
        self._keys = keys
        self._batch = batch
        bounds, places = self._bounds()
        # An adapter's turn may begin as many requests as are its slot's share of a full batch.
        # No slots are an argument that vLLM refuses, with a sentence of its own.
        quantum = -(-batch // max(slots, 1))
        self._slots = slots if settings.queue.fair_queue else math.inf
        self.queue = FairQueue(self._slots, quantum, settings.queue.fair_queue_wait_s, metrics=metrics, places=places)
        self.admission = Admission(bounds, metrics=metrics)
        keys.on_change(self._fit)

    async def fit_to_engine(self, engine: Engine, timeout_s: float) -> None:
        """Fit the line to the size of the batch once the engine is there, which may have chosen it by itself.

        Of several engines all places count, and are counted again whenever one comes or goes.
        """
        await engine.wait_ready(timeout_s)
        info = engine.info()
        is_single, fitted = info.replicas == 0, (-1, -1)
        while True:
            if (info.sequences, info.slots) != fitted:
                fitted = info.sequences, info.slots
                self._batch = info.sequences or self._batch
                if not is_single and self._settings.queue.fair_queue:
                    self._slots = info.slots or self._slots
                self._fit()
            if is_single:
                return
            await asyncio.sleep(LOOK_S)
            info = engine.info()

    def _fit(self) -> None:
        bounds, places = self._bounds()
        self.admission.resize(bounds)
        self.queue.resize(places, self._slots)

    def _bounds(self) -> tuple[RequestBounds, Places]:
        access, given, asking = self._settings.access, self._settings.queue, self._keys.asking()
        of_environment = len(access.api_keys) + (access.admin_key is not None)
        keys = of_environment + len(asking)
        tenants = {tenant for tenant, _ in asking} | ({BUILT_IN_TENANT} if of_environment else set())
        shares = (given.max_requests, given.max_requests_per_key, given.max_requests_per_tenant)
        bounds = RequestBounds.of(self._batch, *shares, keys=keys, tenants=len(tenants))
        waiting = given.max_waiting_per_adapter or max(1, bounds.total // 2)
        return bounds, Places.of(self._batch, keys=keys, waiting_per_adapter=waiting)
