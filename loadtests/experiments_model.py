"""Simulated experiments with known rates: how often the server's own rule ends them rightly. No engine, no server runs.

Every case is 200 experiments, each with draws of its own seed. After every few outcomes `domain.experiment.judge` is
asked, as the server asks it every second. Beside it, for the same outcomes, a test that is made for a single look is
asked as often: the two-sample z-test at the same risk. Counts of decisions, which do not depend on the machine.

    python loadtests/experiments_model.py [--runs 200] [--out experiments_model]      # five minutes
"""

import argparse
import json
import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "server")]

from amalgam.domain.experiment import Experiment, ExperimentSpec, Guard, LatencyGuard, TargetCounts, judge  # noqa: E402
from amalgam.domain.sequential import Sample  # noqa: E402

RESULTS: Final = Path(__file__).resolve().parent / "results"
NOW: Final = datetime(2030, 1, 1, tzinfo=UTC)
CONTROL: Final = "sql@1"
CANDIDATE: Final = "sql@2"
Z_OF_RISK: Final = 1.959964
"""Two-sided, at 5 %."""

Draw = Callable[[random.Random], float]


def yes(rate: float) -> Draw:
    """A thumb."""
    return lambda draws: float(draws.random() < rate)


def graded(mean: float) -> Draw:
    """A score from 0 to 1, of a beta distribution."""
    return lambda draws: draws.betavariate(4 * mean, 4 * (1 - mean))


@dataclass(frozen=True)
class Case:
    """What is true, what is asked, and which end is right.

    Attributes:
        name: what the page says.
        draws: outcomes of the control and of the candidate; None of both: no feedback.
        right: verdicts that are right.
        share: of the requests, that the candidate gets.
        errors, slow: true shares of both.
        spec: what is asked for.
        most: requests after which a run is given up.
        look: requests between two looks.
    """

    name: str
    draws: tuple[Draw, Draw] | None
    right: frozenset[str]
    share: float
    spec: ExperimentSpec
    most: int
    errors: tuple[float, float] = (0.0, 0.0)
    slow: tuple[float, float] = (0.0, 0.0)
    look: int = 10


def asked(**given: object) -> ExperimentSpec:
    """What the cases ask for."""
    return ExperimentSpec.model_validate({"control": CONTROL, "metric": "thumb", "minimum_effect": 0.05, **given})


GUARDS: Final = {"metric": None, "errors": Guard(most_above=0.02), "latency": LatencyGuard(most_above=0.05, slow_ms=1)}
GOES_ON: Final = frozenset({"goes_on"})
NOT_PROMOTED: Final = frozenset({"not_better", "undecided", "worse"})
BETTER: Final = frozenset({"better"})

CASES: Final = (
    Case("better, 60 → 70 %, half the requests", (yes(0.6), yes(0.7)), BETTER, 0.5, asked(), 50_000),
    Case("better, 60 → 70 %, a tenth of the requests", (yes(0.6), yes(0.7)), BETTER, 0.1, asked(), 100_000, look=50),
    Case(
        "better, 90 → 95 %, half the requests", (yes(0.9), yes(0.95)), BETTER, 0.5, asked(minimum_effect=0.02), 50_000
    ),
    Case("better, scores, 0.60 → 0.70", (graded(0.6), graded(0.7)), BETTER, 0.5, asked(), 50_000),
    Case("worse, 70 → 60 %", (yes(0.7), yes(0.6)), frozenset({"worse", "not_better"}), 0.5, asked(), 50_000),
    Case("no difference, 65 %", (yes(0.65), yes(0.65)), NOT_PROMOTED, 0.5, asked(most_outcomes=10_000), 10_000),
    Case("no difference, 5 %", (yes(0.05), yes(0.05)), NOT_PROMOTED, 0.5, asked(most_outcomes=10_000), 10_000),
    Case("no difference, scores, 0.65", (graded(0.65),) * 2, NOT_PROMOTED, 0.5, asked(most_outcomes=10_000), 10_000),
    Case(
        "a canary with 20 % errors, the control 1 %",
        *(None, frozenset({"guard_errors"}), 0.1, asked(**GUARDS), 5_000, (0.01, 0.2)),
    ),
    Case(
        "a canary with 50 % errors, the control none",
        *(None, frozenset({"guard_errors"}), 0.1, asked(**GUARDS), 5_000, (0.0, 0.5)),
    ),
    Case(
        "a canary with 30 % slow answers, the control 5 %",
        *(None, frozenset({"guard_latency"}), 0.1, asked(**GUARDS), 10_000, (0.0, 0.0), (0.05, 0.3)),
    ),
    Case(
        "a canary as good as the control: 1 % errors, 5 % slow",
        *(None, GOES_ON, 0.1, asked(**GUARDS), 10_000, (0.01, 0.01), (0.05, 0.05)),
    ),
)


