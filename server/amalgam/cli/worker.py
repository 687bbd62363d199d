"""`amalgam worker`: the merge process. The server starts it; by hand it serves a queue on another machine."""

import asyncio

from amalgam.settings import Settings


def worker() -> None:
    """Claim merge jobs and build them until standard input ends."""
    from amalgam.telemetry.logs import configure_logging
    from amalgam.worker import run_worker

    settings = Settings()
    configure_logging(settings.log_format)
    asyncio.run(run_worker(settings))
