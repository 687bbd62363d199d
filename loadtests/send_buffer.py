"""What a small send buffer costs: a long stream of events and a download, with the server's buffer and the kernel's.

The server bounds what the kernel keeps of an answer that nobody reads (`SEND_BUFFER_BYTES`). On loopback, where the
kernel's own buffers grow to megabytes, this shows what that takes from a reader who does read.

    python loadtests/send_buffer.py [--rounds 5] [--out send_buffer]      # half a minute
"""

import argparse
import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "server")]

import uvicorn  # noqa: E402
from starlette.applications import Starlette  # noqa: E402
from starlette.requests import Request  # noqa: E402
from starlette.responses import FileResponse, StreamingResponse  # noqa: E402
from starlette.routing import Route  # noqa: E402

from amalgam.cli.connection_limits import SEND_BUFFER_BYTES  # noqa: E402
from amalgam.cli.http_protocol import bounded_http  # noqa: E402
from loadtests.report import Row, write_report  # noqa: E402

FILE_BYTES = 20_000_000
EVENTS = 20_000
EVENT = b'data: {"choices":[{"index":0,"text":" word","logprobs":null,"finish_reason":null}],"model":"sql@1"}\n\n'


def application(folder: Path) -> Starlette:
    """A stream of as many events as a server makes without an engine, and a file."""
    path = folder / "file"
    path.write_bytes(os.urandom(FILE_BYTES))

    async def events() -> AsyncIterator[bytes]:
        for _ in range(EVENTS):
            yield EVENT

    async def stream(request: Request) -> StreamingResponse:
        return StreamingResponse(events(), media_type="text/event-stream")

    async def file(request: Request) -> FileResponse:
        return FileResponse(path)

    return Starlette(routes=[Route("/stream", stream), Route("/file", file)])


def serve(send_buffer_bytes: int) -> None:
    """Print the port, and serve until the process is ended."""
    import tempfile

    listener = socket.socket()
    if send_buffer_bytes:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer_bytes)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    print(listener.getsockname()[1], flush=True)
    with tempfile.TemporaryDirectory() as folder:
        app = application(Path(folder))
        config = uvicorn.Config(app, http=bounded_http(), ws="none", log_level="critical", access_log=False)
        asyncio.run(uvicorn.Server(config).serve(sockets=[listener]))


@contextmanager
def served(send_buffer_bytes: int) -> Iterator[int]:
    """A server in a process of its own; yields its port. 0 bytes: what the kernel gives."""
    command = [sys.executable, __file__, "--serve", str(send_buffer_bytes)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.terminate()


def megabytes_per_s(port: int, path: str) -> float:
    """Of one answer, from the request to its end."""
    head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
    received, buffer = 0, bytearray(1 << 18)
    with socket.create_connection(("127.0.0.1", port)) as peer:
        began = time.perf_counter()
        peer.sendall(head)
        while count := peer.recv_into(buffer):
            received += count
        took_s = time.perf_counter() - began
    least = FILE_BYTES if path == "/file" else EVENTS * len(EVENT)
    assert received > least, f"{received} bytes came of {least}"
    return received / 1e6 / took_s


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", default="", help="name below loadtests/results")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve is not None:
        serve(given.serve)
        return
    load_before = os.getloadavg()[0]
    samples: dict[tuple[str, int], list[float]] = {}
    with served(SEND_BUFFER_BYTES) as ours, served(0) as kernels:
        for path in ("/stream", "/file"):
            for port in (ours, kernels):
                megabytes_per_s(port, path)
        for round_number in range(given.rounds):
            for path in ("/stream", "/file"):
                for port in (ours, kernels) if round_number % 2 == 0 else (kernels, ours):
                    samples.setdefault((path, port), []).append(megabytes_per_s(port, path))
        rows = [
            Row(case, "MB/s", samples[path, ours], samples[path, kernels])
            for case, path in (("a stream of 20,000 events", "/stream"), ("a file of 20 MB", "/file"))
        ]
    write_report(
        "What a bounded send buffer costs on loopback",
        rows,
        rounds=given.rounds,
        out=given.out,
        ours=f"SO_SNDBUF {SEND_BUFFER_BYTES >> 10} KiB",
        theirs="the kernel's own",
        notes={"load average before": round(load_before, 2)},
    )


if __name__ == "__main__":
    main()
