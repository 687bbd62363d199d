"""A line to a store that speaks S3 which a test may fill: from then on it refuses whatever is written."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import httpx
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tests.support.running_app import served

_REFUSAL: Final = b"<Error><Code>QuotaExceeded</Code><Message>no room is left</Message></Error>"
_OWN: Final = frozenset({"connection", "transfer-encoding", "content-encoding", "date", "server"})
"""Headers of one connection, or of bytes as they were packed for it."""


@dataclass
class FullBucket:
    """Stands in front of the store at ``behind``."""

    behind: str
    endpoint: str = ""
    refused_status: int = 0
    """Of every write; 0: there is room."""
    refused: list[str] = field(default_factory=list)
    """Paths of what was refused."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        await (await self._answer(Request(scope, receive)))(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        body = await request.body()
        if request.method in ("PUT", "POST") and self.refused_status:
            self.refused.append(request.url.path)
            return Response(_REFUSAL, self.refused_status, media_type="application/xml")
        # The address as it came: it is what was signed.
        address = self.behind + request.scope["raw_path"].decode() + "?" + request.url.query
        headers = [(name, value) for name, value in request.headers.items() if name not in _OWN]
        async with httpx.AsyncClient() as client:
            said = await client.request(request.method, address.rstrip("?"), headers=headers, content=body)
        told = {name: value for name, value in said.headers.items() if name not in _OWN}
        if request.method != "HEAD":
            told.pop("content-length", None)
        return Response(said.content, said.status_code, told)


@asynccontextmanager
async def may_be_full(behind: str) -> AsyncIterator[FullBucket]:
    """Serve one on loopback."""
    line = FullBucket(behind)
    async with served(line) as url:
        line.endpoint = url
        yield line
