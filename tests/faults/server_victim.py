"""A whole server that dies between an effect and the keeping of its answer: `server_victim.py FOLDER ADAPTER KEY`."""

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

from amalgam.registry.idempotency import IdempotencyRegistry
from tests.support.running_app import ADMIN_KEY, push, start_app


async def die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


async def main(folder: Path, adapter: Path, key: str) -> None:
    IdempotencyRegistry.finish = die  # type: ignore[method-assign, assignment]
    async with start_app(folder) as running_app, running_app.http(ADMIN_KEY) as http:
        http.headers["Idempotency-Key"] = key
        await push(http, "sql", adapter, set_default="false")


asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))
