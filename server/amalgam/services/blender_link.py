"""The line to the blend process: one order at a time, keys in turn, each with a limit; every way to fail has a code."""

import logging
from collections.abc import Awaitable, Mapping, Sequence
from typing import Final

from amalgam.domain.messages import FROM_BLENDER, BlendBuilt, BlendOrder, Refusal
from amalgam.errors.blends import BlendUnavailable
from amalgam.services.background_loops import BackgroundLoops
from amalgam.services.child_link import ChildLink, ChildSpec
from amalgam.services.key_turns import KeyTurns
from amalgam.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

_RESTART_PAUSE_S: Final = 0.2
"""Clients are waiting for it."""


class BlenderLink:
    """The blend process, kept alive.

    Args:
        command: program and arguments.
        environment: of the process, complete.
        timeout_s: longest wait for one order, and for the orders before it, seconds; a process that takes longer is
            ended and started again.
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
        spec = ChildSpec("blend process", command, environment, FROM_BLENDER, _RESTART_PAUSE_S)
        self._child = ChildLink(spec, loops, metrics)

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
        """Begin to keep the process alive, when ``after`` has ended or with the first order."""
        await self._child.start(after)

    async def stop(self) -> None:
        """Let the process end by itself, or end it."""
        await self._child.stop()

    async def build(self, order: BlendOrder, client: str = "") -> BlendBuilt | Refusal:
        """Have ``order`` built, when the turn of ``client`` has come.

        Raises:
            BlendUnavailable: the process died or hung over it, is not there, or the client has too much under way.
        """
        is_alone = False
        try:
            async with self._turns.turn(client, self._timeout_s):
                is_alone = True
                return await self._ask(order)
        except TimeoutError:
            if is_alone:
                raise
            raise BlendUnavailable("too many are being built") from None

    async def _ask(self, order: BlendOrder) -> BlendBuilt | Refusal:
        try:
            answer = await self._child.ask(order, self._timeout_s)
        except TimeoutError:
            logger.error("child_silent process=blend_process limit_s=%.1f", self._timeout_s)
            self._child.kill()
            raise BlendUnavailable(f"it took longer than {self._timeout_s:.0f} s") from None
        if answer is None:
            raise BlendUnavailable("the blend process is being started, or ended over it")
        assert isinstance(answer, BlendBuilt | Refusal)
        return answer
