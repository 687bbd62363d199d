"""What ten thousand registered adapters cost the server: start, pages, names, changes, memory. No model is involved.

The registry, the store, the services and the HTTP application are the real ones; the engine is a stand-in that
generates nothing, so nothing here says how fast tokens come. All adapters share one stored artifact, as digests may.
The same is measured with a few adapters, so that the ratio says what the number costs. ``/livez`` is asked all the
time beside each request: its slowest answer is how long that request kept every token stream of the process waiting.

    deploy/test_services.sh python loadtests/many_adapters.py [--adapters 10000] [--rounds 15] [--out many_adapters]

SQLite, and PostgreSQL too where AMALGAM_TEST_POSTGRES_URL names one.
"""

import argparse
import asyncio
import gc
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
import urllib.parse
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "server")]

from amalgam.domain.adapter import BaseModelSpec  # noqa: E402
from amalgam.domain.clock import utc_now  # noqa: E402
from amalgam.domain.version import VersionDraft  # noqa: E402
from amalgam.errors.requests import ModelNotFound  # noqa: E402
from amalgam.registry.adapters import AdapterRegistry  # noqa: E402
from amalgam.registry.database import Database, sqlite_url  # noqa: E402
from amalgam.services.catalog import Catalog  # noqa: E402
from amalgam.store.adapter_store import AdapterStore  # noqa: E402
from loadtests.report import Row, write_report  # noqa: E402
from loadtests.servers import Server  # noqa: E402
from tests.api.fake_engine import FakeEngine  # noqa: E402
from tests.support.running_app import ADMIN_KEY, API_KEY, served, start_app, write_adapter, write_base  # noqa: E402

FEW = 10
TASKS = ("sql", "json", "summarise", "classify", "translate", "extract", "rewrite", "route")
UNKNOWN = "tenant-0042-transalte"
TARGETS = {
    "resolve a name": "≤ 50 µs",
    "GET /admin/v1/adapters": "≤ 50 ms",
    "GET /admin/v1/adapters?search=sql": "≤ 50 ms",
    "GET /admin/v1/adapters?search=0042-sq": "≤ 50 ms",
    "GET /admin/v1/adapters?search=nothing": "≤ 50 ms",
    "GET /admin/v1/adapters?limit=1000": "≤ 50 ms",
}

Samples = dict[str, tuple[str, list[float]]]
"""Case -> unit and samples."""


def name_of(number: int) -> str:
    """Names as tenants give them: many that look alike."""
    return f"tenant-{number // len(TASKS):04}-{TASKS[number % len(TASKS)]}"


async def register(registry: AdapterRegistry, digest: str, count: int) -> list[float]:
    """Rows for ``count`` adapters of the same bytes; milliseconds of each."""
    took = []
    for number in range(count):
        draft = VersionDraft(name_of(number), digest, 2, 4096, 14, "f" * 64, "upload")
        began = time.perf_counter()
        await registry.create_version(draft)
        took.append((time.perf_counter() - began) * 1e3)
    return took


def store_one(folder: Path) -> str:
    """One artifact in the store, published as the store does it; its digest."""
    store = AdapterStore.open(folder / "store")
    made = write_adapter(folder / "sources" / "one")
    with store.stage(max_bytes=1 << 20) as staging:
        for path in made.iterdir():
            staging.receive(path.name, [path.read_bytes()])
        return store.publish(staging).digest


@contextmanager
def longest_pause_ms() -> Iterator[list[float]]:
    """The longest time that this event loop let others wait while the block ran, in milliseconds, as its only item."""
    pause = [0.0]

    async def tick() -> None:
        last = time.perf_counter()
        while True:
            await asyncio.sleep(0)
            now = time.perf_counter()
            pause[0] = max(pause[0], (now - last) * 1e3)
            last = now

    ticking = asyncio.create_task(tick())
    try:
        yield pause
    finally:
        ticking.cancel()


async def measure_services(registry: AdapterRegistry, count: int, rounds: int) -> Samples:
    """The catalog alone, without HTTP."""
    base = BaseModelSpec("tiny", "f" * 64, {}, 16)
    seen: Samples = {}

    def note(case: str, unit: str, value: float) -> None:
        seen.setdefault(case, (unit, []))[1].append(value)

    for round_number in range(rounds):
        catalog = Catalog(base, registry)
        began = time.perf_counter()
        await catalog.refresh()
        note("read the whole catalog", "ms", (time.perf_counter() - began) * 1e3)
        names = [name_of(number) for number in range(count)] + [f"{name_of(number)}@1" for number in range(count)]
        began = time.perf_counter()
        for name in names:
            catalog.resolve(name)
        note("resolve a name", "µs", (time.perf_counter() - began) / len(names) * 1e6)
        for case, unknown in (("unknown name", UNKNOWN), ("unknown version", f"{name_of(0)}@99")):
            for turn in ("first", "next"):
                began = time.perf_counter()
                try:
                    catalog.resolve(unknown)
                except ModelNotFound:
                    note(f"{case}, near names: {turn}", "ms", (time.perf_counter() - began) * 1e3)
        await registry.set_description(name_of(0), f"round {round_number}")
        await asyncio.sleep(0)
        with longest_pause_ms() as pause:
            await asyncio.sleep(0)
            began = time.perf_counter()
            await catalog.refresh()
            note("refresh after one change", "ms", (time.perf_counter() - began) * 1e3)
        note("refresh after one change, longest pause of the loop", "ms", pause[0])
    note("memory of the catalog", "MB", await catalog_megabytes(base, registry))
    return seen


