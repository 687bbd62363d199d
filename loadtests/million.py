"""What a million registered adapters cost a server that keeps some thousands of them in memory. No model is involved.

The registry, the services and the HTTP application are the real ones; the engine is a stand-in that generates nothing,
and nobody reads the adapters' files, which do not exist. The same is measured with ten adapters, so that the ratio says
what the number costs. Rows are written as they would be by a million uploads, only many at once.

    deploy/test_services.sh python loadtests/million.py [--adapters 1000000] [--rounds 15] [--out million]

SQLite, and PostgreSQL too where AMALGAM_TEST_POSTGRES_URL names one. Takes a quarter of an hour and 3 GB of disk.
"""

import argparse
import asyncio
import gc
import os
import random
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Final

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "server")]

import sqlalchemy as sa  # noqa: E402

from amalgam.domain.adapter import BaseModelSpec  # noqa: E402
from amalgam.domain.clock import utc_now  # noqa: E402
from amalgam.errors.requests import ModelNotFound  # noqa: E402
from amalgam.registry.adapters import AdapterRegistry  # noqa: E402
from amalgam.registry.database import Database  # noqa: E402
from amalgam.registry.names import NameRegistry  # noqa: E402
from amalgam.registry.notices import Notices  # noqa: E402
from amalgam.registry.profiles import ProfileRegistry  # noqa: E402
from amalgam.registry.routers import RouterRegistry  # noqa: E402
from amalgam.registry.tables import adapters, registry_state, versions  # noqa: E402
from amalgam.services.catalog import Catalog  # noqa: E402
from amalgam.services.known_names import MOST_VERSIONS  # noqa: E402
from loadtests.many_adapters import TASKS, Client, Samples, databases, longest_pause_ms, serving  # noqa: E402
from loadtests.replicas import Sight  # noqa: E402
from loadtests.report import Row, write_report  # noqa: E402
from tests.support.running_app import ADMIN_KEY, API_KEY, write_base  # noqa: E402

FEW: Final = 10
WEIGHED: Final = 2_000
_CHUNK: Final = 20_000
UNKNOWN: Final = "tenant-004242-transalte"
BASE: Final = BaseModelSpec("tiny", "f" * 64, {}, 16)
LISTED: Final = "/admin/v1/adapters"
MARKS: Final = {
    "a hot name": 5.0,
    "a cold name": 5.0,
    "an unknown name, with near ones": 10.0,
    "an unknown version, with the newest ones": 10.0,
    "GET /v1/models?limit=100": 50.0,
    "GET /v1/models?limit=100&after=…": 50.0,
    "GET /v1/models, 1,000 names": 50.0,
    f"GET {LISTED}": 50.0,
    f"GET {LISTED}?cursor=…": 50.0,
    "a change seen by another front": 250.0,
}
MOST_MORE: Final = {"open the application": 3.0, "memory of the front": 200.0}
"""Of what is measured with ten adapters as well: by how much it may be more."""


def name_of(number: int) -> str:
    """Names as tenants give them: many that look alike."""
    return f"tenant-{number // len(TASKS):06}-{TASKS[number % len(TASKS)]}"


def rows(count: int) -> Iterator[tuple[dict[str, object], dict[str, object]]]:
    """Of each adapter, its row and that of its version; every version has bytes of its own."""
    now = utc_now()
    for number in range(count):
        name = name_of(number)
        adapter = {"name": name, "description": "", "default_version": 1, "next_version": 2, "created_at": now}
        version = {
            "name": name, "number": 1, "digest": f"{number:064x}", "rank": 16, "size_bytes": 5 << 20,
            "module_count": 112, "base_fingerprint": "f" * 64, "source": "upload", "warnings": [], "proved": True,
            "created_at": now, "dtype": "bfloat16", "revision": 1,
        }  # fmt: skip
        yield adapter | {"mirrored": name[::-1], "revision": 1}, version


async def fill(database: Database, count: int) -> None:
    """Write ``count`` adapters, and let PostgreSQL look at its tables, as it does by itself after a while."""
    left = rows(count)
    while chunk := list(islice(left, _CHUNK)):
        async with database.write(statement_s=600) as connection:
            await connection.execute(adapters.insert(), [adapter for adapter, _ in chunk])
            await connection.execute(versions.insert(), [version for _, version in chunk])
    async with database.write(statement_s=600) as connection:
        await connection.execute(registry_state.update().values(revision=1, served_versions=count))
        if database.is_shared:
            for table in ("adapters", "versions"):
                await connection.execute(sa.text(f"ANALYZE {table}"))


def catalog_on(database: Database) -> Catalog:
    """As a server has it."""
    profiles = ProfileRegistry(database, database.clock)
    names = NameRegistry(database)
    return Catalog(BASE, AdapterRegistry(database, database.clock), profiles, RouterRegistry(database), names)


