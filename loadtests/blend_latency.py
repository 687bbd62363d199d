"""What a blend in the `model` field costs, on the real engine with the demo model, and where the time goes.

A round asks for a blend that nobody asked for before, and then in turns for a resident adapter and for that blend
again, each time with a prompt of its own and without prefix caching. The resident adapter is a merge of the same two
adapters and of the same rank, so that the engine computes the same for all. Steps are read off `/metrics`.

    python loadtests/blend_latency.py [--rounds 25] [--out blend_latency]
"""

import argparse
import http.client
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "server")]

from loadtests.report import Row, write_report  # noqa: E402
from loadtests.servers import Server, start_amalgam  # noqa: E402

FLAGS = ["--max-model-len", "1024", "--max-num-seqs", "16", "--max-loras", "4", "--no-enable-prefix-caching"]
PORT = 18441
STEPS = ("parse", "wait", "read", "merge", "write")
NEW_TARGET = "≤ 250 ms"
REPEATED_TARGET = "≤ 1 ms"
RESIDENT = "resident"
TURNS = 5
"""Of the resident adapter and of the repeated blend in a round; their medians are the round's."""


@dataclass
class Samples:
    """Milliseconds, one of each a round."""

    resident: list[float] = field(default_factory=list)
    new: list[float] = field(default_factory=list)
    repeated: list[float] = field(default_factory=list)
    steps: dict[str, list[float]] = field(default_factory=lambda: {step: [] for step in (*STEPS, "load")})


def first_token_ms(port: int, model: str, prompt: str) -> float:
    """From sending a streamed request to the first piece that carries text."""
    body = {"model": model, "prompt": prompt, "max_tokens": 2, "temperature": 0, "stream": True, "ignore_eos": True}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    connection.connect()
    began = time.perf_counter()
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    if answer.status != 200:
        raise SystemExit(f"{model}: {answer.read().decode()}")
    while not (line := answer.readline()).startswith(b"data: {"):
        if not line:
            raise SystemExit(f"{model}: a stream without a token")
    took_ms = (time.perf_counter() - began) * 1e3
    answer.read()
    connection.close()
    return took_ms


def sums(server: Server) -> dict[str, float]:
    """Seconds so far, by step of a build and in loads, in milliseconds."""
    with urllib.request.urlopen(server.url + "/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    found = dict(line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
    names = {step: f'amalgam_blend_step_seconds_sum{{step="{step}"}}' for step in STEPS}
    names["load"] = "amalgam_adapter_load_seconds_sum"
    return {step: float(found.get(name, 0)) * 1e3 for step, name in names.items()}


def measure(server: Server, rounds: int) -> Samples:
    """The first two rounds warm up and are dropped."""
    server.post("/admin/v1/merges?wait_s=120", {"name": RESIDENT, "expression": "sql + 0.125*json"})
    samples = Samples()
    prompts = (f"Note {number}: the quick brown fox jumps over the lazy dog" for number in itertools.count(1000))
    for index in range(-2, rounds):
        blend = f"sql + {0.25 + (index + 2) / 1000}*json"
        before = sums(server)
        new = first_token_ms(PORT, blend, next(prompts))
        after = sums(server)
        turns = [(first_token_ms(PORT, RESIDENT, next(prompts)), first_token_ms(PORT, blend, next(prompts)))
                 for _ in range(TURNS)]  # fmt: skip
        resident, repeated = (statistics.median(side) for side in zip(*turns, strict=True))
        if index < 0:
            continue
        samples.resident.append(resident)
        samples.new.append(new)
        samples.repeated.append(repeated)
        for step, values in samples.steps.items():
            values.append(after[step] - before[step])
        print(f"round {index}: {resident:.1f} {new:.1f} {repeated:.1f}", file=sys.stderr)
    return samples


def front_ms(rounds: int) -> list[float]:
    """What reading a repeated expression costs in the server: parse, pin, complete and digest, in this process."""
    from amalgam.domain.adapter import VersionRef
    from amalgam.domain.expression import locate_expression, print_expression
    from amalgam.merge.methods import complete, shorten

    pins = {name: VersionRef(name, 1) for name in ("sql", "json")}
    took = []
    for index in range(rounds):
        began = time.perf_counter()
        full = complete(locate_expression(f"sql + {0.25 + index / 1000}*json").recipe.pin(pins))
        full.digest()
        print_expression(shorten(full))
        took.append((time.perf_counter() - began) * 1e3)
    return took


def rows_of(samples: Samples) -> list[Row]:
    """Added milliseconds by kind of blend, and the steps of a new one."""

    def added(values: list[float]) -> list[float]:
        return [value - base for value, base in zip(values, samples.resident, strict=True)]

    rows = [
        Row("first token", "ms", samples.new, samples.resident, {"of": "a never-seen blend"}),
        Row("first token", "ms", samples.repeated, samples.resident, {"of": "a repeated blend"}),
        Row("added by a never-seen blend", "ms", added(samples.new), [250.0], {"target": NEW_TARGET}),
        Row("added by a repeated blend", "ms", added(samples.repeated), [1.0], {"target": REPEATED_TARGET}),
        Row("of which reading the expression", "ms", front_ms(len(samples.new)), [1.0], {"target": REPEATED_TARGET}),
    ]
    rows += [Row(f"step of a never-seen blend: {step}", "ms", v, [250.0], {}) for step, v in samples.steps.items()]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--out", default="")
    parser.add_argument("--note", default="")
    arguments = parser.parse_args()
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        server = start_amalgam(
            Path(folder) / "store", FLAGS, sources=Path(folder), port=PORT, AMALGAM_BLENDS_PER_MINUTE="100000"
        )
        try:
            samples = measure(server, arguments.rounds)
        finally:
            server.stop()
    notes: dict[str, Any] = {
        "load average before": round(load_before, 2),
        "load average after": round(os.getloadavg()[0], 2),
        "note": arguments.note,
    }
    write_report(
        "Blends in the model field", rows_of(samples), rounds=arguments.rounds, out=arguments.out, notes=notes,
        theirs="resident adapter, or target",
    )  # fmt: skip


if __name__ == "__main__":
    main()
