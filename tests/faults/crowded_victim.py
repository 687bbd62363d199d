"""A whole server with few descriptors: `crowded_victim.py FOLDER DESCRIPTORS`; says its port, ends with its input."""

import asyncio
import resource
import sys
from pathlib import Path

from amalgam.cli.connection_limits import ConnectionLimits, accepts_within, connections_within, raise_descriptor_limit
from tests.support.running_app import served, start_app


async def main(folder: Path, descriptors: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))
    allowed = raise_descriptor_limit()
    limits = ConnectionLimits(60, 60, connections_within(allowed))
    async with (
        start_app(folder) as running_app,
        served(running_app.app, limits, accepts=accepts_within(allowed)) as url,
    ):
        sys.stdout.write(f"{url}\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.read)


asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
