"""Messages to and from a child process: questions with their answers, news, and what is neither."""

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from amalgam.domain.messages import MAX_LINE_BYTES, Answer, Line, Message, News, Question, written
from amalgam.errors.internal import MessageUnreadable
from amalgam.services.background_loops import BackgroundLoops
from amalgam.services.child_process import ChildProcess
from amalgam.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """Which process, and how it is kept alive."""

    name: str
    """Log and metrics have it, as "merge worker"."""
    command: Sequence[str]
    """It is program and arguments."""
    environment: Mapping[str, str]
    """It is complete."""
    says: Line
    """It tells what the child may say."""
    restart_pause_s: float
    """It lies between an end and the next start."""
    stop_s: float = 5.0
    """An end by itself is waited for at most so long when it is stopped."""


class ChildLink:
    """One process, kept alive, that is spoken to by messages.

    Args:
        spec: which.
        loops: what keeps the process alive runs in this group.
        metrics: told of messages that nobody understands.
        on_news: told of every message that answers nothing; must not block.
        on_end: told when the process has ended, before it is started again; must not block.
    """

    def __init__(
        self,
        spec: ChildSpec,
        loops: BackgroundLoops,
        metrics: Metrics,
        on_news: Callable[[News], None] = lambda news: None,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        self._spec = spec
        self._metrics = metrics
        self._on_news = on_news
        self._on_end = on_end
        self._asked: dict[int, asyncio.Future[Answer | None]] = {}
        self._numbers = itertools.count(1)
        self._process = ChildProcess(
            spec.name,
            spec.command,
            spec.environment,
            self._hear,
            self._ended,
            restart_pause_s=spec.restart_pause_s,
            stop_s=spec.stop_s,
            max_line_bytes=MAX_LINE_BYTES,
            loops=loops,
        )
        metrics.child_is_kept(self._label)

    @property
    def alive(self) -> bool:
        """Whether the process runs right now."""
        return self._process.alive

    @property
    def pid(self) -> int | None:
        """Its process id, while it runs."""
        return self._process.pid

    @property
    def restarts(self) -> int:
        """How often it ended and was started again."""
        return self._process.restarts

    @property
    def _label(self) -> str:
        return self._spec.name.replace(" ", "_")

    async def start(self, after: Awaitable[object] | None = None) -> None:
        """Begin to keep the process alive, when ``after`` has ended or as soon as somebody wants it."""
        await self._process.start(after)

    async def stop(self) -> None:
        """Let the process end by itself, or end it."""
        await self._process.stop()
        self._answer_all()

    def kill(self) -> None:
        """End a process that hangs; it is started again."""
        self._process.kill()

    def want(self) -> None:
        """Do not wait any longer with the first start."""
        self._process.want()

    def tell(self, message: Message) -> bool:
        """Say ``message``; False where there is no process to hear it."""
        return self._process.send(written(message))

    def number(self) -> int:
        """An id for the next question."""
        return next(self._numbers)

    @property
    def unanswered(self) -> int:
        """How many questions wait for their answer."""
        return len(self._asked)

    async def ask(self, question: Question, timeout_s: float) -> Answer | None:
        """The answer to ``question``; None where no process runs, or ends before it has answered.

        Raises:
            TimeoutError: it says nothing for ``timeout_s`` seconds.
        """
        await self._process.wanted()
        answer: asyncio.Future[Answer | None] = asyncio.get_running_loop().create_future()
        self._asked[question.id] = answer
        try:
            if not self.tell(question):
                return None
            return await asyncio.wait_for(answer, timeout_s)
        finally:
            del self._asked[question.id]

    def _hear(self, line: bytes) -> None:
        try:
            message = self._spec.says.read(line)
        except MessageUnreadable as error:
            self._metrics.child_not_understood(self._label)
            logger.warning("message_unknown process=%s bytes=%d reason=%s", self._label, len(line), error)
            return
        if not isinstance(message, _ANSWERS):
            self._on_news(message)
            return
        asked = self._asked.get(message.id)
        # Whoever asked may have given up meanwhile.
        if asked is not None and not asked.done():
            asked.set_result(message)

    def _ended(self) -> None:
        self._answer_all()
        self._on_end()

    def _answer_all(self) -> None:
        for asked in self._asked.values():
            if not asked.done():
                asked.set_result(None)


_ANSWERS = get_args(Answer)
