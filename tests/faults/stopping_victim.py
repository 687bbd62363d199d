"""A whole server with a fake engine behind the real uvicorn: `stopping_victim.py FOLDER GRACE DRAIN`, in seconds.

It prints its port once it listens. A stream has as many pieces as its ``max_tokens`` says, one in 0.1 s.
"""

import signal
import socket
import sys
from argparse import Namespace
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import amalgam.app
from amalgam.cli.http_server import http_server
from amalgam.settings import Settings
from amalgam.telemetry.logs import configure_logging
from amalgam.wiring.parts import Start
from tests.api.fake_engine import FakeEngine
from tests.support.running_app import ADMIN_KEY, API_KEY, write_base


class Patient(FakeEngine):
    """Streams for as long as it is asked to."""

    async def pieces(self, body: Mapping[str, Any]) -> AsyncIterator[str]:
        self.chunks = int(body.get("max_tokens") or body.get("max_output_tokens") or 1)
        pieces = super().pieces(body)
        try:
            async for piece in pieces:
                yield piece
        finally:
            await pieces.aclose()  # type: ignore[attr-defined]


def main(folder: Path, grace_s: float, drain_s: float) -> None:
    settings = Settings(
        store=folder / "store", admin_key=ADMIN_KEY, api_keys=API_KEY, blend_dir=folder / "blends",
        drain_timeout_s=drain_s, shutdown_grace_s=grace_s, inline_blends=False,
    )  # fmt: skip
    base = write_base(folder / "base")
    args = Namespace(model=str(base), served_model_name=["tiny"], max_lora_rank=16, max_loras=2, max_cpu_loras=4)
    configure_logging("text")
    app = amalgam.app.create_app(
        settings, args, Start(worker_command=("cat",)), engine_factory=lambda state: Patient(chunk_pause_s=0.1)
    )
    server = http_server(app, settings)
    signal.signal(signal.SIGTERM, lambda *_: None)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        sys.stdout.write(f"{listener.getsockname()[1]}\n")
        sys.stdout.flush()
        server.run(sockets=[listener])


main(Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]))