def note(seen: Samples, case: str, unit: str, value: float) -> None:
    seen.setdefault(case, (unit, []))[1].append(value)


async def resolved(catalog: Catalog, name: str) -> bool:
    """Whether ``name`` means something."""
    try:
        await catalog.found(partial(catalog.resolve, name))
    except ModelNotFound:
        return False
    return True


async def measure_names(database: Database, count: int, rounds: int) -> Samples:
    """The catalog alone, without HTTP."""
    seen: Samples = {}
    draws = random.Random(count)
    for _ in range(rounds):
        catalog = catalog_on(database)
        began = time.perf_counter()
        await catalog.refresh()
        note(seen, "read what everybody needs", "ms", (time.perf_counter() - began) * 1e3)
        names = [name_of(number) for number in draws.sample(range(count), min(count, 200))]
        for name in names:
            began = time.perf_counter()
            assert await resolved(catalog, name)
            note(seen, "a cold name", "ms", (time.perf_counter() - began) * 1e3)
        began = time.perf_counter()
        for _ in range(10):
            for name in names:
                catalog.resolve(name)
        note(seen, "a hot name", "µs", (time.perf_counter() - began) / len(names) / 10 * 1e6)
        for case, unknown in (
            ("an unknown name, with near ones", f"{UNKNOWN}{draws.randrange(10)}"),
            ("an unknown version, with the newest ones", f"{names[0]}@9"),
        ):
            began = time.perf_counter()
            assert not await resolved(catalog, unknown)
            note(seen, case, "ms", (time.perf_counter() - began) * 1e3)
        began = time.perf_counter()
        crowd = await asyncio.gather(*(resolved(catalog, f"nobody-{number}") for number in range(640)))
        note(seen, "640 unknown names at once, each", "ms", (time.perf_counter() - began) / len(crowd) * 1e3)
    note(seen, f"memory of {WEIGHED:,} hot names", "MB", await hot_megabytes(database, count))
    return seen


