"""The line to the merge process: start it, wake it, hear from it, start it again when it dies.

The worker's standard input carries one byte per wake-up and its end tells the worker to stop, so a server that is
killed leaves no worker behind. Its standard output carries one JSON object a line: ``{"job", "state"}``. The registry
is the truth; these lines only save both sides from polling.
"""

import asyncio
import json
import logging
from collections.abc import Callable, Mapping, Sequence

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
        self._command = tuple(command)
        self._environment = dict(environment)
        self._on_event = on_event
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self.restarts = 0

    @property
    def alive(self) -> bool:
        """Whether the process runs right now."""
        return self._process is not None and self._process.returncode is None

    @property
    def pid(self) -> int | None:
        """Its process id, while it runs."""
        return self._process.pid if self._process is not None and self.alive else None

    async def start(self) -> None:
        """Begin to keep a worker alive."""
        self._keeper = asyncio.create_task(self._keep(), name="merge worker")

    async def _keep(self) -> None:
        while True:
            try:
                self._process = await asyncio.create_subprocess_exec(
                    *self._command,
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    env=self._environment,
                )
            except OSError as error:
                logger.error("the merge worker cannot be started (%s); trying again", error.strerror)
            else:
                assert self._process.stdout is not None
                await self._listen(self._process.stdout)
                code = await self._process.wait()
                logger.error("the merge worker ended with code %s; starting it again", code)
            self.restarts += 1
            await asyncio.sleep(_RESTART_PAUSE_S)

    async def _listen(self, lines: asyncio.StreamReader) -> None:
        """Hear every line until the worker's end; no line ends the listening."""
        while True:
            try:
                line = await lines.readline()
            except ValueError:
                logger.warning("the merge worker said something without end")
                continue
            if not line:
                return
            try:
                self._hear(line)
            except Exception:
                logger.exception("a word of the merge worker was lost")

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
        if self._process is not None and self.alive and self._process.stdin is not None:
            self._process.stdin.write(b"\n")

    async def stop(self) -> None:
        """Let the worker end by itself, or end it."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        if self._process is None or self._process.returncode is not None:
            return
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), _STOP_S)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
