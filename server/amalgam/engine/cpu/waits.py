"""vLLM plugin: on CPU the engine's core and its worker sleep while they wait for each other.

They pass messages through shared memory, and look for the next one without a pause, for a second after the last: the
core all through each step of the worker. That takes most of a core, which vLLM keeps back for it; here the worker's
threads have every core, and would share one of them with a process that waits.
"""

import functools
import time
from typing import Any, Final

from amalgam.engine.cpu import patches
from amalgam.engine.cpu.plugin import is_tested
from amalgam.settings import Settings

PAUSE_S: Final = 1e-4
LONGEST_PAUSE_S: Final = 1e-3
PAUSE_SHARE: Final = 0.01
"""A pause between two looks is this part of the wait so far, within these bounds: in a long step looks cost a third of
what they would with the shortest pauses alone, and a message is found late by half a hundredth of its wait."""


def install() -> None:
    """Replace vLLM's way of waiting, on CPU and in a tested version; does nothing with ``AMALGAM_ENGINE_WAITS=awake``.

    vLLM calls it in each of its processes. Calling it again changes nothing.
    """
    import vllm
    from vllm.platforms import current_platform

    if not current_platform.is_cpu() or Settings().engine.engine_waits == "awake" or not is_tested(vllm.__version__):
        return
    patches.apply("waits")


def asleep(original: Any) -> Any:
    """Stands in for `SpinCondition.wait`; a reader that hears nothing for long waits at vLLM's socket, as ever.

    At once it cannot: the socket's notices may be lost, and are looked after every five seconds.
    """

    @functools.wraps(original)
    def wait(condition: Any, timeout_ms: int | None = None) -> None:
        waited = time.monotonic() - condition.last_read
        if waited <= condition.busy_loop_s:
            time.sleep(min(max(PAUSE_S, waited * PAUSE_SHARE), LONGEST_PAUSE_S))
        else:
            original(condition, timeout_ms)

    return wait