@dataclass
class Seen:
    """Of one target, as it is counted."""

    requests: int = 0
    errors: int = 0
    slow: int = 0
    outcomes: int = 0
    total: float = 0.0

    def counts(self) -> TargetCounts:
        """As the rule is given it."""
        return TargetCounts.model_construct(**asdict(self))


def run(case: Case, seed: int) -> tuple[str, int, bool]:
    """One experiment: its verdict, after how many requests, and whether z-tests at the same looks promote at any."""
    draws = random.Random(f"{case.name}-{seed}")
    seen = (Seen(), Seen())
    peeked = False
    verdict, ended = "goes_on", case.most
    for number in range(1, case.most + 1):
        side = int(draws.random() < case.share)
        one = seen[side]
        one.requests += 1
        one.errors += draws.random() < case.errors[side]
        one.slow += draws.random() < case.slow[side]
        if case.draws is not None:
            one.outcomes += 1
            one.total += case.draws[side](draws)
        if number % case.look:
            continue
        peeked = peeked or z_above(*(Sample(each.outcomes, each.total) for each in seen))
        if verdict == "goes_on" and (ending := judge(experiment(case.spec, seen))) is not None:
            verdict, ended = ending.verdict, number
            if case.right is not NOT_PROMOTED:
                break
    return verdict, ended, peeked


def experiment(spec: ExperimentSpec, seen: Sequence[Seen]) -> Experiment:
    """As the registry gives it."""
    counts = {CONTROL: seen[0].counts(), CANDIDATE: seen[1].counts()}
    return Experiment.model_construct(
        id="exp-1", alias="chat", candidates=(CANDIDATE,), spec=spec, state="running", counts=counts, created_at=NOW
    )


def z_above(control: Sample, candidate: Sample) -> bool:
    """What a test for a single look says of outcomes of 0 and 1."""
    if min(control.count, candidate.count) < 30:
        return False
    pooled = (control.total + candidate.total) / (control.count + candidate.count)
    spread = math.sqrt(pooled * (1 - pooled) * (1 / control.count + 1 / candidate.count))
    return spread > 0 and candidate.total / candidate.count - control.total / control.count > Z_OF_RISK * spread


def row(case: Case, runs: int) -> Mapping[str, object]:
    """One case of the table."""
    found = [run(case, seed) for seed in range(runs)]
    verdicts = [verdict for verdict, _, _ in found]
    ended = [after for verdict, after, _ in found if verdict in case.right]
    return {
        "case": case.name,
        "runs": runs,
        "right": sum(verdict in case.right for verdict in verdicts),
        "promoted": verdicts.count("better"),
        "verdicts": {verdict: verdicts.count(verdict) for verdict in sorted(set(verdicts))},
        "requests_median": statistics.median(ended) if ended else None,
        "requests_p95": sorted(ended)[int(0.95 * (len(ended) - 1))] if ended else None,
        "requests_most": max(ended, default=None),
        "promoted_by_peeking": sum(peeked for *_, peeked in found) if case.draws is not None else None,
    }


def page(rows: Sequence[Mapping[str, object]], command: str) -> str:
    """The table as Markdown."""
    head = (
        "case",
        "ended rightly",
        "promoted",
        "verdicts",
        "requests to the end: median, 95 %, most",
        "z-test peeking",
    )
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for one in rows:
        verdicts = one["verdicts"]
        assert isinstance(verdicts, dict)
        told = ", ".join(f"{name} {count}" for name, count in verdicts.items())
        after = f"{one['requests_median']}, {one['requests_p95']}, {one['requests_most']}"
        peeking = "" if one["promoted_by_peeking"] is None else f"{one['promoted_by_peeking']} promoted"
        cells = (one["case"], f"{one['right']} of {one['runs']}", one["promoted"], told, after, peeking)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(
        [
            "# Simulated experiments",
            "",
            f"{time.strftime('%Y-%m-%d')}, `{command}`. Seeded: the counts are the same on every machine, busy or not.",
            "",
            *lines,
            "",
        ]
    )


def main() -> None:
    """Run the cases, print the page, keep it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--out", default="")
    given = parser.parse_args()
    rows = []
    for case in CASES:
        rows.append(row(case, given.runs))
        print(json.dumps(rows[-1]), flush=True)
    text = page(rows, f"python loadtests/experiments_model.py --runs {given.runs}")
    print(text)
    if given.out:
        report = {"date": time.strftime("%Y-%m-%d"), "runs": given.runs, "rows": rows}
        (RESULTS / f"{given.out}.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        (RESULTS / f"{given.out}.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
