"""A whole server that is killed between a version's row and its service: `unproved_victim.py FOLDER ADAPTER STEP`."""

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import amalgam.wiring.storage
from amalgam.registry.adapters import AdapterRegistry
from tests.api.fake_engine import FakeEngine
from tests.support.running_app import ADMIN_KEY, push, start_app

STEPS: dict[str, tuple[type, str]] = {
    "before its load": (FakeEngine, "load"),
    "before its probe": (FakeEngine, "probe"),
    "before it is served": (AdapterRegistry, "enter_service"),
}


async def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


async def main(folder: Path, adapter: Path, step: str) -> None:
    owner, name = STEPS[step]
    setattr(owner, name, die)
    # What it asks takes vLLM's import, half a minute on a busy machine, and is of no meaning here.
    vars(amalgam.wiring.storage)["adapts_experts"] = lambda: False
    async with start_app(folder) as running_app, running_app.http(ADMIN_KEY) as http:
        http.headers["Idempotency-Key"] = "once"
        await push(http, "sql", adapter)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))