async def catalog_megabytes(base: BaseModelSpec, registry: AdapterRegistry) -> float:
    """What Python holds for a catalog."""
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    catalog = Catalog(base, registry)
    await catalog.refresh()
    gc.collect()
    held = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert catalog.snapshot.versions
    return held / 1e6


@dataclass
class Client:
    """One kept connection to the server."""

    url: str
    key: str
    _kept: http.client.HTTPConnection = field(init=False)

    def __post_init__(self) -> None:
        self._kept = http.client.HTTPConnection(urllib.parse.urlsplit(self.url).netloc, timeout=60)

    def send(self, method: str, path: str, body: object = None) -> tuple[int, bytes]:
        """Status and body of the answer."""
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        sent = None if body is None else json.dumps(body)
        self._kept.request(method, path, sent, headers)
        try:
            answer = self._kept.getresponse()
        except http.client.RemoteDisconnected:
            # It was left alone for longer than the server keeps a connection; only rounds that warm up meet this.
            self._kept.request(method, path, sent, headers)
            answer = self._kept.getresponse()
        return answer.status, answer.read()


class Probe:
    """Asks ``/livez`` without pause from a thread of its own and remembers the slowest answer."""

    def __init__(self, url: str) -> None:
        self._client = Client(url, API_KEY)
        self._slowest_ms = 0.0
        self._answers = 0
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._ends.wait(0.001):
            began = time.perf_counter()
            try:
                self._client.send("GET", "/livez")
            except OSError:
                return
            self._slowest_ms = max(self._slowest_ms, (time.perf_counter() - began) * 1e3)
            self._answers += 1

    def take_ms(self) -> float:
        """The slowest since the last call, with the one that is under way."""
        seen = self._answers
        while self._answers < seen + 2 and self._thread.is_alive():
            time.sleep(0.001)
        slowest, self._slowest_ms = self._slowest_ms, 0.0
        return slowest

    def end(self) -> None:
        """Ask no more."""
        self._ends.set()
        self._thread.join(60)


def cases(admin: Client, client: Client, middle: str) -> dict[str, Callable[[int], tuple[int, bytes]]]:
    """What is asked over HTTP, by what the row says; the argument is the round."""
    chat = {"model": UNKNOWN, "messages": [{"role": "user", "content": "x"}]}
    listed = "/admin/v1/adapters"
    asked: dict[str, Callable[[int], tuple[int, bytes]]] = {
        "GET /v1/models": lambda _: client.send("GET", "/v1/models"),
        # A limit that nobody had: the page of all is written again, as after a change.
        "GET /v1/models, written anew": lambda turn: client.send("GET", f"/v1/models?limit={9990 - turn % 100}"),
        "GET /v1/models?limit=100": lambda _: client.send("GET", "/v1/models?limit=100"),
        "GET /v1/models?limit=100&after=…": lambda _: client.send("GET", f"/v1/models?limit=100&after={middle}"),
        "GET /v1/models/{model}": lambda _: client.send("GET", f"/v1/models/{middle}"),
        "POST /v1/chat/completions, unknown model": lambda _: client.send("POST", "/v1/chat/completions", chat),
        f"GET {listed}": lambda _: admin.send("GET", listed),
        f"GET {listed}?cursor=…": lambda _: admin.send("GET", f"{listed}?cursor={middle}"),
        f"GET {listed}?limit=1000": lambda _: admin.send("GET", f"{listed}?limit=1000"),
        f"GET {listed}/{{name}}": lambda _: admin.send("GET", f"{listed}/{middle}"),
        f"PATCH {listed}/{{name}}: move the default": lambda _: admin.send(
            "PATCH", f"{listed}/{middle}", {"default_version": 1}
        ),
        "GET /metrics": lambda _: client.send("GET", "/metrics"),
    }
    for search in ("sql", "0042-sq", "nothing"):
        asked[f"GET {listed}?search={search}"] = lambda _, s=search: admin.send("GET", f"{listed}?search={s}")  # type: ignore[misc]
    return asked


