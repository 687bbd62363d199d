"""What many registered adapters cost against few: two Amalgam servers, 5 and 1000 registered, in turn.

`serving.py` starts its servers anew for each number of adapters, minutes apart, in which these machines change their
speed by more than the loss. Here both are up at once and take turns within each round, with the same flags and bursts
of the same seeds, by zipf over what each has registered.

    python loadtests/serving_loss.py [--rounds 9] [--out serving_loss]      # about six minutes on 2 cores
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "server")]

from loadtests.bench_client import Figures, run_load  # noqa: E402
from loadtests.fairness import schedule  # noqa: E402
from loadtests.population import register_population, write_population  # noqa: E402
from loadtests.report import Row, write_report  # noqa: E402
from loadtests.servers import Server, start_amalgam  # noqa: E402
from loadtests.serving import FULL, METRICS, RANK  # noqa: E402

PORT = 18471
COUNTS = (1000, 5)
"""Registered adapters; rows are of the first over the second."""


def start(folder: Path, model: Path, started: dict[int, tuple[Server, list[str]]]) -> None:
    """Put servers into ``started`` by their number of registered adapters, with the names of these."""
    folders = write_population(folder / "adapters", max(COUNTS), rank=RANK)
    for place, count in enumerate(COUNTS):
        some = dict(list(folders.items())[:count])
        store = folder / f"store-{count}"
        register_population(store, some, model, max_rank=RANK)
        server = start_amalgam(store, FULL.flags, sources=folder, port=PORT + place, AMALGAM_REGISTER_DEMO="false")
        started[count] = server, list(some)


def measure(servers: Mapping[int, tuple[Server, list[str]]], tokenizer: str, rounds: int) -> dict[int, list[Figures]]:
    """One burst a round and server; the first round warms up and is dropped, sides alternate who begins."""
    seen: dict[int, list[Figures]] = {count: [] for count in servers}
    for round_number in range(rounds + 1):
        for count in COUNTS if round_number % 2 else COUNTS[::-1]:
            server, names = servers[count]
            asked = schedule("zipf", names, FULL.load.requests, round_number)
            figures = run_load(server.url, tokenizer, replace(FULL.load, models=tuple(asked), seed=round_number))
            if figures.failed:
                raise SystemExit(f"{figures.failed} requests failed with {count} registered")
            if round_number:
                seen[count].append(figures)
        print(f"round {round_number}", file=sys.stderr)
    return seen


def rows_of(seen: Mapping[int, list[Figures]]) -> list[Row]:
    """Many over few."""
    rows = []
    for metric, unit in METRICS.items():
        many, few = ([getattr(figures, metric) for figures in seen[count]] for count in COUNTS)
        rows.append(Row(metric, unit, many, few, {"target": "ratio ≥ 0.94"} if metric == "output_tokens_per_s" else {}))
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", default="")
    arguments = parser.parse_args()
    from amalgam.demo.base_model import ensure_base_model
    from amalgam.settings import Settings

    model = ensure_base_model(Settings().storage.cache_dir, lambda text: None)
    load_before = os.getloadavg()[0]
    servers: dict[int, tuple[Server, list[str]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            start(Path(folder), model, servers)
            seen = measure(servers, str(model), arguments.rounds)
        finally:
            for server, _ in servers.values():
                server.stop()
    load = FULL.load
    notes = {
        "A burst": f"{load.requests} requests, {load.concurrency} at once, {load.input_tokens} tokens in, "
        f"{load.output_tokens} out, by zipf; {FULL.slots} slots, {FULL.resident} resident adapters, rank {RANK}",
        "load average before": round(load_before, 2),
    }
    write_report(
        "Many registered adapters against few", rows_of(seen), rounds=arguments.rounds, out=arguments.out, notes=notes,
        ours=f"{COUNTS[0]} registered", theirs=f"{COUNTS[1]} registered",
    )  # fmt: skip


if __name__ == "__main__":
    main()
