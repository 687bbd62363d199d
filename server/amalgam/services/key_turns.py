"""One thing at a time, and keys take turns at it: who asks for much waits for itself and not the others for it."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class KeyTurns:
    """A lock whose waiters stand in one line per key; the lines are served in rotation."""

    def __init__(self) -> None:
        self._taken = False
        self._lines: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @asynccontextmanager
    async def turn(self, client: str, wait_s: float) -> AsyncIterator[None]:
        """Alone while the block runs.

        Args:
            client: whose line to stand in.
            wait_s: longest wait, seconds.

        Raises:
            TimeoutError: the turn did not come in time.
        """
        if self._taken:
            await self._wait(client, wait_s)
        self._taken = True
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, client: str, wait_s: float) -> None:
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._lines.setdefault(client, deque()).append(place)
        try:
            async with asyncio.timeout(wait_s):
                await place
        except BaseException:
            if place.done() and not place.cancelled():
                # It came in the same moment.
                self._pass_on()
            else:
                self._leave(client, place)
            raise

    def _leave(self, client: str, place: "asyncio.Future[None]") -> None:
        line = self._lines[client]
        line.remove(place)
        if not line:
            del self._lines[client]

    def _pass_on(self) -> None:
        """Pass the turn on to the first in the next line; that line goes behind the others."""
        if not self._lines:
            self._taken = False
            return
        client, line = next(iter(self._lines.items()))
        place = line.popleft()
        self._lines.move_to_end(client)
        if not line:
            del self._lines[client]
        place.set_result(None)