async def hot_megabytes(database: Database, count: int) -> float:
    """What Python holds for a catalog that has been asked for so many names."""
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    catalog = catalog_on(database)
    await catalog.refresh()
    for number in range(0, count, max(1, count // WEIGHED)):
        await resolved(catalog, name_of(number))
    gc.collect()
    held = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    return held / 1e6


@asynccontextmanager
async def followed(catalog: Catalog, database: Database) -> AsyncIterator[None]:
    """The other server's catalog, followed as a server follows it."""
    await catalog.refresh()
    tasks = [asyncio.create_task(catalog.follow_loop(lambda: None))]
    if database.is_shared:
        tasks.append(asyncio.create_task(Notices(database).listen_loop(catalog.told)))
    try:
        await asyncio.sleep(1.5)
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def measure_changes(url: str, database: Database, changes: int) -> Samples:
    """From the return of the call that moved a default until the other side's next request is answered by it.

    On SQLite nobody tells, so the other side looks every second.
    """
    seen: Samples = {}
    registry, name = AdapterRegistry(database, database.clock), name_of(3)
    async with Database.open(url) as other:
        catalog = catalog_on(other)
        async with followed(catalog, other):
            version = await registry.get_version(name, 1)
            sight = Sight(catalog)
            for number in range(changes):
                assert await resolved(catalog, name)
                before = catalog.snapshot
                with longest_pause_ms() as pause:
                    await registry.set_default(name, version.number)
                    took_ms = await sight.after_ms(lambda now, known=before: now.snapshot is not known)  # type: ignore[misc]
                note(seen, "a change seen by another front", "ms", took_ms)
                note(seen, "longest pause of the loop meanwhile", "ms", pause[0])
                await asyncio.sleep(0.01 * (number % 7))
    return seen


def measure_http(url: str, count: int, rounds: int) -> Samples:
    """Pages over a real connection."""
    admin, client, seen = Client(url, ADMIN_KEY), Client(url, API_KEY), Samples()
    middle, chat = name_of(count // 2), {"model": UNKNOWN, "messages": [{"role": "user", "content": "x"}]}
    most = min(count, 1000)
    asked: dict[str, Callable[[int], tuple[int, bytes]]] = {
        # A limit that nobody had: the page is read and written again, as after a change.
        "GET /v1/models?limit=100": lambda turn: client.send("GET", f"/v1/models?limit={100 + turn}"),
        "GET /v1/models?limit=100&after=…": lambda turn: client.send(
            "GET", f"/v1/models?limit={100 + turn}&after={middle}"
        ),
        "GET /v1/models, 1,000 names": lambda turn: client.send("GET", f"/v1/models?limit={most - turn % 8}"),
        "GET /v1/models/{model}": lambda _: client.send("GET", f"/v1/models/{middle}"),
        "POST /v1/chat/completions, unknown model": lambda _: client.send("POST", "/v1/chat/completions", chat),
        f"GET {LISTED}": lambda _: admin.send("GET", LISTED),
        f"GET {LISTED}?cursor=…": lambda _: admin.send("GET", f"{LISTED}?cursor={middle}"),
        f"GET {LISTED}/{{name}}": lambda _: admin.send("GET", f"{LISTED}/{middle}"),
        f"PATCH {LISTED}/{{name}}: move the default": lambda _: admin.send(
            "PATCH", f"{LISTED}/{middle}", {"default_version": 1}
        ),
        f"GET {LISTED}?search=sql": lambda _: admin.send("GET", f"{LISTED}?search=sql"),
        f"GET {LISTED}?search=0042-sq": lambda _: admin.send("GET", f"{LISTED}?search=0042-sq"),
        f"GET {LISTED}?search=nothing": lambda _: admin.send("GET", f"{LISTED}?search=nothing"),
        "GET /metrics": lambda _: client.send("GET", "/metrics"),
    }
    for case, ask in asked.items():
        for turn in range(-2, rounds):
            began = time.perf_counter()
            status, body = ask(turn + 2)
            took_ms = (time.perf_counter() - began) * 1e3
            if status != (404 if "unknown" in case else 200):
                raise SystemExit(f"{case}: {status} {body[:300]!r}")
            if turn >= 0:
                note(seen, case, "ms", took_ms)
    return seen


async def measure_registry(url: str, count: int, rounds: int) -> Samples:
    """Fill a database, and measure all that needs no HTTP."""
    async with Database.open(url) as database:
        await fill(database, count)
        return await measure_names(database, count, rounds) | await measure_changes(url, database, rounds * 4)


def measure(folder: Path, urls: dict[int, str], rounds: int) -> dict[int, Samples]:
    """Both sides; starts of the application take turns."""
    seen: dict[int, Samples] = {}
    for count, url in urls.items():
        write_base(folder / str(count) / "base")
        seen[count] = asyncio.run(measure_registry(url, count, rounds))
        print(f"{count:,} adapters: names measured", file=sys.stderr, flush=True)
    for _ in range(5):
        for count, url in urls.items():
            with serving(folder / str(count), url) as (server, start_s):
                note(seen[count], "open the application", "s", start_s)
                note(seen[count], "memory of the front", "MB (PSS)", server.front_rss_bytes() / 1e6)
    for count, url in urls.items():
        with serving(folder / str(count), url) as (server, _):
            seen[count] |= measure_http(server.url, count, rounds)
            note(seen[count], "memory of the front after these requests", "MB (PSS)", server.front_rss_bytes() / 1e6)
    return seen


def rows_of(kind: str, many: Samples, few: Samples) -> list[Row]:
    """One row a case, with its mark and whether it is kept: by the median, of changes by the 99th percentile."""
    found = []
    for case, (unit, samples) in many.items():
        extra: dict[str, object] = {}
        ordered = sorted(samples)
        if len(samples) >= 50 or "another front" in case:
            extra["p99"] = round(ordered[int(0.99 * (len(ordered) - 1))], 2)
        mark = MARKS.get(case)
        if mark is not None and not (kind == "SQLite" and "another front" in case):
            value = float(extra["p99"]) if "another front" in case else statistics.median(samples)  # type: ignore[arg-type]
            extra["mark"] = f"≤ {mark:g} {unit}, {'kept' if value <= mark else 'missed'}"
        more = MOST_MORE.get(case)
        if more is not None:
            by = statistics.median(samples) - statistics.median(few[case][1])
            extra["mark"] = f"≤ {more:g} more, {by:.2f} more, {'kept' if by <= more else 'missed'}"
        found.append(Row(f"{kind}: {case}", unit, samples, few[case][1], extra))
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", default="")
    parser.add_argument("--note", default="")
    parser.add_argument("--only", default="", help="one kind of database")
    given = parser.parse_args()
    load_before, reported = os.getloadavg()[0], []
    with tempfile.TemporaryDirectory() as folder:
        for kind, fresh in databases(Path(folder)).items():
            if given.only not in ("", kind):
                continue
            urls = {FEW: fresh("few"), given.adapters: fresh("many")}
            seen = measure(Path(folder) / kind, urls, given.rounds)
            reported += rows_of(kind, seen[given.adapters], seen[FEW])
            print(f"{kind}: done", file=sys.stderr, flush=True)
    notes = {
        "Registered adapters": f"{given.adapters:,}, and {FEW} beside them; kept in memory: up to {MOST_VERSIONS:,}",
        "Engine": "a stand-in that generates nothing; registry, services and HTTP are the real ones",
        "load average before": round(load_before, 2),
        "note": given.note,
    }
    write_report(
        "A million registered adapters", reported, rounds=given.rounds, out=given.out, notes=notes,
        ours=f"{given.adapters:,} adapters", theirs=f"{FEW} adapters",
    )  # fmt: skip


if __name__ == "__main__":
    main()
