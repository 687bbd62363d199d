"""The line to the merge process: start it, wake it, ask it, hear from it, start it again when it dies.

The worker's standard input carries an empty line per wake-up and a JSON object per question, and its end tells the
worker to stop, so a server that is killed leaves no worker behind. Its standard output carries one JSON object a line:

    {"worker": name}                                                        who it is, as jobs name it
    {"job": id, "kind": kind, "state": state, "timings": {step: seconds}}   a job's row changed
    {"job": id, "progress": [attempt, done, total]}                         a job is so far, in modules
    {"ask": id, "answer": …} | {"ask": id, "error": {"code", "status", "message"}}

The registry is the truth about jobs; what is said of them here only saves both sides from polling.
"""

import asyncio
import itertools
import json
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

from amalgam.domain.job import JobNews, JobProgress
from amalgam.errors.jobs import WorkerRefused, WorkerUnavailable
from amalgam.services.child_process import ChildProcess

logger = logging.getLogger(__name__)

_RESTART_PAUSE_S = 1.0
_STOP_S = 5.0
_MAX_LINE_BYTES: Final = 32 << 20
"""The diagnostics of the largest recipes take some of them."""


def _ignore(*_: object) -> None:
    """For what a caller does not want to hear."""


class WorkerLink:
    """One merge process, kept alive.

    Args:
        command: program and arguments.
        environment: of the process, complete.
        on_event: told of every change of a job; must not block, as the others.
        on_progress: told how far a job is.
        on_end: told the name of a worker that ended, whatever the reason.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        on_event: Callable[[JobNews], None],
        *,
        on_progress: Callable[[str, JobProgress], None] = _ignore,
        on_end: Callable[[str], None] = _ignore,
    ) -> None:
        self._child = ChildProcess(
            "merge worker",
            command,
            environment,
            self._hear,
            self._ended,
            restart_pause_s=_RESTART_PAUSE_S,
            stop_s=_STOP_S,
            max_line_bytes=_MAX_LINE_BYTES,
        )
        self._on_event = on_event
        self._on_progress = on_progress
        self._on_end = on_end
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._numbers = itertools.count(1)
        self.name: str | None = None

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

    async def start(self, after: Awaitable[object] | None = None) -> None:
        """Begin to keep a worker alive, when ``after`` has ended or when it is first asked or woken."""
        await self._child.start(after)

    def _ended(self) -> None:
        for asked in self._asked.values():
            if not asked.done():
                asked.set_exception(WorkerUnavailable())
        name, self.name = self.name, None
        if name is not None:
            self._on_end(name)

    def _hear(self, line: bytes) -> None:
        try:
            said = json.loads(line)
            if "ask" in said:
                self._take_answer(said)
            elif "worker" in said:
                self.name = str(said["worker"])
            elif "progress" in said:
                self._on_progress(str(said["job"]), JobProgress(*(int(count) for count in said["progress"])))
            else:
                timings = {str(step): float(seconds) for step, seconds in dict(said.get("timings", {})).items()}
                self._on_event(JobNews(str(said["job"]), str(said["kind"]), str(said["state"]), timings))
        except (ValueError, KeyError, TypeError):
            logger.warning("the merge worker said something unexpected: %r", line[:200])

    def _take_answer(self, said: Mapping[str, Any]) -> None:
        asked = self._asked.get(said["ask"])
        if asked is None or asked.done():
            return
        if "answer" in said:
            asked.set_result(said["answer"])
        elif "error" in said:
            error = said["error"]
            asked.set_exception(
                WorkerRefused(str(error["message"]), code=str(error["code"]), status=int(error["status"]))
            )
        else:
            asked.set_exception(WorkerUnavailable())

    def wake(self) -> None:
        """A job is queued. Lost while the worker starts, which looks at the queue by itself then."""
        self._child.want()
        self._child.send(b"")

    async def ask(self, question: Mapping[str, Any], timeout_s: float) -> Any:
        """The worker's answer to ``question``, beside the job that it may be building.

        Raises:
            WorkerUnavailable: it does not run, ends meanwhile, or says nothing for ``timeout_s`` seconds.
            WorkerRefused: it answered with an error.
        """
        await self._child.wanted()
        if not self.alive:
            raise WorkerUnavailable
        number = next(self._numbers)
        asked = self._asked[number] = asyncio.get_running_loop().create_future()
        try:
            self._child.send(json.dumps({"ask": number, **question}).encode())
            return await asyncio.wait_for(asked, timeout_s)
        except TimeoutError:
            raise WorkerUnavailable from None
        finally:
            del self._asked[number]

    def kill(self) -> None:
        """End a worker that hangs; another is started in its place."""
        self._child.kill()

    async def stop(self) -> None:
        """Let the worker end by itself, or end it."""
        await self._child.stop()
