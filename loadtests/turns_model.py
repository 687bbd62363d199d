"""A model of vLLM's scheduler with more adapters than slots, by its own order and behind our queue. No engine runs.

The queue is the server's own, under a clock that the model moves. A step takes 30 ms and 2 ms for each sequence in it;
a prompt takes 30 ms more. Waiting requests begin as in vLLM 0.32: in their order, but those whose adapter is not in the
batch are passed over while the slots are full. What is still waiting at the end counts with its wait so far.

    python loadtests/turns_model.py [--seconds 600]      # half a minute
"""

import argparse
import asyncio
import random
import statistics
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "server")]

from amalgam.engine.protocol import LoadableVersion  # noqa: E402
from amalgam.services.fair_queue import FairQueue  # noqa: E402
from loadtests.fairness import percentile, zipf_weights  # noqa: E402

SLOTS: Final = 4
SEQUENCES: Final = 64
STEP_S, ROW_S, PROMPT_S = 0.030, 0.002, 0.030
SHORTEST, LONGEST = 32, 96
"""Answers, tokens."""
BETWEEN_S: Final = 0.002
"""From an answer to the client's next request."""
SETTLING: Final = 6
"""Turns of the event loop in which every task has gone as far as it can."""


@dataclass(frozen=True)
class Case:
    """Clients, and what each asks for next; a client beyond ``eager`` pauses between its requests."""

    name: str
    clients: int
    pick: Callable[[random.Random, int], int]
    eager: int = 1_000
    pause_s: float = BETWEEN_S


CASES: Final = (
    Case("6 adapters at random, 16 clients", 16, lambda draws, client: draws.randrange(6)),
    Case("8 adapters at random, 16 clients", 16, lambda draws, client: draws.randrange(8)),
    Case("12 adapters at random, 16 clients", 16, lambda draws, client: draws.randrange(12)),
    Case("64 adapters at random, 16 clients", 16, lambda draws, client: draws.randrange(64)),
    Case("12 adapters by zipf, 16 clients", 16, lambda draws, client: draws.choices(range(12), zipf_weights(12))[0]),
    Case("12 adapters at random, 64 clients", 64, lambda draws, client: draws.randrange(12)),
    Case("8 adapters, each of two clients", 16, lambda draws, client: client % 8),
    Case("4 hot ones of 16 clients, a cold one every 5 s", 17, lambda draws, client: min(client // 4, 4), 16, 5.0),
    Case("4 hot ones of 16 clients, a cold one every 60 s", 17, lambda draws, client: min(client // 4, 4), 16, 60.0),
)


@dataclass
class _Request:
    adapter: int
    left: int
    came_s: float
    ended: "asyncio.Future[None]"
    begun: bool = False


@dataclass
class Model:
    """The engine, its clients and the clock."""

    now_s: float = 0.0
    tokens: int = 0
    first_s: dict[int, list[float]] = field(default_factory=dict)
    _waiting: list[_Request] = field(default_factory=list)
    _running: list[_Request] = field(default_factory=list)
    _pauses: list[tuple[float, "asyncio.Future[None]"]] = field(default_factory=list)
    _asked: list[_Request] = field(default_factory=list)

    async def client(self, case: Case, number: int, queue: FairQueue | None) -> None:
        """Ask without end."""
        draws = random.Random(number)
        while True:
            adapter = case.pick(draws, number)
            ended = asyncio.get_running_loop().create_future()
            request = _Request(adapter, draws.randint(SHORTEST, LONGEST), self.now_s, ended)
            self._asked.append(request)
            version = LoadableVersion(f"a{adapter}@1", adapter + 1, Path("/nowhere"))
            async with nullcontext() if queue is None else queue.turn(version):
                self._waiting.append(request)
                await ended
            self._asked.remove(request)
            pause: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._pauses.append((self.now_s + (case.pause_s if number >= case.eager else BETWEEN_S), pause))
            await pause

    def step(self) -> None:
        """One batch."""
        for at_s, pause in [entry for entry in self._pauses if entry[0] <= self.now_s]:
            self._pauses.remove((at_s, pause))
            pause.set_result(None)
        inside = {request.adapter for request in self._running}
        passed: list[_Request] = []
        begun = 0
        for request in self._waiting:
            fits = request.adapter in inside or len(inside) < SLOTS
            if not fits or len(self._running) >= SEQUENCES:
                passed.append(request)
                continue
            inside.add(request.adapter)
            self._running.append(request)
            begun += 1
        self._waiting = passed
        self.now_s += STEP_S + ROW_S * len(self._running) + PROMPT_S * begun if self._running else BETWEEN_S
        self.tokens += len(self._running)
        for request in list(self._running):
            if not request.begun:
                request.begun = True
                self._note(request)
            request.left -= 1
            if not request.left:
                self._running.remove(request)
                request.ended.set_result(None)

    def end(self) -> None:
        """What never began counts with its wait so far."""
        for request in self._asked:
            if not request.begun:
                self._note(request)

    def _note(self, request: _Request) -> None:
        self.first_s.setdefault(request.adapter, []).append(self.now_s - request.came_s)


async def run(case: Case, seconds: float, *, fair: bool) -> Model:
    """One case in one order."""
    model = Model()
    queue = FairQueue(SLOTS, SEQUENCES // SLOTS, 1e9, clock=lambda: model.now_s) if fair else None
    tasks = [asyncio.create_task(model.client(case, number, queue)) for number in range(case.clients)]
    while model.now_s < seconds:
        for _ in range(SETTLING):
            await asyncio.sleep(0)
        model.step()
    model.end()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return model


def line(model: Model) -> tuple[float, float, float, float]:
    """Tokens per second; of the adapters' p99 to the first token: the worst, the median one, and their ratio."""
    tails = [percentile(waits, 0.99) for waits in model.first_s.values()]
    return model.tokens / model.now_s, max(tails), statistics.median(tails), max(tails) / statistics.median(tails)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0)
    given = parser.parse_args()
    print("| case | order | tokens/s | worst p99 TTFT, s | median p99 TTFT, s | ratio |\n|---|---|---|---|---|---|")
    for case in CASES:
        for fair in (False, True):
            speed, worst, median, ratio = line(asyncio.run(run(case, given.seconds, fair=fair)))
            order = "turns" if fair else "vLLM's"
            print(f"| {case.name} | {order} | {speed:.1f} | {worst:.2f} | {median:.2f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
