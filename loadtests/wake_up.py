"""How long a submitted merge waits for its worker: from the call to the claim, over the real process and its pipe.

    python -m loadtests.wake_up

Every job names an input that does not exist, so that the worker is free again at once; nothing is merged. Printed are
p50, p99 and the largest wait from before the row is written to the worker's claim, by one machine's clock, and the part
of it from the wake-up on.
"""

import argparse
import asyncio
import os
import sys
import tempfile
from pathlib import Path

from amalgam.domain.clock import new_id, utc_now
from amalgam.domain.job import FINAL_STATES, JobRequest
from amalgam.registry.database import Database, sqlite_url
from amalgam.registry.jobs import JobRegistry
from amalgam.services.background_loops import BackgroundLoops
from amalgam.services.worker_link import WorkerLink
from amalgam.telemetry.metrics import Metrics

RECIPE = {"method": "task_arithmetic", "inputs": [{"adapter": "nothing@1"}]}
PAUSE_S = 0.02


async def waits(folder: Path, count: int) -> tuple[list[float], list[float]]:
    """Seconds from call to claim and from wake-up to claim, of ``count`` jobs, one after the other."""
    url = sqlite_url(folder / "registry.sqlite3")
    environment = os.environ | {"AMALGAM_STORE": str(folder), "AMALGAM_DATABASE_URL": url, "OMP_NUM_THREADS": "1"}
    failed = asyncio.Event()
    command = (sys.executable, "-m", "amalgam", "worker")
    metrics = Metrics()
    worker = WorkerLink(
        command,
        environment,
        BackgroundLoops(metrics),
        metrics,
        on_news=lambda news: failed.set() if news.state == "failed" else None,
        on_progress=lambda *_: None,
        on_end=lambda _: None,
    )
    from_call, from_wake = [], []
    async with Database.open(url) as database:
        jobs = JobRegistry(database, utc_now, new_id)
        await worker.start()
        try:
            for number in range(count + 1):
                failed.clear()
                called = utc_now()
                job = (await jobs.submit(JobRequest("merge", "none", RECIPE, f"{number:064x}"))).job
                assert job is not None
                woken = utc_now()
                worker.wake()
                await asyncio.wait_for(failed.wait(), 60)
                done = await jobs.get(job.id)
                assert done.state in FINAL_STATES
                claimed_s = done.timings["queue"] + (job.created_at - called).total_seconds()
                from_call.append(claimed_s)
                from_wake.append(claimed_s - (woken - called).total_seconds())
                # The worker must have gone to sleep, or its own look at the queue would be measured.
                await asyncio.sleep(PAUSE_S)
        finally:
            await worker.stop()
    # The first waited for the process to start.
    return from_call[1:], from_wake[1:]


def line(name: str, seconds: list[float]) -> str:
    """One line of milliseconds."""
    ordered = sorted(seconds)
    p50, p99 = ordered[len(ordered) // 2], ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]
    return f"{name}: p50 {p50 * 1e3:.1f} ms, p99 {p99 * 1e3:.1f} ms, max {ordered[-1] * 1e3:.1f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=300)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        from_call, from_wake = asyncio.run(waits(Path(folder), arguments.jobs))
    print(f"{arguments.jobs} jobs, load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print(line("submit to claim ", from_call))
    print(line("wake-up to claim", from_wake))


if __name__ == "__main__":
    main()
