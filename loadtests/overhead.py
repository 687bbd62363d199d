"""What our front costs: Amalgam against vLLM's own server, same engine flags, model, adapter and requests.

Both servers run at once and take turns, so that a change of the machine's load meets both alike. Both load the same
LoRA operations for CPU, so the difference is the front alone.

    python loadtests/overhead.py [--rounds 7] [--out overhead]
"""

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from loadtests.bench_client import Figures, Load, run_load  # noqa: E402
from loadtests.report import Row, write_report  # noqa: E402
from loadtests.servers import Server, dtype_flags, start_amalgam, start_plain  # noqa: E402

FLAGS = ["--max-model-len", "1024", "--max-num-seqs", "32", "--max-loras", "3", "--max-lora-rank", "8"]
FLAGS += ["--max-cpu-loras", "8", "--no-enable-prefix-caching"]
PORTS = {"amalgam": 18431, "vllm": 18432}


def measure(servers: list[Server], tokenizer: str, rounds: int) -> dict[str, dict[str, list[Figures]]]:
    """{load: {server: figures}}; the first round warms up and is dropped, sides alternate who begins."""
    loads: dict[str, Callable[[int], Load]] = {
        "1 stream": lambda seed: Load(6, 1, 64, 48, ("sql",), seed),
        "8 streams": lambda seed: Load(32, 8, 64, 48, ("sql",), seed),
    }
    seen: dict[str, dict[str, list[Figures]]] = {name: {s.name: [] for s in servers} for name in loads}
    for round_number in range(rounds + 1):
        for name, make in loads.items():
            order = servers if round_number % 2 else servers[::-1]
            for server in order:
                figures = run_load(server.url, tokenizer, make(round_number))
                if figures.failed:
                    raise SystemExit(f"{server.name} failed {figures.failed} requests")
                if round_number:
                    seen[name][server.name].append(figures)
            print(f"round {round_number}, {name}", file=sys.stderr)
    return seen


def rows_of(seen: dict[str, dict[str, list[Figures]]]) -> list[Row]:
    """Medians, spreads and ratios."""
    rows = []
    for name, sides in seen.items():
        for metric, unit, target in (
            ("output_tokens_per_s", "tokens/s", "ratio ≥ 0.97"),
            ("ttft_p50_ms", "ms", "added ≤ 3 ms"),
            ("itl_p50_ms", "ms", ""),
        ):
            ours = [getattr(f, metric) for f in sides["amalgam"]]
            theirs = [getattr(f, metric) for f in sides["vllm"]]
            paired = [a - b for a, b in zip(ours, theirs, strict=True)]
            rows.append(
                Row(
                    case=f"{name}: {metric.removesuffix('_ms').replace('_', ' ')}",
                    unit=unit,
                    ours=ours,
                    theirs=theirs,
                    extra={"ours - theirs, median of rounds": round(statistics.median(paired), 3), "target": target},
                )
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", default="")
    parser.add_argument("--note", default="")
    arguments = parser.parse_args()
    from amalgam.demo.adapters import demo_adapter_folders
    from amalgam.demo.base_model import ensure_base_model
    from amalgam.settings import Settings

    model = str(ensure_base_model(Settings().storage.cache_dir, lambda text: None))
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        ours = start_amalgam(Path(folder) / "store", FLAGS, sources=Path(folder), port=PORTS["amalgam"])
        plain = start_plain(model, [*FLAGS, *dtype_flags()], {"sql": demo_adapter_folders()["sql"]}, port=PORTS["vllm"])
        try:
            seen = measure([ours, plain], model, arguments.rounds)
            rows = rows_of(seen)
            for case, value in (("all processes", "rss_bytes"), ("HTTP process", "front_rss_bytes")):
                sizes = [getattr(server, value)() / 1e6 for server in (ours, plain)]
                rows.append(Row(f"memory, {case}", "MB (PSS)", sizes[:1], sizes[1:], {}))
        finally:
            ours.stop()
            plain.stop()
    notes: dict[str, Any] = {"load average before": round(load_before, 2), "note": arguments.note}
    write_report(
        "Cost of the front", rows, rounds=arguments.rounds, out=arguments.out, notes=notes, theirs="vLLM's server"
    )


if __name__ == "__main__":
    main()
