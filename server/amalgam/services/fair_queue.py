"""Whose adapter may be in the batch: turns for adapters, where more are asked for than the engine has slots.

vLLM passes over a waiting request while its adapter is not in the batch and the slots are full, and takes later ones of
adapters that are. A few adapters with overlapping requests thus keep another one waiting for as long as they are asked.
Here requests wait in one line per adapter, in front of the engine. An adapter that has a slot has its turn: its
requests run together, as many as come. Where another one has waited a while, the oldest turn that is used up closes:
its new requests wait too, the running ones end, and the slot goes to the adapter that has waited longest. This is
deficit round robin (Shreedhar and Varghese, 1995) in which each request costs one. A turn closes late and never
needlessly, because the requests of a closing turn end one by one and leave the batch emptier.
"""

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from amalgam.engine.protocol import LoadableVersion
from amalgam.errors.engine import NoTurn
from amalgam.errors.requests import ClientLeft
from amalgam.telemetry.context import note_adapter
from amalgam.telemetry.metrics import Metrics

TURN_S: Final = 4.0
"""A turn is used up after so long, however few requests it began."""
PATIENCE_S: Final = 2.0
"""One turn closes for every so many seconds that the first in line has waited."""


@dataclass(slots=True)
class _Turn:
    began_s: float
    credit: int
    """Requests that it may still begin; below zero where nobody else wanted the slot."""
    running: int = 0


@dataclass(slots=True)
class _Line:
    since_s: float
    waiting: deque["asyncio.Future[None]"] = field(default_factory=deque)


class FairQueue:
    """Lets requests begin; at most ``slots`` adapters at a time.

    Args:
        slots: different adapters in one batch of the engine.
        quantum: requests that an adapter may begin in one turn while others wait.
        wait_s: longest wait of one request.
        clock: monotonic seconds.
        metrics: told of waits.
    """

    def __init__(
        self,
        slots: int,
        quantum: int,
        wait_s: float,
        clock: Callable[[], float] = time.monotonic,
        metrics: Metrics | None = None,
    ) -> None:
        self._slots = slots
        self._quantum = quantum
        self._wait_s = wait_s
        self._clock = clock
        self._metrics = metrics or Metrics()
        self._turns: dict[int, _Turn] = {}
        """By adapter, the oldest first; an adapter has a turn while a request of it runs."""
        self._lines: OrderedDict[int, _Line] = OrderedDict()
        """By adapter, in the order of their turns to come; none is empty."""

    @asynccontextmanager
    async def turn(
        self, version: LoadableVersion, gone: Callable[[], Awaitable[object]] | None = None
    ) -> AsyncIterator[None]:
        """The block runs in a turn of the version's adapter.

        Args:
            version: whose slot is needed.
            gone: returns when the client has left; asked only where the request has to wait.

        Raises:
            NoTurn: the wait took longer than its limit.
            ClientLeft: the client left first.
        """
        key = version.lora_id
        if not self._begin_at_once(key):
            note_adapter(version.engine_name)
            await self._wait(version, gone)
        try:
            yield
        finally:
            self._end(key)

    def _begin_at_once(self, key: int) -> bool:
        """Where nobody waits: nothing but counting."""
        if self._lines or (key not in self._turns and len(self._turns) >= self._slots):
            return False
        self._begin(key)
        return True

    async def _wait(self, version: LoadableVersion, gone: Callable[[], Awaitable[object]] | None) -> None:
        key, began_s = version.lora_id, self._clock()
        place = asyncio.get_running_loop().create_future()
        self._lines.setdefault(key, _Line(began_s)).waiting.append(place)
        self._settle()
        if place.done():
            return
        try:
            with self._metrics.turn_waiting():
                left = await self._first(place, gone)
        except BaseException:
            self._leave(key, place)
            raise
        if place.done():
            self._metrics.turn_waited(self._clock() - began_s)
            return
        self._leave(key, place)
        raise ClientLeft() if left else NoTurn(version.engine_name, self._wait_s)

    async def _first(self, place: "asyncio.Future[None]", gone: Callable[[], Awaitable[object]] | None) -> bool:
        """Return when the turn has come, the client has left, or the wait was too long; whether the client has left."""
        left = None if gone is None else asyncio.ensure_future(gone())
        try:
            awaited: set[asyncio.Future[Any]] = {place} if left is None else {place, left}
            done, _ = await asyncio.wait(awaited, timeout=self._wait_s, return_when=asyncio.FIRST_COMPLETED)
            return left in done
        finally:
            if left is not None:
                left.cancel()
                await asyncio.gather(left, return_exceptions=True)

    def _begin(self, key: int) -> None:
        turn = self._turns.get(key)
        if turn is None:
            turn = self._turns[key] = _Turn(self._clock(), self._quantum)
        turn.running += 1
        turn.credit -= 1

    def _end(self, key: int) -> None:
        turn = self._turns[key]
        turn.running -= 1
        if turn.running == 0:
            del self._turns[key]
            if key in self._lines:
                self._lines.move_to_end(key)
                self._lines[key].since_s = self._clock()
        if self._lines:
            self._settle()

    def _leave(self, key: int, place: "asyncio.Future[None]") -> None:
        """Someone waits no longer; a turn that came in the same moment is given back."""
        if place.done():
            self._end(key)
            return
        line = self._lines[key]
        line.waiting.remove(place)
        if not line.waiting:
            del self._lines[key]
        self._settle()

    def _settle(self) -> None:
        """Begin whatever may begin now."""
        now_s = self._clock()
        for key in [key for key in self._lines if key not in self._turns][: self._slots - len(self._turns)]:
            self._turns[key] = _Turn(now_s, self._quantum)
        closing = self._to_close(now_s)
        for key, turn in self._turns.items():
            while True:
                if closing > 0 and (turn.credit <= 0 or now_s - turn.began_s >= TURN_S):
                    closing -= 1
                    break
                if key not in self._lines:
                    break
                self._begin_next(key)

    def _begin_next(self, key: int) -> None:
        line = self._lines[key]
        place = line.waiting.popleft()
        if not line.waiting:
            del self._lines[key]
        self._begin(key)
        place.set_result(None)

    def _to_close(self, now_s: float) -> int:
        """How many turns close: none while nobody waits without a slot, and more the longer the first one does."""
        since_s = next((line.since_s for key, line in self._lines.items() if key not in self._turns), None)
        return 0 if since_s is None else int((now_s - since_s) / PATIENCE_S)
