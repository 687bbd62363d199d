"""`amalgam worker`: the merge process. The server starts one; an operator may start more, on other machines too."""

import asyncio

from amalgam.settings import Settings


def worker() -> None:
    """Claim merge jobs and build them until standard input ends."""
    from amalgam.telemetry.logs import configure_logging
    from amalgam.workers.merge_process import run_worker

    settings = Settings()
    configure_logging(settings.logs.log_format)
    asyncio.run(run_worker(settings))
