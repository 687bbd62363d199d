"""Waiting for a registry that is away, for as long as what is to be told to it is worth anything."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from amalgam.errors.registry import RegistryUnavailable

logger = logging.getLogger(__name__)

PAUSE_S: Final = 0.5
"""It lies between two calls."""

T = TypeVar("T")


async def patiently(
    call: Callable[[], Awaitable[T]],
    ends_at: Callable[[], float],
    *,
    clock: Callable[[], float] = time.monotonic,
    pause_s: float = PAUSE_S,
) -> T:
    """What ``call`` gives, which is made again while the registry is away.

    Args:
        call: one transaction. It may have happened although its answer was lost: repeating it must be harmless.
        ends_at: by ``clock``, when there is no use any more; asked after every failure, because a lease may be renewed
            meanwhile.
        clock: monotonic seconds.
        pause_s: between two calls, seconds.

    Raises:
        RegistryUnavailable: it was away until the end.
    """
    is_told = False
    while True:
        try:
            return await call()
        except RegistryUnavailable as error:
            if clock() >= ends_at():
                raise
            if not is_told:
                logger.warning("registry_away reason=%s", error.message)
                is_told = True
        await asyncio.sleep(pause_s)
