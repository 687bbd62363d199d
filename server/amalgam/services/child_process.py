"""A process that the server keeps alive and talks to by lines: starts it, hears it, starts it again when it dies.

The end of its standard input tells it to stop, so a server that is killed leaves no process behind.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence

from amalgam.services.background_loops import BackgroundLoops, end

logger = logging.getLogger(__name__)


class ChildProcess:
    """One process, kept alive.

    Args:
        name: for the log, such as "merge worker".
        command: program and arguments.
        environment: of the process, complete.
        on_line: told of every line; must not block.
        on_end: told when the process has ended, before it is started again; must not block.
        restart_pause_s: between an end and the next start, seconds.
        stop_s: longest wait for an end by itself at `stop`, seconds.
        max_line_bytes: what is longer is not heard.
        loops: what keeps the process alive runs in this group.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        on_line: Callable[[bytes], None],
        on_end: Callable[[], None] = lambda: None,
        *,
        restart_pause_s: float = 1.0,
        stop_s: float = 5.0,
        max_line_bytes: int = 1 << 16,
        loops: BackgroundLoops,
    ) -> None:
        self._label = name.replace(" ", "_")
        self._command = tuple(command)
        self._environment = dict(environment)
        self._on_line = on_line
        self._on_end = on_end
        self._restart_pause_s = restart_pause_s
        self._stop_s = stop_s
        self._max_line_bytes = max_line_bytes
        self._loops = loops
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._wanted = asyncio.Event()
        self._tried = asyncio.Event()
        self._is_at_work = False
        self.restarts = 0

    @property
    def alive(self) -> bool:
        """Whether the process runs right now."""
        return self._process is not None and self._process.returncode is None

    @property
    def pid(self) -> int | None:
        """Its process id, while it runs."""
        return self._process.pid if self._process is not None and self.alive else None

    async def start(self, after: Awaitable[object] | None = None) -> None:
        """Begin to keep a process alive, at once or when ``after`` has ended, but as soon as somebody wants it."""
        waits = [] if after is None else [asyncio.ensure_future(after), asyncio.ensure_future(self._wanted.wait())]
        self._keeper = self._loops.start(self._label, lambda: self._keep(waits))
        # Also where the keeper is cancelled before its first step: nobody is to wait for a start that will not be.
        self._keeper.add_done_callback(lambda _: self._tried.set())
        self._keeper.add_done_callback(lambda _: _let_go(waits))

    def want(self) -> None:
        """Do not wait any longer with the first start."""
        self._wanted.set()

    async def wanted(self) -> None:
        """The same, and return when the process was started or could not be; at once where nobody keeps one."""
        self.want()
        if self._keeper is not None:
            await self._tried.wait()

    async def _keep(self, waits: Sequence[asyncio.Future[object]]) -> None:
        if waits:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        # A start before this one may have failed over a process that runs still.
        await self._end_process()
        while True:
            self._is_at_work = False
            try:
                self._process = await asyncio.create_subprocess_exec(
                    *self._command,
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    env=self._environment,
                    limit=self._max_line_bytes,
                )
            except OSError as error:
                self._tried.set()
                logger.error("child_start_failed process=%s reason=%s", self._label, error.strerror)
            else:
                self._tried.set()
                assert self._process.stdout is not None
                await self.listen(self._process.stdout)
                # What closed its output and goes on cannot be heard any more.
                code = await self._end_process()
                logger.error("child_ended process=%s exit_code=%s", self._label, code)
            self.restarts += 1
            self._on_end()
            await asyncio.sleep(self._restart_pause_s)

    async def listen(self, lines: asyncio.StreamReader) -> None:
        """Hear every line until the process's end; no line ends the listening."""
        while True:
            try:
                line = await lines.readline()
            except ValueError:
                logger.warning("child_line_too_long process=%s", self._label)
                continue
            if not line:
                return
            self._is_at_work = True
            try:
                self._on_line(line)
            except Exception:
                logger.exception("child_line_failed process=%s", self._label)

    def send(self, line: bytes) -> bool:
        """Write one line to the process; False where there is none to hear it."""
        if self._process is None or not self.alive or self._process.stdin is None:
            return False
        self._is_at_work = True
        self._process.stdin.write(line + b"\n")
        return True

    def kill(self) -> None:
        """End a process that hangs; it is started again."""
        if self._process is not None and self.alive:
            self._process.kill()

    async def stop(self) -> None:
        """Let the process end by itself, or end it."""
        if self._keeper is not None:
            await end(self._keeper)
        await self._end_process()

    async def _end_process(self) -> int | None:
        """Let it end by itself, or end it; its exit code, None where there is none."""
        if self._process is None or self._process.returncode is not None:
            return None if self._process is None else self._process.returncode
        if self._process.stdin is not None:
            self._process.stdin.close()
        if not self._is_at_work:
            # It has said nothing and was told nothing: there is nothing to finish, and while it loads it hears nobody.
            self._process.kill()
        try:
            await asyncio.wait_for(self._process.wait(), self._stop_s)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        return self._process.returncode


def _let_go(waits: Sequence[asyncio.Future[object]]) -> None:
    """End them; one that failed has said so to those who asked for it, and came to its end for us all the same."""
    for wait in waits:
        if not wait.cancel() and not wait.cancelled():
            wait.exception()
