"""What loading adapters does to a stream that does not use them: time between the tokens of the base model's answer.

One streamed request for the base model after the other runs all the time. Idle and busy phases take turns: in a busy
one, adapters of about 50 MB (synthetic, rank 64, float32, on the MLP modules) are made resident one after another
through the admin plane, several times over. The engine keeps fewer of them than there are, so every load reads files.

    python loadtests/loading.py [--rounds 5] [--adapters 20] [--out loading]      # about five minutes on 2 cores
"""

import argparse
import http.client
import itertools
import json
import os
import statistics
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "server")]

from loadtests.fairness import percentile  # noqa: E402
from loadtests.population import register_population, write_population  # noqa: E402
from loadtests.report import Row, write_report  # noqa: E402
from loadtests.servers import Server, start_amalgam  # noqa: E402
from tests.adapter_factory import MLP_MODULES  # noqa: E402

PORT = 18461
RANK = 64
FLAGS = ["--max-model-len", "1024", "--max-num-seqs", "8", "--max-loras", "2", "--max-lora-rank", str(RANK)]
FLAGS += ["--max-cpu-loras", "4", "--no-enable-prefix-caching"]
TOKENS = 900
"""Of one streamed answer; then the next begins."""
PASSES = 2
"""Over all adapters in one busy phase, so that its p99 is of hundreds of tokens."""
TARGET = 1.5


class Stream:
    """Streams from the base model without end, in a thread of its own, and notes when each token came."""

    def __init__(self, url: str) -> None:
        self._netloc = urllib.parse.urlsplit(url).netloc
        self._gaps: list[float] = []
        self._ends = threading.Event()
        self.failure: str | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            for number in itertools.count():
                if self._ends.is_set():
                    return
                self._one(f"Note {number}: the quick brown fox")
        except (OSError, http.client.HTTPException) as error:
            self.failure = repr(error)

    def _one(self, prompt: str) -> None:
        body = {"model": "smollm2", "prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "stream": True}
        connection = http.client.HTTPConnection(self._netloc, timeout=120)
        connection.request(
            "POST", "/v1/completions", json.dumps(body | {"ignore_eos": True}), {"Content-Type": "application/json"}
        )
        answer = connection.getresponse()
        if answer.status != 200:
            raise http.client.HTTPException(answer.read().decode())
        last = None
        while (line := answer.readline()) and not self._ends.is_set():
            if line.startswith(b"data: {"):
                now = time.perf_counter()
                if last is not None:
                    self._gaps.append((now - last) * 1e3)
                last = now
        connection.close()

    def take_ms(self) -> list[float]:
        """Times between tokens since the last call."""
        if self.failure is not None:
            raise SystemExit(f"the stream ended: {self.failure}")
        gaps, self._gaps = self._gaps, []
        return gaps

    def end(self) -> None:
        """Ask for no more."""
        self._ends.set()
        self._thread.join(60)


def load_each(server: Server, names: Sequence[str]) -> list[float]:
    """Make each resident after the other; milliseconds of each."""
    took = []
    for name in names:
        began = time.perf_counter()
        server.post(f"/admin/v1/adapters/{name}:load", {})
        took.append((time.perf_counter() - began) * 1e3)
    return took


def measure(server: Server, names: Sequence[str], rounds: int) -> list[Row]:
    """The first round warms up and is dropped; an idle phase lasts as long as the busy one beside it."""
    stream = Stream(server.url)
    idle: list[list[float]] = []
    busy: list[list[float]] = []
    loads: list[float] = []
    try:
        for round_number in range(rounds + 1):
            stream.take_ms()
            began = time.monotonic()
            took = load_each(server, [*names] * PASSES)
            lasted_s = time.monotonic() - began
            while_loading = stream.take_ms()
            time.sleep(0.5)
            stream.take_ms()
            time.sleep(lasted_s)
            while_idle = stream.take_ms()
            if round_number:
                busy.append(while_loading)
                idle.append(while_idle)
                loads.append(statistics.median(took))
            print(f"round {round_number}: {len(while_loading)} and {len(while_idle)} tokens", file=sys.stderr)
    finally:
        stream.end()
    load_ms = {"one load, median": f"{statistics.median(loads):.0f} ms"}
    return stream_rows(busy, idle, load_ms, target=f"≤ {TARGET} × idle")


def stream_rows(
    busy: Sequence[Sequence[float]],
    idle: Sequence[Sequence[float]],
    beside: Mapping[str, str],
    *,
    label: str = "",
    target: str = "",
) -> list[Row]:
    """What a stream felt: times between its tokens, and its rate.

    Args:
        busy: Milliseconds between tokens, by round, while something else was done.
        idle: The same while nothing was.
        beside: What stands with the rate.
        label: Before each case.
        target: Of the p99.
    """
    rows = []
    for case, share in (("median", 0.5), ("p99", 0.99), ("longest", 1.0)):
        ours, theirs = ([percentile(gaps, share) for gaps in phase] for phase in (busy, idle))
        wanted = {"target": target} if target and case == "p99" else {}
        rows.append(Row(f"{label}time between tokens, {case}", "ms", ours, theirs, wanted))
    ours, theirs = ([len(gaps) / (sum(gaps) / 1e3) for gaps in phase] for phase in (busy, idle))
    rows.append(Row(f"{label}tokens of the stream", "tokens/s", ours, theirs, beside))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--adapters", type=int, default=20)
    parser.add_argument("--out", default="")
    parser.add_argument("--note", default="")
    arguments = parser.parse_args()
    from amalgam.demo.base_model import ensure_base_model
    from amalgam.settings import Settings

    model = ensure_base_model(Settings().storage.cache_dir, lambda text: None)
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        folders = write_population(
            root / "adapters", arguments.adapters, rank=RANK, modules=MLP_MODULES, dtype="float32", distinct=4
        )
        megabytes = sum(file.stat().st_size for file in next(iter(folders.values())).iterdir()) / 1e6
        register_population(root / "store", folders, model, max_rank=RANK)
        server = start_amalgam(root / "store", FLAGS, sources=root, port=PORT, AMALGAM_REGISTER_DEMO="false")
        try:
            rows = measure(server, list(folders), arguments.rounds)
        finally:
            server.stop()
    notes = {
        "Adapters": f"{arguments.adapters} of {megabytes:.0f} MB, rank {RANK}; the engine keeps 4",
        "load average before": round(load_before, 2),
        "load average after": round(os.getloadavg()[0], 2),
        "note": arguments.note,
    }
    write_report(
        "Loading beside a stream", rows, rounds=arguments.rounds, out=arguments.out, notes=notes,
        ours="while loading", theirs="idle",
    )  # fmt: skip


if __name__ == "__main__":
    main()
