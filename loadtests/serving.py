"""Many adapters at once: Amalgam against vLLM's own server, same engine flags, model, adapters and requests.

Both servers run at once and take turns with vLLM's own benchmark client, so that a change of the machine's load meets
both alike. With ``--plain like`` vLLM's server computes in the same type and loads the same LoRA operations for CPU, so
that what differs is Amalgam around the engine; with ``--plain stock`` it is as it is without Amalgam. For each number
of registered adapters both are started anew; plain vLLM gets its adapters at its start, Amalgam finds them in its
registry. Synthetic adapters of rank 8 on all linear modules; there are few different files, which share their bytes
under many names.

    python loadtests/serving.py [--rounds 5] [--out serving]      # all of it: three quarters of an hour on 2 cores
    python loadtests/serving.py --quick                           # one number of adapters, short bursts: two minutes
    python loadtests/serving.py --plain stock --counts 8 --out serving_stock

With --out the rows and a page with plots (`results/<out>.html`) are written.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "server")]

from loadtests.bench_client import Figures, Load, Record, run_load  # noqa: E402
from loadtests.fairness import (  # noqa: E402
    POPULARITIES,
    Popularity,
    by_adapter,
    jain_index,
    schedule,
    worst_over_median,
)
from loadtests.population import register_population, write_population  # noqa: E402
from loadtests.report import RESULTS, Row, write_report  # noqa: E402
from loadtests.servers import Server, dtype_flags, start_amalgam, start_plain  # noqa: E402
from loadtests.serving_page import serving_page  # noqa: E402

PORTS = {"amalgam": 18451, "vllm": 18452}
SLOTS = 16
RESIDENT = 256
RANK = 8
FLAGS = ["--max-model-len", "1024", "--max-num-seqs", "32", "--max-lora-rank", str(RANK), "--no-enable-prefix-caching"]
SIDES = ("amalgam", "vllm")
MIN_PER_ADAPTER = 5
"""Requests of an adapter, over all rounds, from which its tail is worth a word."""
METRICS = {
    "output_tokens_per_s": "tokens/s", "requests_per_s": "1/s", "ttft_p50_ms": "ms", "ttft_p99_ms": "ms",
    "itl_p50_ms": "ms", "itl_p99_ms": "ms", "tpot_p50_ms": "ms", "e2e_p50_ms": "ms", "e2e_p99_ms": "ms",
}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What a run measures."""

    counts: tuple[int, ...]
    rounds: int
    load: Load
    some: tuple[Popularity, ...] = POPULARITIES
    slots: int = SLOTS
    resident: int = RESIDENT

    @property
    def flags(self) -> list[str]:
        """Of both engines."""
        return [*FLAGS, "--max-loras", str(self.slots), "--max-cpu-loras", str(self.resident)]

    def popularities(self, count: int) -> tuple[Popularity, ...]:
        """With one adapter they are all the same; five are there for the loss from few to many, by zipf alone."""
        few: dict[int, tuple[Popularity, ...]] = {1: ("identical",), 5: ("zipf",)}
        return few.get(count, self.some)


FULL = Plan((1, 5, 8, 64, 1000), 5, Load(32, 16, 64, 32, (), 0))
QUICK = Plan((8,), 1, Load(12, 6, 32, 8, (), 0))

Seen = dict[tuple[int, Popularity], dict[str, list[Figures]]]
"""(registered adapters, popularity) -> side -> one burst a round."""


def measure_count(
    servers: Sequence[Server], tokenizer: str, plan: Plan, adapters: Sequence[str]
) -> dict[Popularity, dict[str, list[Figures]]]:
    """Bursts of every popularity; the first round warms up and is dropped, sides alternate who begins."""
    seen: dict[Popularity, dict[str, list[Figures]]] = {}
    for round_number in range(plan.rounds + 1):
        for popularity in plan.popularities(len(adapters)):
            asked = schedule(popularity, adapters, plan.load.requests, round_number)
            load = replace(plan.load, models=tuple(asked), seed=round_number)
            for server in servers if round_number % 2 else servers[::-1]:
                figures = run_load(server.url, tokenizer, load)
                if figures.failed:
                    raise SystemExit(f"{server.name} failed {figures.failed} requests")
                if round_number:
                    seen.setdefault(popularity, {name: [] for name in SIDES})[server.name].append(figures)
            print(f"{len(adapters)} adapters, round {round_number}, {popularity}", file=sys.stderr)
    return seen


def measure(plan: Plan, model: Path, folder: Path, *, alike: bool) -> tuple[Seen, list[Row]]:
    """Everything; and the memory and start of each side by number of adapters."""
    plain_flags = [*plan.flags, *(dtype_flags() if alike else [])]
    plain_lora = "amalgam" if alike else "stock"
    seen: Seen = {}
    rows: list[Row] = []
    folders = write_population(folder / "adapters", max(plan.counts), rank=RANK)
    for count in plan.counts:
        some = dict(list(folders.items())[:count])
        store = folder / f"store-{count}"
        register_population(store, some, model, max_rank=RANK)
        starts: dict[str, Callable[[], Server]] = {
            "amalgam": lambda at=store: start_amalgam(  # type: ignore[misc]
                at, plan.flags, sources=folder, port=PORTS["amalgam"], AMALGAM_REGISTER_DEMO="false"
            ),
            "vllm": lambda them=some: start_plain(  # type: ignore[misc]
                str(model), plain_flags, them, port=PORTS["vllm"], AMALGAM_CPU_LORA=plain_lora
            ),
        }
        servers: list[Server] = []
        took: dict[str, float] = {}
        try:
            for name, start in starts.items():
                began = time.monotonic()
                servers.append(start())
                took[name] = time.monotonic() - began
            for popularity, sides in measure_count(servers, str(model), plan, list(some)).items():
                seen[count, popularity] = sides
            sizes = [server.rss_bytes() / 1e6 for server in servers]
        finally:
            for server in servers:
                server.stop()
        case = f"{count} registered"
        rows.append(Row(f"{case}: memory, all processes", "MB (PSS)", sizes[:1], sizes[1:], {}))
        rows.append(Row(f"{case}: start to ready", "s", [took["amalgam"]], [took["vllm"]], {}))
    return seen, rows


