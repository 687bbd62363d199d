"""The line to the blend process: one order at a time, each with a limit, and every way to fail has a code."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Mapping, Sequence
from typing import Final

from pydantic import ValidationError

from amalgam.domain.blend import BlendOrder, BlendReply
from amalgam.errors.blends import BlendUnavailable
from amalgam.services.child_process import ChildProcess

logger = logging.getLogger(__name__)

_RESTART_PAUSE_S: Final = 0.2
"""Clients wait for it."""


class BlenderLink:
    """The blend process, kept alive.

    Args:
        command: program and arguments.
        environment: of the process, complete.
        timeout_s: longest wait for one order, and for the orders before it, seconds; a process that takes longer is
            ended and started again.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._turn = asyncio.Lock()
        self._open: tuple[int, asyncio.Future[BlendReply]] | None = None
        self._child = ChildProcess(
            "blend process", command, environment, self._hear, self._ended, restart_pause_s=_RESTART_PAUSE_S
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

    async def start(self, after: Awaitable[object] | None = None) -> None:
        """Begin to keep the process alive, when ``after`` has ended or with the first order."""
        await self._child.start(after)

    async def stop(self) -> None:
        """Let the process end by itself, or end it."""
        await self._child.stop()
        self._ended()

    async def build(self, order: BlendOrder) -> BlendReply:
        """Have ``order`` built; its reply may be a refusal.

        Raises:
            BlendUnavailable: the process died or hung over it, is not there, or has too much to do.
        """
        try:
            await asyncio.wait_for(self._turn.acquire(), self._timeout_s)
        except TimeoutError:
            raise BlendUnavailable("too many are being built") from None
        try:
            return await self._ask(order)
        finally:
            self._open = None
            self._turn.release()

    async def _ask(self, order: BlendOrder) -> BlendReply:
        await self._child.wanted()
        reply: asyncio.Future[BlendReply] = asyncio.get_running_loop().create_future()
        self._open = (order.id, reply)
        if not self._child.send(order.model_dump_json().encode()):
            raise BlendUnavailable("the blend process is being started")
        try:
            return await asyncio.wait_for(reply, self._timeout_s)
        except TimeoutError:
            logger.error("the blend process was silent for %.1f s; ending it", self._timeout_s)
            self._child.kill()
            raise BlendUnavailable(f"it took longer than {self._timeout_s:.0f} s") from None

    def _hear(self, line: bytes) -> None:
        try:
            reply = BlendReply.model_validate(json.loads(line))
        except (ValueError, ValidationError):
            logger.warning("the blend process said something unexpected: %r", line[:200])
            return
        if self._open is not None and self._open[0] == reply.id and not self._open[1].done():
            self._open[1].set_result(reply)

    def _ended(self) -> None:
        if self._open is not None and not self._open[1].done():
            self._open[1].set_exception(BlendUnavailable("the blend process ended over it"))
