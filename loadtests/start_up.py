"""From the command to the first answer of a probe: `amalgam serve` and vLLM's own server, same flags, warm caches.

    python loadtests/start_up.py --out start_up

The two start in turn, and nothing else should run beside them. Amalgam also starts its merge worker and its blend
process, opens the registry, and registers the demo adapters on the first start. The split is what it says of its start:
seconds of the command line's own imports, of the engine's import, of its core until the model is loaded and profiled,
and of the endpoints.
"""

import argparse
import json
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from loadtests.report import Row, write_report
from loadtests.servers import Server, dtype_flags, start_amalgam, start_plain

PORT = 18571
FLAGS = [
    *("--max-loras", "4", "--max-cpu-loras", "64", "--max-lora-rank", "32"),
    *("--max-model-len", "2048", "--max-num-seqs", "64"),
    *("--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--structured-outputs-config.backend", "xgrammar"),
]
"""What `amalgam serve` gives vLLM for the demo model, for the server beside it."""


def timed(start: Callable[[], Server]) -> tuple[float, dict[str, float]]:
    """Seconds until the server is ready, and its own split where it tells one."""
    began = time.monotonic()
    server = start()
    took_s = time.monotonic() - began
    try:
        return took_s, split(server) if server.name == "amalgam" else {}
    finally:
        server.stop()


def split(server: Server) -> dict[str, float]:
    """Seconds by phase, as the server says."""
    with urllib.request.urlopen(f"{server.url}/admin/v1/engine", timeout=30) as answer:
        return dict(json.load(answer)["startup_s"])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", default="", help="name below loadtests/results")
    given = parser.parse_args()
    from amalgam.demo.base_model import ensure_base_model
    from amalgam.settings import Settings

    model = str(ensure_base_model(Settings().storage.cache_dir, print))
    flags = [*FLAGS, *dtype_flags()]
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        # Once before anything is counted: files come into the page cache, and the demo adapters into the store.
        timed(lambda: start_amalgam(store, [], sources=Path(folder), port=PORT))
        ours, theirs = [], []
        for _ in range(given.rounds):
            took_s, phases = timed(lambda: start_amalgam(store, [], sources=Path(folder), port=PORT))
            before_s = took_s - sum(phases.values())
            print(
                f"amalgam {took_s:.1f} s:", {"before": round(before_s, 1)} | {k: round(v, 1) for k, v in phases.items()}
            )
            ours.append(({"before": before_s} | phases, took_s))
            theirs.append(timed(lambda: start_plain(model, flags, {}, port=PORT))[0])
            print(f"vllm    {theirs[-1]:.1f} s", flush=True)
    spread = {phase: ", ".join(f"{phases[phase]:.1f}" for phases, _ in ours) for phase in ours[0][0]}
    rows = [Row("command to ready", "s", [took_s for _, took_s in ours], theirs, spread)]
    write_report(
        "From the command to ready",
        rows,
        rounds=given.rounds,
        out=given.out,
        notes={"model": "the demo model, converted before; every round in the order Amalgam, vLLM"},
        theirs="vLLM's own server",
    )


if __name__ == "__main__":
    main()
