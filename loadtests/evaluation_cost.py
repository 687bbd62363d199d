"""What an evaluation costs the clients beside it: time between the tokens of a stream, with and without one.

One streamed request for the base model after the other runs all the time. Idle and busy phases take turns: in a busy
one an evaluation asks an adapter for answers of 128 tokens, and is cancelled at the phase's end. First with the gate as
it is by default, which lets a call begin only where no client's request runs, or after its patience; then with the gate
open, which is what evaluating by ordinary requests would cost.

    python loadtests/evaluation_cost.py [--rounds 5] [--phase-s 20] [--out evaluation_cost]   # about eight minutes
"""

import argparse
import json
import os
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "server")]

from loadtests.loading import Stream, stream_rows  # noqa: E402
from loadtests.report import Row, write_report  # noqa: E402
from loadtests.servers import Server, start_amalgam  # noqa: E402

PORT = 18467
FLAGS = ["--no-enable-prefix-caching"]
GATES = {"gate by default": {}, "gate open": {"AMALGAM_EVALUATION_YIELD_ABOVE": "1000"}}
ITEMS = 2000
"""More than any phase gets through."""
ANSWER_TOKENS = 128
SETTLE_S = 0.5


@dataclass
class Phases:
    """Times between tokens in milliseconds, by round; and how many calls the evaluation got through."""

    busy: list[list[float]] = field(default_factory=list)
    idle: list[list[float]] = field(default_factory=list)
    calls: list[int] = field(default_factory=list)


def begin_evaluation(server: Server) -> str:
    """Queue one that lasts; its id."""
    items = [{"prompt": f"Story {number}: once upon a time", "reference": "the"} for number in range(ITEMS)]
    body = {"targets": ["sql"], "metrics": ["contains"], "max_tokens": ANSWER_TOKENS, "items": items}
    return str(server.post("/admin/v1/evaluations", body)["id"])


def end_evaluation(server: Server, evaluation_id: str) -> int:
    """Cancel it; how many calls it had got through."""
    url = f"{server.url}/admin/v1/evaluations/{evaluation_id}"
    server.post(f"/admin/v1/evaluations/{evaluation_id}:cancel", {})
    with urllib.request.urlopen(url, timeout=60) as answer:
        return int(json.load(answer)["evaluation"]["done"])


def measure(server: Server, rounds: int, phase_s: float) -> Phases:
    """The first round warms up and is dropped."""
    found = Phases()
    stream = Stream(server.url)
    try:
        for round_number in range(rounds + 1):
            stream.take_ms()
            evaluation_id = begin_evaluation(server)
            time.sleep(phase_s)
            busy = stream.take_ms()
            calls = end_evaluation(server, evaluation_id)
            time.sleep(SETTLE_S)
            stream.take_ms()
            time.sleep(phase_s)
            idle = stream.take_ms()
            if round_number:
                found.busy.append(busy)
                found.idle.append(idle)
                found.calls.append(calls)
            print(f"round {round_number}: {len(busy)} and {len(idle)} tokens, {calls} calls", file=sys.stderr)
    finally:
        stream.end()
    return found


def rows_of(gate: str, found: Phases, phase_s: float) -> list[Row]:
    """With an evaluation against without one; what it got done beside the stream stands with the rate."""
    done = f"{sum(found.calls) / len(found.calls) / phase_s:.2f} /s"
    return stream_rows(found.busy, found.idle, {"calls of the evaluation": done}, label=f"{gate}: ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--phase-s", type=float, default=20.0)
    parser.add_argument("--out", default="")
    parser.add_argument("--note", default="")
    arguments = parser.parse_args()
    load_before = os.getloadavg()[0]
    rows: list[Row] = []
    for gate, settings in GATES.items():
        with tempfile.TemporaryDirectory() as folder:
            server = start_amalgam(Path(folder) / "store", FLAGS, sources=Path(folder), port=PORT, **settings)
            try:
                found = measure(server, arguments.rounds, arguments.phase_s)
            finally:
                server.stop()
        rows += rows_of(gate, found, arguments.phase_s)
    notes = {
        "A call": f"{ANSWER_TOKENS} tokens of an answer, two calls at a time; a phase is {arguments.phase_s:g} s",
        "load average before": round(load_before, 2),
        "load average after": round(os.getloadavg()[0], 2),
        "note": arguments.note,
    }
    write_report(
        "An evaluation beside a stream", rows, rounds=arguments.rounds, out=arguments.out, notes=notes,
        ours="while evaluating", theirs="idle",
    )  # fmt: skip


if __name__ == "__main__":
    main()
