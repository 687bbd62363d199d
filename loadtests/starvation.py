"""One cold adapter among as many hot ones as the engine has slots: how long it waits, here and in vLLM's own server.

Each hot adapter is asked by several clients without a pause, with answers of different lengths, so that it is never out
of the batch. One more client asks for another adapter now and then. Both servers run at once and take turns. A request
that is not answered when its phase ends counts with what it has waited so far, so that starving does not go unseen.

    python loadtests/starvation.py [--rounds 3] [--phase-s 60] [--out starvation]      # about eight minutes on 2 cores
"""

import argparse
import asyncio
import contextlib
import itertools
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "server")]

import httpx  # noqa: E402

from loadtests.fairness import percentile, worst_over_median  # noqa: E402
from loadtests.population import register_population, write_population  # noqa: E402
from loadtests.report import Row, write_report  # noqa: E402
from loadtests.servers import Server, dtype_flags, start_amalgam, start_plain  # noqa: E402

PORTS = {"amalgam": 18581, "vllm": 18582}
SLOTS = 4
CLIENTS = 4
"""Of each hot adapter."""
PAUSE_S = 2.0
"""Of the cold adapter's client, between an answer and its next request."""
SHORTEST, LONGEST = 32, 96
"""Answers, tokens."""
PROMPT = "The quick brown fox jumps over the lazy dog, and then it "
FLAGS = ["--max-model-len", "1024", "--max-num-seqs", "32", "--max-lora-rank", "8", "--max-loras", str(SLOTS)]
FLAGS += ["--max-cpu-loras", "16", "--no-enable-prefix-caching"]
TARGET = 3.0


@dataclass
class Seen:
    """What the clients of one phase saw."""

    first_s: dict[str, list[float]] = field(default_factory=dict)
    """By adapter: seconds to the first token, or until the phase ended."""
    unanswered: dict[str, int] = field(default_factory=dict)
    """By adapter: requests without a first token at the phase's end."""
    tokens: int = 0
    lasted_s: float = 0.0

    def note(self, adapter: str, seconds: float) -> None:
        """One request's time to the first token."""
        self.first_s.setdefault(adapter, []).append(seconds)


async def ask(http: httpx.AsyncClient, adapter: str, length: int, seen: Seen) -> None:
    """One streamed answer; where it is cancelled before its first token, the wait so far counts."""
    body = {"model": adapter, "prompt": PROMPT, "max_tokens": length, "temperature": 0, "stream": True}
    began, answered = time.perf_counter(), False
    try:
        async with http.stream("POST", "/v1/completions", json=body | {"ignore_eos": True}) as answer:
            if answer.status_code != 200:
                raise SystemExit(f"{adapter}: {answer.status_code} {(await answer.aread()).decode()}")
            async for line in answer.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                seen.tokens += 1
                if not answered:
                    answered = True
                    seen.note(adapter, time.perf_counter() - began)
    except asyncio.CancelledError:
        if not answered:
            seen.note(adapter, time.perf_counter() - began)
            seen.unanswered[adapter] = seen.unanswered.get(adapter, 0) + 1
        raise


async def client(http: httpx.AsyncClient, adapter: str, lengths: Iterator[int], pause_s: float, seen: Seen) -> None:
    """Ask without end."""
    for length in lengths:
        await ask(http, adapter, length, seen)
        await asyncio.sleep(pause_s)


