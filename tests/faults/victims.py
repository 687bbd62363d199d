"""Processes that die when they are told to. This one stays small and has no threads, so that its forks start at once.

It reads one JSON line a command and answers each with one: ``{"start": plan}`` forks a victim that follows the plan and
answers its pid, ``{"wait": pid}`` answers how it ended: its exit code, or minus the signal that killed it.
"""

import asyncio
import json
import os
import resource
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from amalgam.domain.clock import utc_now
from amalgam.domain.version import VersionDraft
from amalgam.registry.adapters import AdapterRegistry
from amalgam.registry.database import Database
from amalgam.registry.jobs import JobRegistry
from amalgam.store.adapter_store import AdapterStore, StoredAdapter

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
CHUNK_BYTES = 64 << 10
RECIPE_DIGEST = "a" * 64

Plan = dict[str, Any]


class Deadly:
    """Kills this very process when a step is reached for the n-th time: no handler runs and nothing is cleaned up."""

    def __init__(self, name: str | None, nth: int = 1) -> None:
        self._name, self._nth = name, nth
        self._seen: Counter[str] = Counter()

    def reach(self, name: str) -> None:
        self._seen[name] += 1
        if name == self._name and self._seen[name] == self._nth:
            os.kill(os.getpid(), signal.SIGKILL)


def weights(seed: int, size: int = 3 * CHUNK_BYTES) -> bytes:
    """Bytes that no other seed has."""
    return seed.to_bytes(8, "little") * (size // 8)


def chunks(content: bytes) -> Iterator[bytes]:
    for start in range(0, len(content), CHUNK_BYTES):
        yield content[start : start + CHUNK_BYTES]


def store_adapter(store: AdapterStore, seed: int, size: int = 3 * CHUNK_BYTES) -> StoredAdapter:
    with store.stage() as staging:
        staging.receive(CONFIG, [b"{}"])
        staging.receive(WEIGHTS, chunks(weights(seed, size)))
        return store.publish(staging)


def draft(name: str, stored: StoredAdapter, **more: Any) -> VersionDraft:
    return VersionDraft(name, stored.digest, 8, stored.size_bytes, 1, "f" * 64, more.pop("source", "upload"), **more)


def acknowledge(path: Path, line: str) -> None:
    with path.open("a") as file:
        file.write(line)


async def upload(plan: Plan) -> Any:
    """Files, then their row: what the server does with an upload. A line in ``acknowledged`` is the 201."""
    deadly = Deadly(plan.get("die_at"), plan.get("nth", 1))
    store = AdapterStore.open(Path(plan["store"]), failpoints=deadly)
    async with Database.open(plan["url"], busy_timeout_s=60, answer_timeout_s=30, failpoints=deadly) as database:
        registry = AdapterRegistry(database, utc_now)
        made = []
        for seed in plan["seeds"]:
            stored = store_adapter(store, seed, plan.get("size", 3 * CHUNK_BYTES))
            created = await registry.create_version(draft(plan["name"], stored), if_absent=plan.get("if_absent", False))
            made.append([created.version.number, created.created, stored.digest])
            if "acknowledged" in plan:
                acknowledge(Path(plan["acknowledged"]), f"{created.version.number} {stored.digest}\n")
    return made


async def work(plan: Plan) -> Any:
    """A merge worker: claim, report progress, build, finish. The bytes it builds depend on the recipe alone."""
    deadly = Deadly(plan.get("die_at"), plan.get("nth", 1))
    store = AdapterStore.open(Path(plan["store"]), failpoints=deadly)
    async with Database.open(plan["url"], busy_timeout_s=60, answer_timeout_s=30, failpoints=deadly) as database:
        jobs = JobRegistry(database, lambda: utc_now() + timedelta(seconds=plan.get("later_s", 0)), lambda: "unused")
        job = await jobs.claim("worker", lease_s=30, max_attempts=9)
        if job is None:
            return None
        for percent in (10, 50, 90):
            await jobs.heartbeat(job.id, job.fencing_token, lease_s=30, progress={"percent": percent})
            deadly.reach(f"work.{percent}")
        stored = store_adapter(store, 1000)
        version = await jobs.finish_built(
            job.id, job.fencing_token, draft(job.name, stored, source="merge", recipe_digest=job.recipe_digest)
        )
        claimed = await jobs.claim_built("server", lease_s=30)
        assert claimed is not None
        await jobs.publish(job.id, claimed.fencing_token)
        return version.number


async def migrate(plan: Plan) -> Any:
    async with Database.open(
        plan["url"], busy_timeout_s=60, answer_timeout_s=30, failpoints=Deadly(plan.get("die_at"))
    ):
        return True


ACTIONS: dict[str, Callable[[Plan], Any]] = {"upload": upload, "work": work, "migrate": migrate}


def follow(plan: Plan) -> None:
    """In the fork: run the plan, write what came of it, leave without any of the parent's cleanup."""
    if "file_limit" in plan:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (plan["file_limit"], plan["file_limit"]))
    try:
        outcome = {"value": asyncio.run(ACTIONS[plan["action"]](plan))}
    except Exception as error:
        outcome = {"error": type(error).__name__, "message": str(error)}
    Path(plan["result"]).write_text(json.dumps(outcome))
    os._exit(0)


def main() -> None:
    for line in sys.stdin:
        command = json.loads(line)
        if "start" in command:
            pid = os.fork()
            if pid == 0:
                follow(command["start"])
            answer = pid
        else:
            answer = os.waitstatus_to_exitcode(os.waitpid(command["wait"], 0)[1])
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
