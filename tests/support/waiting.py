"""Waiting for what has to come, in place of a time that is hoped to be long enough."""

import asyncio
from collections.abc import Callable


async def until(holds: Callable[[], object], limit_s: float = 10.0) -> None:
    """Return when ``holds`` says so; fails after ``limit_s`` seconds."""
    async with asyncio.timeout(limit_s):
        while not holds():
            await asyncio.sleep(0.001)
