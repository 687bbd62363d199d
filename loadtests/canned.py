"""A bare responder on loopback: every request of one known size has the same refusal.

A benchmark whose client shares the server's cores sends here what it does not send to the server, so that both of its
sides pay for the same client.

    python loadtests/canned.py REQUEST_BYTES       # prints its port, and answers until its input ends
"""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_BODY: Final = b'{"error":{"message":"' + b"." * 120 + b'","type":"rate_limit_error","param":null,"code":"canned"}}'
ANSWER: Final = (
    b"HTTP/1.1 429 Too Many Requests\r\nretry-after: 1\r\ncontent-type: application/json\r\n"
    b"x-request-id: req-000000000000000000000000\r\ncontent-length: %d\r\n\r\n%s" % (len(_BODY), _BODY)
)


class Canned(asyncio.Protocol):
    """One connection; answers whenever a whole request has come."""

    def __init__(self, request_bytes: int) -> None:
        self._request_bytes = request_bytes
        self._seen = 0
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep what answers are written to."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Count; nothing is parsed."""
        whole, self._seen = divmod(self._seen + len(data), self._request_bytes)
        assert self._transport is not None
        self._transport.write(ANSWER * whole)


async def serve(request_bytes: int) -> None:
    """Answer until standard input ends."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Canned(request_bytes), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()


@contextmanager
def canned_responder(request_bytes: int) -> Iterator[str]:
    """A responder in a process of its own; yields its URL."""
    command = [sys.executable, __file__, str(request_bytes)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        process.stdin.close()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
