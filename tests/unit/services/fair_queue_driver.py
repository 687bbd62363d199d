"""Drives a fair queue under a clock that stands still until a test moves it, and says who runs and who waits."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from amalgam.engine.protocol import LoadableVersion
from amalgam.services.fair_queue import PATIENCE_S, TURN_S, FairQueue, Places
from amalgam.telemetry.context import RequestContext, TokenCount, enter, tokens_of_current
from amalgam.telemetry.metrics import Metrics
from amalgam.telemetry.server_state import ServerState

LONG_S = TURN_S + PATIENCE_S
BASE = "-"
"""Stands for the base model."""


def version(name: str) -> LoadableVersion:
    return LoadableVersion(f"{name}@1", ord(name), Path("/nowhere") / name)


class QueueDriver:
    """A queue under a clock that stands still until it is told, and who runs."""

    def __init__(
        self,
        slots: float = 2,
        quantum: int = 4,
        wait_s: float = 60.0,
        places: Places = Places(),  # noqa: B008
    ) -> None:
        self.now_s = 0.0
        self.slots = slots
        self.metrics = Metrics()
        self.queue = FairQueue(slots, quantum, wait_s, clock=lambda: self.now_s, metrics=self.metrics, places=places)
        self.running: list[str] = []
        self.begun: list[str] = []
        self.waiting: list[str] = []
        self.ends: dict[str, list[asyncio.Event]] = {}
        self.tasks: list[asyncio.Task[None]] = []

    async def ask(
        self,
        name: str,
        gone: Callable[[], Awaitable[object]] | None = None,
        *,
        of: str = "",
        sequences: int = 1,
        tenant: str = "",
        weight: float = 1.0,
        tokens: int = 0,
    ) -> asyncio.Task[None]:
        """A request of the key ``of``, as far as it comes; the engine counts so many tokens once it runs."""
        task = asyncio.create_task(self._request(name, gone, of, sequences, (tenant, weight), tokens))
        self.tasks.append(task)
        await settled()
        return task

    async def _request(
        self,
        name: str,
        gone: Callable[[], Awaitable[object]] | None,
        client: str,
        sequences: int,
        tenant: tuple[str, float],
        tokens: int,
    ) -> None:
        enter(RequestContext("", tokens=TokenCount()))
        asked = None if name == BASE else version(name)
        name = f"{client}:{name}" if client else name
        async with AsyncExitStack() as stack:
            self.waiting.append(name)
            try:
                await stack.enter_async_context(self.queue.turn(asked, gone, client, sequences, None, *tenant))
            finally:
                self.waiting.remove(name)
            assert len({one[-1] for one in (*self.running, name)} - {BASE}) <= self.slots
            self.running.append(name)
            self.begun.append(name)
            tokens_of_current().completion += tokens
            end = asyncio.Event()
            self.ends.setdefault(name, []).append(end)
            try:
                await end.wait()
            finally:
                self.running.remove(name)

    async def end(self, name: str) -> None:
        """The oldest running request of ``name`` has its answer."""
        self.ends[name].pop(0).set()
        await settled()

    def page(self) -> str:
        return self.metrics.scrape(ServerState()).text().decode()


async def settled() -> None:
    for _ in range(8):
        await asyncio.sleep(0)


async def assert_like_new(queue: FairQueue, slots: float) -> None:
    """Asserts that nothing is kept of those who are gone: a new key gets every slot, every place, and the whole batch.

    The places are changed on the way.
    """
    assert queue.waiting == 0
    async with asyncio.timeout(5):
        # The second of these begins only where no other key is known.
        queue.resize(Places(8, 6))
        async with AsyncExitStack() as stack:
            for _ in range(2):
                await stack.enter_async_context(queue.turn(None, client="new", sequences=4))
        queue.resize(Places(slots, slots))
        async with AsyncExitStack() as stack:
            for number in range(int(slots)):
                await stack.enter_async_context(queue.turn(version(chr(1000 + number)), client="new"))


@asynccontextmanager
async def driven(**how: float | Places) -> AsyncIterator[QueueDriver]:
    """A queue that must be like new once all who asked are gone."""
    driver = QueueDriver(**how)  # type: ignore[arg-type]
    try:
        yield driver
    finally:
        for task in driver.tasks:
            task.cancel()
        ended = await asyncio.gather(*driver.tasks, return_exceptions=True)
    assert not [error for error in ended if isinstance(error, AssertionError)]
    assert "amalgam_adapter_turn_waiting_requests 0.0" in driver.page()
    await assert_like_new(driver.queue, driver.slots)
