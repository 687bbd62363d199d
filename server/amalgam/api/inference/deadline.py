"""How long a client will wait for the beginning of its answer, as its header ``x-request-timeout-ms`` says."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import Message

from amalgam.errors.overload import DeadlineNotMet
from amalgam.errors.requests import FieldRefused
from amalgam.services.drain_rate import SHORTEST_S
from amalgam.telemetry.metrics import Metrics

HEADER: Final = "x-request-timeout-ms"
_MAX_MS: Final = 86_400_000
_NUMBER: Final = re.compile(r"[0-9]{1,8}")


@dataclass(frozen=True, slots=True)
class Deadline:
    """When an answer has to have begun: a stream with its place in the batch, any other answer with all of it.

    Attributes:
        at_s: on the event loop's clock; None: no limit.
    """

    at_s: float | None

    @classmethod
    def of(cls, headers: Headers, now_s: float) -> "Deadline":
        """Read the header; the time runs from ``now_s`` on.

        Raises:
            FieldRefused: no whole number of milliseconds from 1 to a day.
        """
        text = headers.get(HEADER)
        if text is None:
            return cls(None)
        if not _NUMBER.fullmatch(text) or not 1 <= int(text) <= _MAX_MS:
            raise FieldRefused(HEADER, f"must be a whole number of milliseconds from 1 to {_MAX_MS}")
        return cls(now_s + int(text) / 1e3)

    def left_s(self, now_s: float) -> float | None:
        """Seconds until then; None without a limit."""
        return None if self.at_s is None else self.at_s - now_s

    def require_time(self, now_s: float, metrics: Metrics) -> None:
        """Nothing where there is time left.

        Raises:
            DeadlineNotMet: it has passed.
        """
        if self.at_s is not None and now_s >= self.at_s:
            metrics.refused("deadline")
            raise DeadlineNotMet(SHORTEST_S, passed=True)

    @asynccontextmanager
    async def kept(self, metrics: Metrics) -> AsyncIterator[None]:
        """Cut the block off when the deadline passes.

        Raises:
            DeadlineNotMet: it has passed.
        """
        try:
            async with asyncio.timeout_at(self.at_s) as limit:
                yield
        except TimeoutError:
            if limit.expired():
                metrics.refused("deadline")
                raise DeadlineNotMet(SHORTEST_S, passed=True) from None
            raise

    def request(self, request: Request) -> Request:
        """The same request, of a client who leaves at the deadline: what works for it ends its work."""
        if self.at_s is None:
            return request
        at_s, receive = self.at_s, request.receive

        async def until() -> Message:
            if asyncio.get_running_loop().time() >= at_s:
                return {"type": "http.disconnect"}
            try:
                async with asyncio.timeout_at(at_s):
                    return await receive()
            except TimeoutError:
                return {"type": "http.disconnect"}

        return Request(request.scope, until)
