"""A request that is sent twice under one key happens once and is answered twice.

The key is held under a lease while its request is carried out, and keeps the answer afterwards. Where the server dies
in between, the next request of that key carries on: what was made is known by the key from the very transaction.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from amalgam.domain.idempotency import KeptAnswer, KeyStanding
from amalgam.errors import AmalgamError
from amalgam.registry.idempotency import IdempotencyRegistry

logger = logging.getLogger(__name__)

LEASE_S: Final = 10.0
"""A request that is silent for so long holds its key no more."""
WAIT_S: Final = 10.0
"""A request with the key of one that runs waits so long for its answer."""
_LOOK_S: Final = 0.05
_MAX_LOOK_S: Final = 0.5


class HeldKey:
    """A key that is held for one request."""

    def __init__(self, registry: IdempotencyRegistry, key: str, holder: str) -> None:
        self._registry = registry
        self._holder = holder
        self.key = key
        self._is_over = False

    async def finish(self, answer: KeptAnswer) -> None:
        """Keep the answer for the next request of this key."""
        await self._registry.finish(self.key, self._holder, answer)
        self._is_over = True

    async def keep(self) -> None:
        """Renew the lease until it is cancelled."""
        while True:
            await asyncio.sleep(LEASE_S / 3)
            try:
                await self._registry.renew(self.key, self._holder, lease_s=LEASE_S)
            except AmalgamError as error:
                logger.warning("idempotency_renewal_failed reason=%s", error)
            except Exception:
                # Tried again in time: the lease is three renewals long.
                logger.exception("idempotency_renewal_failed")

    async def release(self) -> None:
        """Let the key go, unless it was answered."""
        if self._is_over:
            return
        try:
            await self._registry.release(self.key, self._holder)
        except AmalgamError as error:
            logger.warning("idempotency_release_failed reason=%s", error)


class Idempotency:
    """Holds keys, and forgets them after ``keep_s`` seconds."""

    def __init__(
        self,
        registry: IdempotencyRegistry,
        keep_s: float,
        new_holder: Callable[[], str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry
        self._keep_s = keep_s
        self._new_holder = new_holder
        self._clock = clock

    @asynccontextmanager
    async def hold(self, key: str) -> AsyncIterator[HeldKey | KeyStanding]:
        """The key, held until the end of the block; or how it stands where another request has it or had it."""
        holder = self._new_holder()
        standing = await self._registry.begin(key, holder, lease_s=LEASE_S, keep_s=self._keep_s)
        if not standing.is_ours:
            yield standing
            return
        held = HeldKey(self._registry, key, holder)
        keeper = asyncio.create_task(held.keep())
        try:
            yield held
        finally:
            keeper.cancel()
            await asyncio.shield(held.release())

    async def answer(self, key: str) -> KeptAnswer | None:
        """The answer of the request that holds the key; None where it has none after some seconds, or ended without."""
        deadline, pause_s = self._clock() + WAIT_S, _LOOK_S
        while self._clock() < deadline:
            standing = await self._registry.look(key)
            if not standing.is_running:
                return standing.answer
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _MAX_LOOK_S)
        return None

    async def sweep_loop(self, period_s: float = 3600.0) -> None:
        """Forget what is old, now and every ``period_s`` seconds; runs until it is cancelled."""
        while True:
            try:
                await self._registry.remove_older(self._keep_s)
            except AmalgamError as error:
                logger.warning("idempotency_sweep_failed reason=%s", error)
            await asyncio.sleep(period_s)
