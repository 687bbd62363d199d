"""Evaluations run next to requests of clients: a call starts only while clients leave capacity."""

import asyncio
import time
from collections.abc import Callable
from typing import Final

_LOOK_PERIOD_S: Final = 0.05


class SpareCapacity:
    """When one more call may begin.

    Args:
        running: how many requests of clients are being answered.
        allowed: so many may be, and a call still begins.
        patience_s: after so long a call begins all the same, so that a server that is never idle comes to an end too.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        running: Callable[[], float],
        allowed: int,
        patience_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._running = running
        self._allowed = allowed
        self._patience_s = patience_s
        self._clock = clock

    async def wait(self) -> None:
        """Return when one more call may begin."""
        deadline = self._clock() + self._patience_s
        # Polled: requests of clients, which come and go by the hundred, must not pay for it.
        while self._running() > self._allowed and self._clock() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_PERIOD_S)