def measure_http(url: str, count: int, rounds: int) -> Samples:
    """Over a real connection, alone on the server but for the probe."""
    admin, client, probe = Client(url, ADMIN_KEY), Client(url, API_KEY), Probe(url)
    seen: Samples = {}
    for case, ask in cases(admin, client, name_of(count // 2)).items():
        for round_number in range(-2, rounds):
            probe.take_ms()
            began = time.perf_counter()
            status, body = ask(round_number)
            took_ms = (time.perf_counter() - began) * 1e3
            if status != (404 if "unknown" in case else 200):
                raise SystemExit(f"{case}: {status} {body[:300]!r}")
            if round_number >= 0:
                seen.setdefault(case, ("ms", []))[1].append(took_ms)
                seen.setdefault(f"{case}: /livez beside it", ("ms", []))[1].append(probe.take_ms())
    probe.end()
    return seen


@contextmanager
def serving(folder: Path, database_url: str) -> Iterator[tuple[Server, float]]:
    """The application in a process of its own, and the seconds it took to open."""
    command = [sys.executable, __file__, "--serve", str(folder), "--database", database_url]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        answer = json.loads(process.stdout.readline() or "{}")
        if not answer:
            raise SystemExit("the server did not start")
        yield Server("front", process, answer["url"]), answer["start_s"]
    finally:
        process.stdin.close()
        process.wait(60)


async def serve(folder: Path, database_url: str) -> None:
    """Be the server until standard input ends."""
    began = time.perf_counter()
    async with start_app(folder, FakeEngine(), database_url=database_url, register_demo=False) as running_app:
        start_s = time.perf_counter() - began
        async with served(running_app.app) as url:
            print(json.dumps({"url": url, "start_s": start_s}), flush=True)
            await asyncio.to_thread(sys.stdin.read)


@asynccontextmanager
async def registry_at(url: str) -> AsyncIterator[AdapterRegistry]:
    async with Database.open(url) as database:
        yield AdapterRegistry(database, utc_now)


def measure(folder: Path, url: str, count: int, rounds: int) -> Samples:
    """Everything, for one number of adapters on one database."""
    folder.mkdir(parents=True)
    write_base(folder / "base")

    async def in_process() -> Samples:
        async with registry_at(url) as registry:
            registering = await register(registry, store_one(folder), count)
            return {"write one adapter's row": ("ms", registering[-200:])} | await measure_services(
                registry, count, min(rounds, 7)
            )

    seen = asyncio.run(in_process())
    for _ in range(3):
        with serving(folder, url) as (server, start_s):
            seen.setdefault("open the application", ("s", []))[1].append(start_s)
            seen.setdefault("memory of the front", ("MB (PSS)", []))[1].append(server.front_rss_bytes() / 1e6)
    with serving(folder, url) as (server, _):
        return seen | measure_http(server.url, count, rounds)


def databases(folder: Path) -> dict[str, Callable[[str], str]]:
    """Kind -> URL of a fresh database for a given label."""
    kinds: dict[str, Callable[[str], str]] = {"SQLite": lambda label: sqlite_url(folder / f"{label}.db")}
    given = os.environ.get("AMALGAM_TEST_POSTGRES_URL")
    if given:
        import sqlalchemy as sa

        def fresh(label: str) -> str:
            url = sa.make_url(given).set(drivername="postgresql+psycopg")
            engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
            schema = f"many_{label}_{os.getpid()}"
            with engine.connect() as connection:
                connection.execute(sa.schema.CreateSchema(schema))
            engine.dispose()
            query = {"options": f"-csearch_path={schema}"}
            return url.update_query_dict(query).render_as_string(hide_password=False)

        kinds["PostgreSQL"] = fresh
    return kinds


def rows_of(kind: str, many: Samples, few: Samples) -> list[Row]:
    """One row a case, with its target and whether the median keeps it."""
    rows = []
    for case, (unit, samples) in many.items():
        extra: dict[str, object] = {}
        if case in TARGETS:
            limit = float(TARGETS[case].split()[1])
            kept = "kept" if statistics.median(samples) <= limit else "missed"
            extra = {"target": f"{TARGETS[case]}, {kept}"}
        rows.append(Row(f"{kind}: {case}", unit, samples, few[case][1], extra))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", default="")
    parser.add_argument("--note", default="")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--database", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        asyncio.run(serve(arguments.serve, arguments.database))
        return
    load_before = os.getloadavg()[0]
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for kind, fresh in databases(Path(folder)).items():
            few = measure(Path(folder) / f"{kind}-few", fresh("few"), FEW, arguments.rounds)
            many = measure(Path(folder) / f"{kind}-many", fresh("many"), arguments.adapters, arguments.rounds)
            rows += rows_of(kind, many, few)
            print(f"{kind}: done", file=sys.stderr)
    notes = {
        "Registered adapters": f"{arguments.adapters:,}, and {FEW} beside them",
        "Engine": "a stand-in that generates nothing; registry, store, services and HTTP are the real ones",
        "load average before": round(load_before, 2),
        "note": arguments.note,
    }
    write_report(
        "Many registered adapters", rows, rounds=arguments.rounds, out=arguments.out, notes=notes,
        ours=f"{arguments.adapters:,} adapters", theirs=f"{FEW} adapters",
    )  # fmt: skip


if __name__ == "__main__":
    main()
