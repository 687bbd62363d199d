"""What counting costs: CPU time per part of a stream, per request and per page, against prometheus_client's classes.

python loadtests/metrics_cost.py [--rounds 7] [--out metrics_cost]
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "server")]

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest  # noqa: E402

from amalgam.api.transport.observed import Observed  # noqa: E402
from amalgam.telemetry import metric_table as table  # noqa: E402
from amalgam.telemetry.context import RequestContext  # noqa: E402
from amalgam.telemetry.metrics import MAX_ADAPTER_LABELS, Metrics, TokenUsage  # noqa: E402
from amalgam.telemetry.series import Distribution  # noqa: E402
from amalgam.telemetry.server_state import ServerState  # noqa: E402
from loadtests.report import Row, write_report  # noqa: E402

PATH = "/v1/chat/completions"
PART = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":" the"}}]}\n\n'
)
PARTS = 5000
REPEATS = 20_000


async def sink(message: Any) -> None:
    """Stands for the network."""


def streaming(parts: int) -> Any:
    """An application that sends ``parts`` parts."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(parts):
            await send({"type": "http.response.body", "body": PART, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    return app


def cpu_us(work: Callable[[], object], per: int) -> float:
    """CPU microseconds of ``work``, divided by ``per``."""
    began = time.process_time()
    work()
    return (time.process_time() - began) / per * 1e6


def through(app: Any, times: int) -> Callable[[], object]:
    """``times`` requests to ``app``."""

    async def run() -> None:
        for _ in range(times):
            headers = [(b"host", b"x"), (b"content-type", b"application/json"), (b"user-agent", b"x")]
            await app({"type": "http", "method": "POST", "path": PATH, "headers": headers}, None, sink)

    return lambda: asyncio.run(run())


def watched(app: Any) -> Any:
    return Observed(app, Metrics(), {PATH: "chat_completions"}, access_log=False)


def observing(observe: Callable[[float], None]) -> Callable[[], object]:
    def work() -> None:
        for _ in range(REPEATS):
            observe(0.03)

    return work


def full_metrics() -> Metrics:
    """As many versions as have labels, each asked at two endpoints."""
    metrics = Metrics()
    for number in range(MAX_ADAPTER_LABELS):
        for endpoint in ("chat_completions", "completions"):
            watch = metrics.begin(endpoint, RequestContext("r", f"adapter-{number}@1"))
            watch.status = 200
            for _ in range(3):
                watch.part(PART, True)
            watch.part(b"", False)
            metrics.end(watch, 200, 0.5, TokenUsage(1, 2))
    return metrics


def full_registry() -> CollectorRegistry:
    """The same numbers in prometheus_client's classes."""
    registry = CollectorRegistry()
    requests = Counter("requests", "x", ("endpoint", "adapter", "code"), registry=registry)
    tokens = [Counter(name, "x", ("adapter",), registry=registry) for name in ("prompt", "completion")]
    seconds = Histogram("s", "x", ("endpoint", "adapter"), buckets=table.REQUEST_SECONDS.bounds, registry=registry)
    specs = (table.FIRST_TOKEN, table.INTER_TOKEN)
    latencies = [Histogram(s.name, "x", ("adapter",), buckets=s.bounds, registry=registry) for s in specs]
    for number in range(MAX_ADAPTER_LABELS):
        adapter = f"adapter-{number}@1"
        for endpoint in ("chat_completions", "completions"):
            requests.labels(endpoint, adapter, "200").inc()
            seconds.labels(endpoint, adapter).observe(0.5)
        for counter in tokens:
            counter.labels(adapter).inc()
        for latency in latencies:
            latency.labels(adapter).observe(0.03)
    return registry


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=7)
    arguments.add_argument("--out", default="")
    options = arguments.parse_args()
    ours = Distribution(table.INTER_TOKEN)
    theirs = Histogram("h", "x", ("adapter",), buckets=table.INTER_TOKEN.bounds).labels("a")
    metrics, registry, nothing = full_metrics(), full_registry(), CollectorRegistry()
    pairs: dict[str, tuple[Callable[[], object], Callable[[], object], int]] = {
        "a part of a stream, watched / bare": (
            through(watched(streaming(PARTS)), 1), through(streaming(PARTS), 1), PARTS,
        ),
        "a request, watched / bare": (through(watched(streaming(1)), REPEATS), through(streaming(1), REPEATS), REPEATS),
        "one observation": (observing(lambda value: ours.observe(value, ("a",))), observing(theirs.observe), REPEATS),
        f"a page of {MAX_ADAPTER_LABELS} versions, two endpoints": (
            lambda: metrics.scrape(ServerState()).text(nothing), lambda: generate_latest(registry), 1,
        ),
    }  # fmt: skip
    rows = []
    for case, (first, second, per) in pairs.items():
        samples = [(cpu_us(first, per), cpu_us(second, per)) for _ in range(options.rounds + 1)][1:]
        added = sorted(a - b for a, b in samples)[len(samples) // 2]
        rows.append(
            Row(case, "µs of CPU", [a for a, _ in samples], [b for _, b in samples], {"added": f"{added:.2f} µs"})
        )
    write_report(
        "What counting costs",
        rows,
        rounds=options.rounds,
        out=options.out,
        notes={},
        theirs="bare, or prometheus_client",
    )


if __name__ == "__main__":
    main()
