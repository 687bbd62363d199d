"""A whole server that dies between an effect and the keeping of its answer: `server_victim.py FOLDER ADAPTER KEY`."""

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

from amalgam.registry.idempotency import IdempotencyRegistry
from tests.api.house import ADMIN_KEY, open_house, push


async def die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


async def main(folder: Path, adapter: Path, key: str) -> None:
    IdempotencyRegistry.finish = die  # type: ignore[method-assign]
    async with open_house(folder) as house, house.http(ADMIN_KEY) as http:
        http.headers["Idempotency-Key"] = key
        await push(http, "sql", adapter, set_default="false")


asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))
