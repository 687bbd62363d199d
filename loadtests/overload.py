"""Ten times more requests than the engine can answer: what refused ones wait, what accepted ones notice, what is kept.

At capacity as many clients as there are places ask again as soon as they are answered. Over capacity requests come at
ten times the rate that was answered then, whether any is answered or not, and who is refused does not come again.
Phases of both kinds take turns. At capacity the client sends as many requests as would be refused to a bare responder,
so that it costs the same on both sides; what is left between them is what refusing costs those who are accepted.

    python loadtests/overload.py [--pairs 5] [--phase-s 60] [--settle-s 15] [--out overload]      # a quarter of an hour
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from urllib.parse import urlsplit

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "server")]

from loadtests.canned import canned_responder  # noqa: E402
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
PAUSE_S = 0.005
"""Between two looks at the clock of who sends at an even rate."""
_BODY = json.dumps(
    {"model": "smollm2", "prompt": "The quick brown fox", "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
).encode()
_HEAD = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
REQUEST = f"{_HEAD}Content-Length: {len(_BODY)}\r\n\r\n".encode() + _BODY


@dataclass
class Seen:
    """What came of the requests that one phase counts, in order of their ends."""

    answered_s: list[float] = field(default_factory=list)
    refused_ms: list[float] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    """Whatever was neither."""
    all_bytes: list[int] = field(default_factory=list)
    front_bytes: list[int] = field(default_factory=list)
    window_s: float = 0.0

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.answered_s) / self.window_s


class Peers:
    """Connections that are kept, so that a request is one write and one read.

    Args:
        url: of the server.
        requests: what is sent, in turn.
    """

    def __init__(self, url: str, requests: Sequence[bytes] = (REQUEST,)) -> None:
        self._port = urlsplit(url).port
        self._requests = cycle(requests)
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def ask(self, seen: Seen) -> None:
        """One request; what it took goes into ``seen``."""
        reader, writer = self._kept() or await asyncio.open_connection("127.0.0.1", self._port)
        began = time.perf_counter()
        try:
            writer.write(next(self._requests))
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


class Phase:
    """When a request counts: those that begin in the window, which opens when places and queue are as full as they get.

    The load goes on until all that count have ended, so that the last ones have as much beside them as the first.
    """

    def __init__(self, settle_s: float, window_s: float, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._opens = clock() + settle_s
        self._closes = self._opens + window_s
        self._open = 0
        self.seen = Seen(window_s=window_s)
        self.settling = Seen()
        self.elsewhere = Seen()
        """What the bare responder said."""

    @property
    def is_over(self) -> bool:
        """Whether everything that counts has come to its end."""
        return self._clock() >= self._closes and not self._open

    async def ask(self, peers: Peers) -> None:
        """One request, counted if it begins in the window."""
        if not self._opens <= self._clock() < self._closes:
            await peers.ask(self.settling)
            return
        self._open += 1
        try:
            await peers.ask(self.seen)
        finally:
            self._open -= 1


async def at_capacity(phase: Phase, peers: Peers, bare: Peers, extra_per_s: float) -> Seen:
    """Every place is taken and nobody is refused; as many requests as would be refused go to the bare responder."""

    async def client() -> None:
        while True:
            await phase.ask(peers)

    clients = {asyncio.create_task(client()) for _ in range(PLACES)}
    await paced(extra_per_s, lambda: bare.ask(phase.elsewhere), phase)
    await cancel_all(clients)
    return phase.seen


async def over_capacity(phase: Phase, peers: Peers, server: Server, per_s: float) -> Seen:
    """Requests at an even rate, and a look at memory now and then."""

    async def look() -> None:
        while True:
            # In a thread: the kernel walks all pages of the processes.
            kept = await asyncio.to_thread(lambda: (server.rss_bytes(), server.front_rss_bytes()))
            phase.seen.all_bytes.append(kept[0])
            phase.seen.front_bytes.append(kept[1])
            await asyncio.sleep(LOOK_S)

    looking = asyncio.create_task(look())
    await paced(per_s, lambda: phase.ask(peers), phase)
    await cancel_all({looking})
    return phase.seen


async def paced(per_s: float, send: Callable[[], Coroutine[None, None, None]], phase: Phase) -> None:
    """Send at an even rate until the phase is over; what is not done by then is cancelled."""
    running: set[asyncio.Task[None]] = set()
    began, sent = time.perf_counter(), 0
    while not phase.is_over:
        while sent < (time.perf_counter() - began) * per_s:
            task = asyncio.create_task(send())
            running.add(task)
            task.add_done_callback(running.discard)
            sent += 1
        await asyncio.sleep(PAUSE_S)
    await cancel_all(running)


async def cancel_all(tasks: "set[asyncio.Task[None]]") -> None:
    """End them; an error of one that had ended by itself is raised."""
    for task in (left := list(tasks)):
        task.cancel()
    for result in await asyncio.gather(*left, return_exceptions=True):
        if isinstance(result, Exception):
            raise result


def rows_of(calm: Sequence[Seen], over: Sequence[Seen], per_s: float) -> list[Row]:
    """Of one run: a sample a phase, phases of both kinds in the order in which they took turns."""
    refused = [one for phase in over for one in phase.refused_ms]
    asked = sum(len(phase.answered_s) for phase in over) + len(refused)
    words = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}
    told = {name: f"{percentile(refused, share):.1f}" for name, share in words.items()}
    told |= {"longest": f"{max(refused):.1f}", "refused": str(len(refused)), "share": f"{len(refused) / asked:.3f}"}

    def accepted(case: str, share: float, **extra: str) -> Row:
        ours, theirs = ([percentile(phase.answered_s, share) for phase in side] for side in (over, calm))
        pairs = " ".join(f"{one / other:.3f}" for one, other in zip(ours, theirs, strict=True))
        counts = ", ".join(str(sum(len(phase.answered_s) for phase in side)) for side in (over, calm))
        return Row(case, "s", ours, theirs, {"pair by pair": pairs, "answers": counts} | extra)

    def kept(name: str, phases: Sequence[Sequence[int]]) -> Row:
        first, last = ([one / 1e6 for one in samples] for samples in (phases[0], phases[-1]))
        return Row(f"memory of {name}, last phase over capacity and first", "MB", last, first)

    return [
        accepted("an accepted request, p99", 0.99, target="≤ 1.2"),
        accepted("an accepted request, median", 0.5),
        Row("answers", "1/s", [p.rate for p in over], [p.rate for p in calm], {"asked for": f"{per_s:.1f} a second"}),
        Row(
            "a refusal, p99, beside its limit",
            "ms",
            [percentile(phase.refused_ms, 0.99) for phase in over],
            [REFUSED_MS],
            told | {"target": "≤ 1"},
        ),
        kept("all processes", [phase.all_bytes for phase in over]),
        kept("the HTTP process", [phase.front_bytes for phase in over]),
    ]


async def measure(server: Server, bare_url: str, pairs: int, settle_s: float, window_s: float) -> list[Row]:
    """What is answered at capacity, then phases in turn."""
    peers, bare = Peers(server.url), Peers(bare_url)
    rate = (await at_capacity(Phase(settle_s, window_s), peers, bare, 0.0)).rate
    per_s = TIMES * rate
    print(f"{rate:.2f} answers a second at capacity; {per_s:.1f} are asked for", file=sys.stderr, flush=True)
    calm, over = [], []
    for pair in range(pairs):
        calm.append(await at_capacity(Phase(settle_s, window_s), peers, bare, per_s - rate))
        over.append(await over_capacity(Phase(settle_s, window_s), peers, server, per_s))
        for name, phase, refused in (("at", calm[-1], len(calm[-1].refused_ms)), ("over", over[-1], 0)):
            if phase.others or refused:
                print(
                    f"{name} capacity: {Counter(phase.others)}, {refused} refusals that should not be", file=sys.stderr
                )
        p99 = [percentile(phase.answered_s, 0.99) for phase in (over[-1], calm[-1])]
        print(
            f"pair {pair + 1}: p99 {p99[0]:.2f} and {p99[1]:.2f} s, {p99[0] / p99[1]:.3f}", file=sys.stderr, flush=True
        )
    peers.close()
    bare.close()
    return rows_of(calm, over, per_s)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--phase-s", type=float, default=60.0, help="for how long requests that begin are counted")
    parser.add_argument("--settle-s", type=float, default=15.0, help="before that, so that every place is taken")
    parser.add_argument("--out", default="", help="name below loadtests/results")
    given = parser.parse_args()
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name, canned_responder(len(REQUEST)) as bare_url:
        folder = Path(name)
        server = start_amalgam(folder / "store", FLAGS, sources=folder, port=PORT, AMALGAM_REGISTER_DEMO="false")
        try:
            rows = asyncio.run(measure(server, bare_url, given.pairs, given.settle_s, given.phase_s))
        finally:
            server.stop()
    write_report(
        "Ten times over capacity",
        rows,
        rounds=given.pairs,
        out=given.out,
        ours=f"{TIMES} times over capacity",
        theirs="at capacity, or the limit",
        notes={
            "The load": f"prompts of some words, answers of {TOKENS} tokens; {BATCH} sequences in a batch, {PLACES} "
            f"requests in progress; phases at and over capacity in turn, each {given.settle_s:.0f} s to fill all "
            f"places and {given.phase_s:.0f} s that count",
            "At capacity": "the client sends what would be refused to a bare responder, so that it costs the same",
            "Times": "by the client's clock, on the same two cores",
            "load average before": round(load_before, 2),
        },
    )


if __name__ == "__main__":
    main()
