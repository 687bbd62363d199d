"""Where requests go with up to a thousand engines and a million adapters: a model around the router's own code.

No engine runs. Arrivals come at random, at a rate that keeps engines at a given share of the requests from which on
they count as busy; which adapter they ask for follows Zipf's law. An engine keeps so many adapters in memory, the ones
asked for last; one that it does not have is loaded first. Each request takes some seconds, longer where an engine has
more than it can batch. Three ways to choose an engine are compared: the server's, by `amalgam.engine.remote.affinity`,
which each front counts shares for by itself; at random; and the one with the least to do. Loads are known exactly, as
they are not in life.

    python loadtests/placement_model.py [--quick] [--out placement_model]      # some twenty minutes; quick: one
"""

import argparse
import heapq
import random
import statistics
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "server")]

import numpy as np  # noqa: E402

from amalgam.engine.remote.affinity import Shares, ranked  # noqa: E402
from loadtests.report import Row, write_report  # noqa: E402

BUSY: Final = 32
"""Requests from which on an engine is passed over, as `amalgam engine` has it."""
PLACES: Final = 64
"""Adapters that an engine keeps in memory."""
SERVICE_S: Final = 2.0
LOAD_S: Final = 0.5
FILLED: Final = 0.6
"""Requests under way, of those from which on all engines would be busy."""
FRONTS: Final = 4
SAMPLED: Final = 2_000
"""Adapters of which is asked whether they moved."""


@dataclass(frozen=True)
class Size:
    """One case."""

    engines: int
    adapters: int
    requests: int
    """Measured, after half as many that are not."""
    exponent: float = 1.0
    """Of Zipf's law."""

    @property
    def name(self) -> str:
        """For the row."""
        return f"{self.engines:,} engines, {self.adapters:,} adapters, zipf {self.exponent:g}"


SIZES: Final = (
    Size(4, 1_000, 100_000),
    Size(16, 10_000, 100_000),
    Size(100, 100_000, 100_000),
    Size(100, 100_000, 100_000, 0.8),
    Size(100, 100_000, 100_000, 1.2),
    Size(1_000, 1_000_000, 100_000),
)
QUICK: Final = (Size(4, 1_000, 4_000), Size(16, 10_000, 8_000))


@dataclass
class Engine:
    """As a router sees it."""

    name: str
    load: int = 0
    is_ready: bool = True
    resident: "OrderedDict[str, None]" = field(default_factory=OrderedDict)
    asked: Sequence[str] = ("",)
    """The adapter that is being routed, as its only item: one list for all engines."""

    @property
    def is_resident(self) -> bool:
        """Whether that adapter is in its memory."""
        return self.asked[0] in self.resident


@dataclass
class Model:
    """Engines, the clock and what was counted."""

    size: Size
    seed: int
    now_s: float = 0.0
    hits: int = 0
    loads: int = 0
    to_busy: int = 0
    routed: int = 0
    spreads: list[float] = field(default_factory=list)
    """Load of the fullest engine over the mean, from time to time."""

    def __post_init__(self) -> None:
        self.draws = random.Random(self.seed)
        self.asked = [""]
        self.engines = [Engine(f"engine-{number}", asked=self.asked) for number in range(self.size.engines)]
        self._ends: list[tuple[float, int, Engine]] = []
        self._order = 0

    def arrivals(self, count: int) -> Iterator[str]:
        """Adapters, while the clock goes on and requests end."""
        weights = 1.0 / np.arange(1, self.size.adapters + 1) ** self.size.exponent
        picks = np.random.default_rng(self.seed + count).choice(self.size.adapters, count, p=weights / weights.sum())
        for pick in picks:
            self.now_s += self.draws.expovariate(len(self.engines) * BUSY * FILLED / SERVICE_S)
            while self._ends and self._ends[0][0] <= self.now_s:
                heapq.heappop(self._ends)[2].load -= 1
            self.asked[0] = f"adapter-{pick}"
            yield self.asked[0]

    def send(self, engine: Engine, adapter: str) -> None:
        """Have ``engine`` answer."""
        self.routed += 1
        self.to_busy += engine.load >= BUSY
        takes_s = SERVICE_S * self.draws.uniform(0.5, 1.5) * max(1.0, engine.load / BUSY)
        if adapter in engine.resident:
            self.hits += 1
            engine.resident.move_to_end(adapter)
        else:
            self.loads += 1
            takes_s += LOAD_S
            engine.resident[adapter] = None
            if len(engine.resident) > PLACES:
                engine.resident.popitem(last=False)
        engine.load += 1
        self._order += 1
        heapq.heappush(self._ends, (self.now_s + takes_s, self._order, engine))
        if self.routed % 200 == 0:
            loads = [one.load for one in self.engines]
            self.spreads.append(max(loads) / max(statistics.fmean(loads), 1e-9))

    def forget(self) -> None:
        """Count from here on."""
        self.hits = self.loads = self.to_busy = self.routed = 0
        self.spreads.clear()
        self._from_s = self.now_s

    def figures(self) -> dict[str, float]:
        """What was counted, by what the row says."""
        return {
            "requests at an engine that has the adapter, %": 100 * self.hits / self.routed,
            "loads a second and engine": self.loads / (self.now_s - self._from_s) / len(self.engines),
            "fullest engine, times the mean load": statistics.fmean(self.spreads),
            "requests at a busy engine, %": 100 * self.to_busy / self.routed,
        }


