"""The line to the merge process: start it, wake it, hear from it, start it again when it dies.

The worker's standard input carries one byte per wake-up and its end tells the worker to stop, so a server that is
killed leaves no worker behind. Its standard output carries one JSON object a line: ``{"job", "state"}``. The registry
is the truth; these lines only save both sides from polling.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence

from amalgam.services.child_process import ChildProcess

logger = logging.getLogger(__name__)

_RESTART_PAUSE_S = 1.0
_STOP_S = 5.0


class WorkerLink:
    """One merge process, kept alive.

    Args:
        command: program and arguments.
        environment: of the process, complete.
        on_event: told of every line; must not block.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], on_event: Callable[[str, str], None]
    ) -> None:
        self._on_event = on_event
        self._child = ChildProcess(
            "merge worker", command, environment, self._hear, restart_pause_s=_RESTART_PAUSE_S, stop_s=_STOP_S
        )

    @property
    def alive(self) -> bool:
        """Whether the process runs right now."""
        return self._child.alive

    @property
    def pid(self) -> int | None:
        """Its process id, while it runs."""
        return self._child.pid

    @property
    def restarts(self) -> int:
        """How often it ended and was started again."""
        return self._child.restarts

    async def start(self) -> None:
        """Begin to keep a worker alive."""
        await self._child.start()

    def _hear(self, line: bytes) -> None:
        try:
            event = json.loads(line)
            job, state = str(event["job"]), str(event["state"])
        except (ValueError, KeyError, TypeError):
            logger.warning("the merge worker said something unexpected: %r", line[:200])
            return
        self._on_event(job, state)

    def wake(self) -> None:
        """A job is queued. Lost while the worker restarts, which looks at the queue by itself then."""
        self._child.send(b"")

    async def stop(self) -> None:
        """Let the worker end by itself, or end it."""
        await self._child.stop()
