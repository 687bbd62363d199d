"""The line to the template process: one order at a time, keys in turn, each with a limit; every way to fail has a code.

The process is started with the first template. One that is silent for too long is ended and started again: a template
that loops, or raises a number to a power without end, costs its own request and no other's.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from amalgam.domain.messages import FROM_TEMPLATES, News
from amalgam.domain.template_messages import (
    ContentFormat,
    TemplateAnswer,
    TemplateCheck,
    TemplateFault,
    TemplateFormat,
    TemplateOrder,
    TemplateReady,
    TemplateRender,
    TemplateText,
    packed,
)
from amalgam.errors.internal import ProcessLost
from amalgam.errors.profiles import (
    ChatTemplateFailed,
    ChatTemplateInvalid,
    ChatTemplateRefused,
    TemplatesUnavailable,
)
from amalgam.services.background_loops import BackgroundLoops
from amalgam.services.child_link import ChildLink, ChildSpec
from amalgam.services.key_turns import KeyTurns
from amalgam.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

_RESTART_PAUSE_S: Final = 0.1
_QUEUE_S: Final = 10.0
"""The orders before are waited for at most so long."""
_START_S: Final = 20.0
"""The process is waited for at most so long; it takes a fifth of a second on a machine with nothing else to do."""
_REMEMBERED: Final = 256
PROBE_VALUES: Final = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "", "unk_token": "<unk>"}
"""A template may read these that is checked before any tokenizer is asked."""


class TemplateLink:
    """The template process, kept alive once it was wanted.

    Args:
        command: program and arguments.
        environment: of the process, complete.
        timeout_s: longest wait for one template to render one conversation, seconds.
        loops: what keeps the process alive runs in this group.
        metrics: told of messages that nobody understands.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        timeout_s: float,
        loops: BackgroundLoops,
        metrics: Metrics,
    ) -> None:
        self._timeout_s = timeout_s
        self._turns = KeyTurns()
        self._ready = asyncio.Event()
        self._formats: OrderedDict[str, ContentFormat] = OrderedDict()
        spec = ChildSpec("template process", command, environment, FROM_TEMPLATES, _RESTART_PAUSE_S)
        self._child = ChildLink(spec, loops, metrics, self._hear, self._ready.clear)

    @property
    def pid(self) -> int | None:
        """Its process id, while it runs."""
        return self._child.pid

    async def start(self) -> None:
        """Keep a process from the first order on."""
        never: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        await self._child.start(after=never)

    async def stop(self) -> None:
        """Let the process end by itself, or end it."""
        await self._child.stop()
        self._ready.clear()

    async def content_format(self, template: str, client: str = "") -> ContentFormat:
        """What ``template`` reads of a message's content.

        Raises:
            ChatTemplateInvalid: it renders no conversation, or not in time.
            TemplatesUnavailable: the process cannot be asked now.
        """
        found = self._formats.get(template)
        if found is None:
            code, values = packed(template), packed(PROBE_VALUES)
            try:
                answer = await self._ask(lambda number: TemplateCheck(number, code, values), client)
            except ProcessLost as error:
                raise ChatTemplateInvalid(str(error)) from None
            if isinstance(answer, TemplateFault):
                raise ChatTemplateInvalid(answer.reason)
            assert isinstance(answer, TemplateFormat)
            found = self._formats[template] = answer.format
            if len(self._formats) > _REMEMBERED:
                self._formats.popitem(last=False)
        return found

    async def render(
        self,
        model: str,
        template: str,
        messages: Sequence[Any],
        tools: Sequence[Any] | None,
        values: Mapping[str, Any],
        client: str = "",
    ) -> str:
        """The prompt that ``template``, of the version ``model``, makes of a conversation.

        Raises:
            ChatTemplateRefused: it does not take the conversation.
            ChatTemplateFailed: it failed, took too long, or made too much of it.
            TemplatesUnavailable: the process cannot be asked now.
        """
        rest = dict(values)
        continues = bool(rest.pop("continue_final_message", False))
        given = packed(template), packed(messages), packed(tools), packed(rest)
        try:
            answer = await self._ask(lambda number: TemplateRender(number, *given, continues), client)
        except ProcessLost as error:
            raise ChatTemplateFailed(model, str(error)) from None
        if isinstance(answer, TemplateFault):
            kind = ChatTemplateRefused if answer.fault == "refused" else ChatTemplateFailed
            raise kind(model, answer.reason)
        assert isinstance(answer, TemplateText)
        return answer.text

    async def _ask(self, order: Callable[[int], TemplateOrder], client: str) -> TemplateAnswer:
        is_alone = False
        try:
            async with self._turns.turn(client, _QUEUE_S):
                is_alone = True
                return await self._ask_alone(order(self._child.number()))
        except TimeoutError:
            if is_alone:
                raise
            raise TemplatesUnavailable("too many are waiting") from None

    async def _ask_alone(self, order: TemplateOrder) -> TemplateAnswer:
        await self._reads_orders()
        try:
            answer = await self._child.ask(order, self._timeout_s)
        except TimeoutError:
            logger.error("child_silent process=template_process limit_s=%.1f", self._timeout_s)
            self._end()
            raise ProcessLost(f"it took longer than {self._timeout_s:g} s") from None
        except asyncio.CancelledError:
            # It would work on for nobody, and the next order wait for it.
            self._end()
            raise
        if answer is None:
            raise ProcessLost("the process that renders it ended over it")
        assert isinstance(answer, TemplateAnswer)
        return answer

    async def _reads_orders(self) -> None:
        """The patience with a template begins when the process has said that it reads."""
        self._child.want()
        try:
            async with asyncio.timeout(_START_S):
                await self._ready.wait()
        except TimeoutError:
            raise TemplatesUnavailable("the template process is being started") from None
        if not self._child.alive:
            raise TemplatesUnavailable("the template process is being started again")

    def _end(self) -> None:
        self._ready.clear()
        self._child.kill()

    def _hear(self, news: News) -> None:
        if isinstance(news, TemplateReady):
            self._ready.set()
