"""What a front costs: a front before one engine on Ray, against the same engine in the server's own process.

    python loadtests/front.py [--rounds 5] [--out front]        # about six minutes on 2 cores; needs amalgam[ray]

Both are up at once, with the same model, adapters and flags, and take turns within each round: streams one after
another for the first token, then bursts for the tokens in a second. The memory of a front is that of its HTTP process.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "server")]

from loadtests.bench_client import Figures, Load, run_load  # noqa: E402
from loadtests.report import Row, write_report  # noqa: E402
from loadtests.servers import START_LIMIT_S, Server, engine_environment, start_amalgam, start_front  # noqa: E402

PORT = 18631
RAY_PORT = 18639
FLAGS = ["--max-loras", "4", "--max-cpu-loras", "16", "--max-num-seqs", "32", "--max-model-len", "1024"]
MODELS = ("sql", "json", "code")
LOADS = {
    "one at a time": Load(12, 1, 64, 16, MODELS, 0),
    "eight at once": Load(48, 8, 64, 48, MODELS, 0),
}
MARKS = {
    ("one at a time", "ttft_p50_ms"): "at most 10 ms more",
    ("eight at once", "output_tokens_per_s"): "ratio ≥ 0.97",
}
SHOWN = {"ttft_p50_ms": "ms", "itl_p50_ms": "ms", "output_tokens_per_s": "tokens/s"}


@contextmanager
def engines(store: Path, folder: Path) -> Iterator[str]:
    """`amalgam engine` with one engine; its address."""
    command = [sys.executable, "-m", "amalgam", "engine", "--port", str(RAY_PORT), "--", *FLAGS]
    log = folder / "engines.log"
    environment = engine_environment(AMALGAM_STORE=str(store))
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        try:
            deadline = time.monotonic() + START_LIMIT_S
            while "Ready" not in log.read_text():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"the engines did not start:\n{log.read_text()[-3000:]}")
                time.sleep(0.2)
            yield f"ray://127.0.0.1:{RAY_PORT}"
        finally:
            process.terminate()
            process.wait(90)


def measure(servers: Mapping[str, Server], tokenizer: str, rounds: int) -> dict[tuple[str, str], list[Figures]]:
    """Every load against both in each round; the first round warms up, and sides alternate who begins."""
    seen: dict[tuple[str, str], list[Figures]] = {(side, load): [] for side in servers for load in LOADS}
    sides = list(servers)
    for number in range(rounds + 1):
        for name, load in LOADS.items():
            for side in sides if number % 2 else sides[::-1]:
                burst = Load(
                    load.requests, load.concurrency, load.input_tokens, load.output_tokens, load.models, number
                )
                figures = run_load(servers[side].url, tokenizer, burst)
                if figures.failed:
                    raise SystemExit(f"{figures.failed} requests failed at {side}")
                if number:
                    seen[side, name].append(figures)
        print(f"round {number}", file=sys.stderr)
    return seen


def rows_of(seen: Mapping[tuple[str, str], list[Figures]], front: Server, embedded: Server) -> list[Row]:
    """The front over the embedded engine."""
    rows = []
    for name in LOADS:
        for metric, unit in SHOWN.items():
            ours, theirs = ([getattr(one, metric) for one in seen[side, name]] for side in ("front", "embedded"))
            mark = MARKS.get((name, metric))
            rows.append(Row(f"{name}: {metric}", unit, ours, theirs, {} if mark is None else {"target": mark}))
    ours, theirs = ([server.front_rss_bytes() / 1e6] for server in (front, embedded))
    rows.append(Row("memory of the HTTP process", "MB", ours, theirs, {"target": "at most 250"}))
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", default="")
    given = parser.parse_args()
    from amalgam.demo.base_model import ensure_base_model
    from amalgam.settings import Settings

    model = ensure_base_model(Settings().storage.cache_dir, lambda text: None)
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        embedded = start_amalgam(folder / "embedded", FLAGS, sources=folder, port=PORT)
        stack.callback(embedded.stop)
        address = stack.enter_context(engines(folder / "shared", folder))
        front = start_front(folder / "shared", address, port=PORT + 1)
        stack.callback(front.stop)
        servers = {"front": front, "embedded": embedded}
        rows = rows_of(measure(servers, str(model), given.rounds), front, embedded)
    notes = {
        "loads": "; ".join(
            f"{case}: {one.requests} requests, {one.input_tokens} tokens in, {one.output_tokens} out, three adapters"
            for case, one in LOADS.items()
        ),
        "load average before": round(load_before, 2),
    }
    write_report(
        "A front before an engine on Ray, against the engine in the server", rows, rounds=given.rounds, out=given.out,
        notes=notes, ours="front", theirs="embedded",
    )  # fmt: skip


if __name__ == "__main__":
    main()