def fairness_of(rounds: Sequence[Figures]) -> dict[str, float]:
    """Over all rounds together: Jain's index of the adapters' tokens per second of waiting, and the worst tail.

    An adapter's share is its tokens over the seconds its requests took, so one that is asked for more often does not
    count as served better.
    """
    records: list[Record] = [record for figures in rounds for record in figures.records]
    tokens = by_adapter((record.model, float(record.tokens)) for record in records)
    latencies = by_adapter((record.model, record.latency_ms / 1e3) for record in records)
    found = {"jain": jain_index(sum(tokens[name]) / sum(latencies[name]) for name in tokens)}
    ttfts = by_adapter((record.model, record.ttft_ms) for record in records)
    often = {name: its for name, its in ttfts.items() if len(its) >= MIN_PER_ADAPTER}
    if len(often) > 1:
        found["worst over median"] = worst_over_median(often)
    return found


def rows_of(seen: Seen, slots: int) -> list[Row]:
    """Medians of the rounds, spreads and ratios; fairness over the rounds together."""
    rows = []
    for (count, popularity), sides in seen.items():
        case = f"{count} registered, {popularity}"
        for metric, unit in METRICS.items():
            ours, theirs = ([getattr(figures, metric) for figures in sides[name]] for name in SIDES)
            target = {"target": "ratio ≥ 0.97"} if metric == "output_tokens_per_s" else {}
            rows.append(Row(f"{case}: {metric}", unit, ours, theirs, target))
        ours_fair, theirs_fair = (fairness_of(sides[name]) for name in SIDES)
        rows.append(Row(f"{case}: Jain's index", "1", [ours_fair["jain"]], [theirs_fair["jain"]], {}))
        if "worst over median" in ours_fair and "worst over median" in theirs_fair:
            ours, theirs = ([fair["worst over median"]] for fair in (ours_fair, theirs_fair))
            goal = {"target": "≤ 3"} if count > slots else {}
            rows.append(Row(f"{case}: worst adapter's p99 TTFT over the median one's", "×", ours, theirs, goal))
    return rows + _losses(seen)


def _losses(seen: Seen) -> list[Row]:
    """Throughput by zipf with the most adapters over that with the fewest but one, on each side."""
    counts = sorted(count for count, popularity in seen if popularity == "zipf")
    if len(counts) < 2:
        return []
    kept: list[list[float]] = []
    for side in SIDES:
        few, many = (
            statistics.median(figures.output_tokens_per_s for figures in seen[count, "zipf"][side])
            for count in (counts[0], counts[-1])
        )
        kept.append([many / few])
    ours, theirs = kept
    return [Row(f"zipf: throughput, {counts[-1]} registered over {counts[0]}", "×", ours, theirs, {"target": "≥ 0.94"})]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="8 adapters, short bursts, one round")
    parser.add_argument("--plain", choices=("like", "stock"), default="like", help="what vLLM's server is")
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--counts", type=int, nargs="*", default=[], help="registered adapters")
    parser.add_argument("--slots", type=int, default=SLOTS, help="different adapters in a batch")
    parser.add_argument("--resident", type=int, default=RESIDENT, help="adapters in memory")
    parser.add_argument("--popularities", nargs="*", choices=POPULARITIES, default=POPULARITIES)
    parser.add_argument("--out", default="")
    parser.add_argument("--note", default="")
    arguments = parser.parse_args()
    from amalgam.demo.base_model import ensure_base_model
    from amalgam.settings import Settings

    plan = QUICK if arguments.quick else FULL
    plan = replace(plan, counts=tuple(arguments.counts) or plan.counts, rounds=arguments.rounds or plan.rounds)
    plan = replace(plan, some=tuple(arguments.popularities), slots=arguments.slots, resident=arguments.resident)
    model = ensure_base_model(Settings().storage.cache_dir, lambda text: None)
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        seen, rows = measure(plan, model, Path(folder), alike=arguments.plain == "like")
    load = plan.load
    notes: dict[str, Any] = {
        "A burst": f"{load.requests} requests, {load.concurrency} at once, {load.input_tokens} tokens in, "
        f"{load.output_tokens} out; {plan.slots} slots, {plan.resident} resident adapters, rank {RANK}",
        "vLLM's server": {
            "like": "with Amalgam's LoRA operations on CPU, threads bound to no core, and in Amalgam's type",
            "stock": "as it is by itself: its own LoRA operations, the checkpoint's type",
        }[arguments.plain],
        "load average before": round(load_before, 2),
        "load average after": round(os.getloadavg()[0], 2),
        "note": arguments.note,
    }
    report = write_report(
        "Serving many adapters", rows_of(seen, plan.slots) + rows, rounds=plan.rounds, out=arguments.out, notes=notes,
        theirs="vLLM's server",
    )  # fmt: skip
    if arguments.out:
        (RESULTS / f"{arguments.out}.html").write_text(serving_page(report))


if __name__ == "__main__":
    main()
