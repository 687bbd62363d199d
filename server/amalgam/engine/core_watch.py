"""What happens to the core while it is in use: how its end is noticed, and what waits for its answers does then."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, Literal

from amalgam.errors.engine import EngineNotReady

HEALTH_PERIOD_S = 0.2
"""The core's process is looked at so often."""
PING_PERIOD_S = 1.0
"""The core is asked something so often, one question at a time."""


async def watch_core(client: Any, hang_limit_s: float, is_over: Callable[[], bool]) -> Literal["dead", "hung"]:
    """Return when the core is dead, or of no use any more, or silent for longer than the limit.

    A ping is a question that the core's own loop answers between two steps, so a core that hangs does not.

    Args:
        client: an AsyncLLM.
        hang_limit_s: see `VllmEngine`.
        is_over: whether the core is of no use any more for another reason.
    """
    ping: asyncio.Task[Any] | None = None
    asked_at = time.monotonic()
    try:
        while not (client.errored or is_over()):
            now = time.monotonic()
            if ping is None or (ping.done() and now - asked_at >= PING_PERIOD_S):
                ping, asked_at = asyncio.create_task(client.list_loras()), now
                ping.add_done_callback(_observe)
            elif not ping.done() and now - asked_at > hang_limit_s:
                return "hung"
            await asyncio.sleep(HEALTH_PERIOD_S)
        return "dead"
    finally:
        if ping is not None:
            ping.cancel()


async def answer_unless_lost(question: Coroutine[Any, Any, Any], lost: asyncio.Event) -> Any:
    """The core's answer; vLLM leaves a question that a lost core did not answer open for ever.

    Args:
        question: to the core.
        lost: set when the core is.

    Raises:
        EngineNotReady: the core was lost first.
    """
    answer, loss = asyncio.ensure_future(question), asyncio.ensure_future(lost.wait())
    try:
        await asyncio.wait((answer, loss), return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise EngineNotReady("restarting")
        return answer.result()
    finally:
        answer.cancel()
        loss.cancel()


def _observe(task: asyncio.Task[Any]) -> None:
    """Read a ping's outcome: a core that dies under it is seen by other means, and asyncio need not report it too."""
    if not task.cancelled():
        task.exception()
