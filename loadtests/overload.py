"""Ten times more requests than the engine can answer: what refused ones wait, what accepted ones notice, what is kept.

At capacity as many clients as there are places ask again as soon as they are answered. Over capacity requests come at
ten times the rate that was answered then, whether any is answered or not, and who is refused does not come again. A
phase at capacity before and one after stand for what accepted requests take without the others.

    python loadtests/overload.py [--over-s 600] [--capacity-s 45] [--out overload]      # twelve minutes
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "server")]

from loadtests.fairness import percentile  # noqa: E402
from loadtests.report import Row, write_report  # noqa: E402
from loadtests.servers import Server, start_amalgam  # noqa: E402

PORT = 18591
BATCH = 16
PLACES = 4 * BATCH
"""Requests in progress that the server allows by itself: four full batches."""
TIMES = 10
TOKENS = 32
FLAGS = ["--max-model-len", "1024", "--max-num-seqs", str(BATCH), "--no-enable-prefix-caching"]
REFUSED_MS = 50.0
LOOK_S = 5.0
"""Between two looks at memory."""
_BODY = json.dumps(
    {"model": "smollm2", "prompt": "The quick brown fox", "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
).encode()


@dataclass
class Seen:
    """What came of the requests of one phase, in order of their ends."""

    answered_s: list[float] = field(default_factory=list)
    refused_ms: list[float] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    """Whatever was neither."""
    all_bytes: list[int] = field(default_factory=list)
    front_bytes: list[int] = field(default_factory=list)
    lasted_s: float = 0.0

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.answered_s) / self.lasted_s


class Peers:
    """Connections that are kept, so that a request is one write and one read."""

    def __init__(self, url: str) -> None:
        self._host, self._port = urlsplit(url).hostname, urlsplit(url).port
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {self._host}\r\nContent-Type: application/json\r\n"
        self._request = f"{head}Content-Length: {len(_BODY)}\r\n\r\n".encode() + _BODY

    async def ask(self, seen: Seen) -> None:
        """One request; what it took goes into ``seen``."""
        reader, writer = self._kept() or await asyncio.open_connection(self._host, self._port)
        began = time.perf_counter()
        try:
            writer.write(self._request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
            await reader.readexactly(length)
        except (OSError, asyncio.IncompleteReadError) as error:
            seen.others.append(type(error).__name__)
            writer.close()
            return
        except asyncio.CancelledError:
            writer.close()
            raise
        took_s = time.perf_counter() - began
        status = int(head.split(b" ", 2)[1])
        if status == 200:
            seen.answered_s.append(took_s)
        elif status in (429, 503) and b"retry-after:" in head.lower():
            seen.refused_ms.append(took_s * 1e3)
        else:
            seen.others.append(str(status))
        if b"connection: close" in head.lower():
            writer.close()
        else:
            self._idle.append((reader, writer))

    def _kept(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """The connection that was used last; those that the server has closed as idle are left out."""
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof():
                return reader, writer
            writer.close()
        return None

    def close(self) -> None:
        """All of them."""
        for _, writer in self._idle:
            writer.close()


async def at_capacity(peers: Peers, lasting_s: float) -> Seen:
    """Every place is taken, and nobody is refused."""
    seen = Seen()

    async def client() -> None:
        while True:
            await peers.ask(seen)

    # The first round of all of them comes at once and ends in lumps; it is asked and not counted.
    await asyncio.gather(*(peers.ask(Seen()) for _ in range(PLACES)))
    tasks = {asyncio.create_task(client()) for _ in range(PLACES)}
    await _end_after(tasks, lasting_s)
    seen.lasted_s = lasting_s
    return seen


async def over_capacity(peers: Peers, server: Server, per_s: float, lasting_s: float) -> Seen:
    """Requests at an even rate, and a look at memory now and then."""
    seen = Seen()
    running: set[asyncio.Task[None]] = set()
    began, look_at, sent = time.perf_counter(), 0.0, 0
    while (passed_s := time.perf_counter() - began) < lasting_s:
        while sent < passed_s * per_s:
            task = asyncio.create_task(peers.ask(seen))
            running.add(task)
            task.add_done_callback(running.discard)
            sent += 1
        if passed_s >= look_at:
            # In a thread: the kernel walks all pages of the processes.
            kept = await asyncio.to_thread(lambda: (server.rss_bytes(), server.front_rss_bytes()))
            seen.all_bytes.append(kept[0])
            seen.front_bytes.append(kept[1])
            look_at += LOOK_S
        await asyncio.sleep(0.005)
    seen.lasted_s = time.perf_counter() - began
    await _end_after(running, 0)
    return seen


async def _end_after(tasks: "set[asyncio.Task[None]]", lasting_s: float) -> None:
    """Cancel what is not done by then: with fewer beside it, a request is no measure of the others."""
    if tasks:
        done, left = await asyncio.wait(tasks, timeout=lasting_s)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        for task in done:
            task.result()


def rows_of(before: Seen, over: Seen, after: Seen, per_s: float) -> list[Row]:
    """Of one run."""
    calm = [*before.answered_s, *after.answered_s]
    sides = [before.answered_s, after.answered_s]
    asked = len(over.answered_s) + len(over.refused_ms)
    minute = max(1, round(60 / LOOK_S))
    answers = {"answers": f"{len(over.answered_s)}, at capacity {len(calm)}"}
    refused = {
        "refused": len(over.refused_ms),
        "share": f"{len(over.refused_ms) / asked:.3f}",
        "p99.9": f"{percentile(over.refused_ms, 0.999):.1f}",
        "longest": f"{max(over.refused_ms):.1f}",
    }

    def kept(name: str, samples: Sequence[int]) -> Row:
        mega = [sample / 1e6 for sample in samples]
        # What the first minute brings is the peers' connections and the queue's own size.
        first, last = mega[minute : 2 * minute] or mega[:1], mega[-minute:]
        return Row(f"memory of {name}, last minute and second", "MB", last, first)

    return [
        Row(
            "an accepted request, p99",
            "s",
            [percentile(over.answered_s, 0.99)],
            [percentile(calm, 0.99)],
            answers | {"target": "≤ 1.2"},
        ),
        Row(
            "an accepted request, median",
            "s",
            [statistics.median(over.answered_s)],
            [statistics.median(side) for side in sides],
        ),
        Row("answers", "1/s", [over.rate], [before.rate, after.rate], {"asked for": f"{per_s:.1f} a second"}),
        Row(
            "a refusal, p99, beside its limit",
            "ms",
            [percentile(part, 0.99) for part in _parts(over.refused_ms)],
            [REFUSED_MS],
            refused | {"target": "≤ 1"},
        ),
        kept("all processes", over.all_bytes),
        kept("the HTTP process", over.front_bytes),
    ]


def _parts(values: Sequence[float], count: int = 10) -> list[Sequence[float]]:
    """The values in so many runs of equal length, one after another."""
    size = -(-len(values) // count)
    return [values[start : start + size] for start in range(0, len(values), size)]


async def measure(server: Server, capacity_s: float, over_s: float) -> list[Row]:
    """All three phases."""
    peers = Peers(server.url)
    await at_capacity(peers, min(5.0, capacity_s))
    before = await at_capacity(peers, capacity_s)
    per_s = TIMES * before.rate
    print(f"{before.rate:.2f} answers a second at capacity; {per_s:.1f} are asked for", file=sys.stderr, flush=True)
    over = await over_capacity(peers, server, per_s, over_s)
    after = await at_capacity(peers, capacity_s)
    peers.close()
    for name, phase in (("before", before), ("over capacity", over), ("after", after)):
        refused = len(phase.refused_ms) if phase is not over else 0
        if phase.others or refused:
            print(f"{name}: {Counter(phase.others)} and {refused} refusals that should not be", file=sys.stderr)
    return rows_of(before, over, after, per_s)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--over-s", type=float, default=600.0)
    parser.add_argument("--capacity-s", type=float, default=45.0)
    parser.add_argument("--out", default="", help="name below loadtests/results")
    given = parser.parse_args()
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = start_amalgam(folder / "store", FLAGS, sources=folder, port=PORT, AMALGAM_REGISTER_DEMO="false")
        try:
            rows = asyncio.run(measure(server, given.capacity_s, given.over_s))
        finally:
            server.stop()
    write_report(
        "Ten times over capacity",
        rows,
        rounds=1,
        out=given.out,
        ours=f"{TIMES} times over capacity",
        theirs="at capacity, or the limit",
        notes={
            "The load": f"prompts of some words, answers of {TOKENS} tokens; {BATCH} sequences in a batch, {PLACES} "
            f"requests in progress; at capacity for {given.capacity_s:.0f} s before and after, over it for "
            f"{given.over_s:.0f} s",
            "Times": "by the client's clock, on the same two cores",
            "load average before": round(load_before, 2),
        },
    )


if __name__ == "__main__":
    main()