async def phase(url: str, hot: Sequence[str], cold: str, lasting_s: float, seed: int) -> Seen:
    """All clients together for ``lasting_s`` seconds; the hot ones begin first."""
    seen = Seen()
    draws = random.Random(seed)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=None, limits=limits) as http:
        began = time.perf_counter()

        def one(adapter: str, pause_s: float) -> "asyncio.Task[None]":
            own = random.Random(draws.random())
            lengths = (own.randint(SHORTEST, LONGEST) for _ in itertools.count())
            return asyncio.create_task(client(http, adapter, lengths, pause_s, seen))

        tasks = [one(adapter, 0.0) for _ in range(CLIENTS) for adapter in hot]
        await asyncio.sleep(PAUSE_S)
        tasks.append(one(cold, PAUSE_S))
        await asyncio.wait(tasks, timeout=lasting_s, return_when=asyncio.FIRST_EXCEPTION)
        seen.lasted_s = time.perf_counter() - began
        failed = [task for task in tasks if task.done()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for task in failed:
            task.result()
    return seen


def figures(seen: Seen, cold: str) -> dict[str, float]:
    """Of one phase."""
    tails = {adapter: percentile(waits, 0.99) for adapter, waits in seen.first_s.items()}
    hot = [tail for adapter, tail in tails.items() if adapter != cold]
    return {
        "ratio": worst_over_median(seen.first_s),
        "cold_p99_s": tails[cold],
        "hot_p99_s": statistics.median(hot),
        "tokens_per_s": seen.tokens / seen.lasted_s,
        "cold_answered": len(seen.first_s[cold]) - seen.unanswered.get(cold, 0),
    }


def measure(servers: Sequence[Server], names: Sequence[str], rounds: int, phase_s: float) -> list[Row]:
    """A short phase warms up each side; sides alternate who begins."""
    hot, cold = names[:SLOTS], names[SLOTS]
    found: dict[str, list[dict[str, float]]] = {server.name: [] for server in servers}
    for server in servers:
        asyncio.run(phase(server.url, hot, cold, min(10.0, phase_s), 0))
    for number in range(1, rounds + 1):
        for server in servers if number % 2 else servers[::-1]:
            # What the phase before left in the engine is aborted by now.
            time.sleep(2.0)
            found[server.name].append(figures(asyncio.run(phase(server.url, hot, cold, phase_s, number)), cold))
            print(f"round {number}, {server.name}: {found[server.name][-1]}", file=sys.stderr, flush=True)
    ours, theirs = (found[server.name] for server in servers)

    def row(case: str, unit: str, key: str, **more: object) -> Row:
        return Row(case, unit, [figure[key] for figure in ours], [figure[key] for figure in theirs], more)

    answered = {
        f"answered, {side}": ", ".join(f"{f['cold_answered']:.0f}" for f in its)
        for side, its in (("ours", ours), ("vLLM's", theirs))
    }
    return [
        row("worst adapter's p99 TTFT over the median one's", "×", "ratio", target=f"≤ {TARGET:.0f}"),
        row("cold adapter's p99 TTFT", "s", "cold_p99_s", **answered),
        row("hot adapters' p99 TTFT, median", "s", "hot_p99_s"),
        row("throughput", "tokens/s", "tokens_per_s"),
    ]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--phase-s", type=float, default=60.0)
    parser.add_argument("--out", default="", help="name below loadtests/results")
    given = parser.parse_args()
    from amalgam.demo.base_model import ensure_base_model
    from amalgam.settings import Settings

    model = ensure_base_model(Settings().storage.cache_dir, print)
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        folders = write_population(folder / "adapters", SLOTS + 1)
        register_population(folder / "store", folders, model, max_rank=8)
        servers = []
        starts: tuple[Callable[[], Server], ...] = (
            lambda: start_amalgam(
                folder / "store", FLAGS, sources=folder, port=PORTS["amalgam"], AMALGAM_REGISTER_DEMO="false"
            ),
            lambda: start_plain(
                str(model), [*FLAGS, *dtype_flags()], folders, port=PORTS["vllm"], AMALGAM_CPU_LORA="amalgam"
            ),
        )
        for start in starts:
            servers.append(start())
            stack.callback(servers[-1].stop)
        rows = measure(servers, list(folders), given.rounds, given.phase_s)
    write_report(
        "One cold adapter among hot ones",
        rows,
        rounds=given.rounds,
        out=given.out,
        notes={
            "A phase": f"{given.phase_s:.0f} s; {SLOTS} hot adapters with {CLIENTS} clients each, {SLOTS} slots; one "
            f"cold adapter, asked {PAUSE_S:.0f} s after its last answer; answers of {SHORTEST} to {LONGEST} tokens",
            "Not answered in its phase": "counts as answered at its end",
            "vLLM's server": "with Amalgam's LoRA operations on CPU, and in the type that Amalgam computes in",
            "load average before": round(load_before, 2),
        },
        theirs="vLLM's server",
    )


if __name__ == "__main__":
    main()
