"""How soon one server sees what another one changed: a version in service, an alias that moved, a deletion.

Two processes as far as the registry is concerned: each side has its own connections, its own catalog and its own loops,
as two servers have. A change is timed from the return of the call that made it until the other side's catalog resolves
accordingly, which is what the next request there is answered by. On PostgreSQL once with its notices, and once without,
as behind a pooler that swallows them; with few adapters registered and with many.

    deploy/test_services.sh python loadtests/replicas.py [--changes 300] [--adapters 1000] [--out replicas]
"""

import argparse
import asyncio
import os
import statistics
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "server")]

import sqlalchemy as sa  # noqa: E402

from amalgam.domain.adapter import BaseModelSpec  # noqa: E402
from amalgam.domain.alias import AliasTarget  # noqa: E402
from amalgam.domain.version import VersionDraft  # noqa: E402
from amalgam.registry.adapters import AdapterRegistry  # noqa: E402
from amalgam.registry.aliases import AliasRegistry  # noqa: E402
from amalgam.registry.database import Database  # noqa: E402
from amalgam.registry.notices import Notices  # noqa: E402
from amalgam.services.catalog import Catalog  # noqa: E402
from loadtests.report import Row, write_report  # noqa: E402

PROMISE_MS = 250.0
FEW = 10
_LIMIT_S = 30.0


@asynccontextmanager
async def schema(url: str) -> AsyncIterator[str]:
    """A schema of its own in the database of ``url``, dropped at the end."""
    name = f"replicas_{uuid.uuid4().hex}"
    parsed = sa.make_url(url).set(drivername="postgresql+psycopg")
    engine = sa.create_engine(parsed, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sa.schema.CreateSchema(name))
    try:
        yield parsed.update_query_dict({"options": f"-csearch_path={name}"}).render_as_string(hide_password=False)
    finally:
        with engine.connect() as connection:
            connection.execute(sa.schema.DropSchema(name, cascade=True))
        engine.dispose()


@asynccontextmanager
async def follower(url: str, *, hears: bool) -> AsyncIterator[Catalog]:
    """The other server's catalog, followed as a server follows it."""
    async with Database.open(url) as database:
        base = BaseModelSpec("tiny", "f" * 64, {}, 64)
        catalog = Catalog(base, AdapterRegistry(database, database.clock))
        await catalog.refresh()
        tasks = [asyncio.create_task(catalog.follow_loop(lambda: None))]
        if hears:
            tasks.append(asyncio.create_task(Notices(database).listen_loop(catalog.told)))
        try:
            yield catalog
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


class Sight:
    """When the other side sees something: told by its catalog, so that nothing has to look all the time.

    Args:
        catalog: of the other side.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._changed = asyncio.Event()
        catalog.on_change(lambda before, after: self._changed.set())

    async def after_ms(self, is_seen: Callable[[Catalog], bool]) -> float:
        """Milliseconds from now until ``is_seen``."""
        began = time.perf_counter()
        async with asyncio.timeout(_LIMIT_S):
            while not is_seen(self._catalog):
                self._changed.clear()
                await self._changed.wait()
        return (time.perf_counter() - began) * 1e3


def serves(name: str, catalog: Catalog) -> bool:
    """Whether the bare name means something there."""
    return name in catalog.snapshot.defaults


def is_gone(name: str, catalog: Catalog) -> bool:
    """Whether it does not."""
    return not serves(name, catalog)


def means(alias: str, model: str, catalog: Catalog) -> bool:
    """Whether the alias means that model there."""
    found = catalog.alias(alias)
    return found is not None and found.meaning == model


def draft(name: str, number: int) -> VersionDraft:
    """Some version; nobody reads its files."""
    return VersionDraft(name, f"{number:064x}", 2, 4096, 14, "f" * 64, "upload")


async def measure(url: str, *, hears: bool, adapters: int, changes: int) -> dict[str, list[float]]:
    """Milliseconds by kind of change."""
    took: dict[str, list[float]] = {"a version in service": [], "an alias moved": [], "a deletion": []}
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(schema(url))
        database = await stack.enter_async_context(Database.open(url))
        registry = AdapterRegistry(database, database.clock)
        aliases = AliasRegistry(database, database.clock, "tiny")
        for number in range(adapters):
            await registry.create_version(draft(f"there-{number}", number))
        catalog = await stack.enter_async_context(follower(url, hears=hears))
        sight = Sight(catalog)
        await asyncio.sleep(1.5)
        for number in range(changes):
            name = f"new-{number}"
            await registry.create_version(draft(name, adapters + number))
            took["a version in service"].append(await sight.after_ms(partial(serves, name)))
            await aliases.put("moving", [AliasTarget(model=f"{name}@1", weight=1)], expected=None)
            took["an alias moved"].append(await sight.after_ms(partial(means, "moving", f"{name}@1")))
            if number:
                old = f"new-{number - 1}"
                await registry.delete_adapter(old)
                took["a deletion"].append(await sight.after_ms(partial(is_gone, old)))
    return took


def percentile(samples: Sequence[float], share: float) -> float:
    """The sample that ``share`` of all do not exceed."""
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


async def main() -> int:
    """Measure, write the report, and say whether the promise holds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--changes", type=int, default=300)
    parser.add_argument("--adapters", type=int, default=1000)
    parser.add_argument("--out", default="replicas")
    given = parser.parse_args()
    url = os.environ.get("AMALGAM_TEST_POSTGRES_URL")
    if url is None:
        sys.exit("AMALGAM_TEST_POSTGRES_URL names no PostgreSQL; run this under deploy/test_services.sh")
    rows: list[Row] = []
    worst = 0.0
    for adapters in (FEW, given.adapters):
        told = await measure(url, hears=True, adapters=adapters, changes=given.changes)
        looked = await measure(url, hears=False, adapters=adapters, changes=max(10, given.changes // 10))
        for kind, samples in told.items():
            p99 = percentile(samples, 0.99)
            worst = max(worst, p99)
            extra = {
                "p50_ms": round(statistics.median(samples), 2),
                "p99_ms": round(p99, 2),
                "without_notices_p99_ms": round(percentile(looked[kind], 0.99), 1),
                "changes": len(samples),
                "adapters": adapters,
            }
            rows.append(Row(f"{kind}, {adapters} adapters", "ms", samples, looked[kind], extra))
            print(rows[-1].case, extra, flush=True)
    print(f"worst p99 with notices: {worst:.1f} ms; promised: {PROMISE_MS:.0f} ms")
    write_report(
        "How soon another server sees a change",
        rows,
        rounds=given.changes,
        out=given.out,
        notes={"promised": f"{PROMISE_MS:.0f} ms at p99", "worst p99 with notices": f"{worst:.1f} ms"},
        ours="with notices",
        theirs="looking every second",
    )
    return 0 if worst <= PROMISE_MS else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