Choose = Callable[[Model], Callable[[str], int]]


def by_affinity(model: Model) -> Callable[[str], int]:
    """The server's own way, with fronts that take turns."""
    fronts = [Shares(lambda: model.now_s) for _ in range(FRONTS)]

    def choose(adapter: str) -> int:
        shares = fronts[model.draws.randrange(FRONTS)]
        shares.arrived(adapter)
        return ranked(adapter, model.engines, shares.homes(adapter, len(model.engines)), BUSY, 0)[0]

    return choose


def at_random(model: Model) -> Callable[[str], int]:
    """Any engine."""
    return lambda adapter: model.draws.randrange(len(model.engines))


def least_loaded(model: Model) -> Callable[[str], int]:
    """The engine with the least to do; of several, any."""

    def choose(adapter: str) -> int:
        least = min(one.load for one in model.engines)
        return model.draws.choice([place for place, one in enumerate(model.engines) if one.load == least])

    return choose


WAYS: Final[Mapping[str, Choose]] = {"affinity": by_affinity, "random": at_random, "least loaded": least_loaded}


def run(size: Size, way: Choose, seed: int) -> dict[str, float]:
    """One case, one way."""
    model = Model(size, seed)
    choose, decided_s = way(model), 0.0
    for adapter in model.arrivals(size.requests // 2):
        model.send(model.engines[choose(adapter)], adapter)
    model.forget()
    for adapter in model.arrivals(size.requests):
        # Processor time: nothing else that the machine does is counted.
        began = time.thread_time()
        place = choose(adapter)
        decided_s += time.thread_time() - began
        model.send(model.engines[place], adapter)
    return model.figures() | {"a decision, µs": decided_s / size.requests * 1e6}


def homes_of(engines: Sequence[Engine], adapters: Sequence[str]) -> dict[str, str]:
    """The engine that each adapter goes to while nobody is busy."""
    return {adapter: engines[ranked(adapter, engines, 1, BUSY, 0)[0]].name for adapter in adapters}


def moved(engines: int, more: int) -> float:
    """Of adapters, the share whose home is another one after ``more`` engines came, or, below 0, went, in per cent."""
    adapters = [f"adapter-{number}" for number in range(SAMPLED)]
    before = [Engine(f"engine-{number}") for number in range(engines)]
    after = [Engine(f"engine-{number}") for number in range(engines + more)]
    homes, then = homes_of(before, adapters), homes_of(after, adapters)
    return 100 * sum(homes[adapter] != then[adapter] for adapter in adapters) / SAMPLED


def rows_for(size: Size, seeds: Sequence[int]) -> list[Row]:
    """A row for each figure."""
    found = {way: [run(size, choose, seed) for seed in seeds] for way, choose in WAYS.items()}
    rows = []
    for case in found["affinity"][0]:
        by_way = {way: [figures[case] for figures in of_seeds] for way, of_seeds in found.items()}
        name, _, unit = case.partition(", ") if case.endswith(("%", "µs")) else (case, "", "")
        extra = {"random": f"{statistics.median(by_way['random']):.4g}"}
        # What never happens has no ratio.
        theirs = [max(value, 1e-6) for value in by_way["least loaded"]]
        rows.append(Row(f"{size.name}: {name}", unit, by_way["affinity"], theirs, extra))
    return rows


def moves_of(sizes: Sequence[Size]) -> list[Row]:
    """What scaling moves, beside the least that any way with homes could move."""
    rows = []
    for engines in dict.fromkeys(size.engines for size in sizes):
        for more in (1, -1, max(1, engines // 4)):
            least = 100 * abs(more) / max(engines, engines + more)
            case = f"{engines:,} engines, {more:+d}: adapters that move"
            rows.append(Row(case, "%", [moved(engines, more)], [least], {"the other side": "the least possible"}))
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes alone")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", default="")
    parser.add_argument("--note", default="")
    given = parser.parse_args()
    sizes, rows = QUICK if given.quick else SIZES, []
    for size in sizes:
        # A thousand engines take as long as all the others; there the many adapters make up for one draw.
        rows += rows_for(size, range(1 if size.engines > 100 else given.seeds))
        print(f"{size.name}: done", file=sys.stderr, flush=True)
    rows += moves_of(sizes)
    notes = {
        "Engines": f"{PLACES} adapters in memory, busy from {BUSY} requests on, {FILLED:.0%} of that under way; "
        f"{SERVICE_S:g} s a request, {LOAD_S:g} s a load; {FRONTS} fronts",
        "note": given.note,
    }
    write_report(
        "Where requests go, in a model", rows, rounds=given.seeds, out=given.out, notes=notes,
        ours="affinity", theirs="least loaded",
    )  # fmt: skip


if __name__ == "__main__":
    main()
