"""What a router gets right: prompts in wordings that it was not fitted with, and prompts of no task; and what it costs.

Three sets: the demo's three tasks, ten tasks of which some are close to each other, and the ten with a third of the
examples. The other side is a centroid for each task over the same features, with a threshold found on the same prompts.
No model runs.

    python loadtests/routing.py [--out routing]      # a minute
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY)]
if "PYTHONPATH" not in os.environ:
    sys.path[:0] = [str(REPOSITORY / "server")]

import numpy as np  # noqa: E402

from amalgam.domain.routing import RouterSpec, Said  # noqa: E402
from amalgam.routing.features import vector  # noqa: E402
from amalgam.routing.neutral_prompts import NEUTRAL_PROMPTS  # noqa: E402
from amalgam.routing.router import FittedRouter, fit_router  # noqa: E402
from amalgam_demo import tasks as demo_tasks  # noqa: E402
from loadtests.report import Row, write_report  # noqa: E402
from loadtests.routing_prompts import NEUTRAL, TASKS  # noqa: E402

ROUNDS: Final = 5
TESTS: Final = 24
DEMO_TESTS: Final = 60
SEED: Final = 1
RIGHT_MARK: Final = 0.95
NEUTRAL_MARK: Final = 0.90
MARK_US: Final = 1000
_KEPT_OUT: Final = 0.87
Choose = Callable[[str], tuple[str, str]]
"""Gives the target of a prompt, and the candidate of the highest score."""


@dataclass(frozen=True)
class Case:
    """Prompts by task."""

    name: str
    examples: Mapping[str, Sequence[str]]
    tests: Mapping[str, Sequence[str]]


def cases() -> list[Case]:
    """The three sets."""
    demo = {task: demo_tasks.generate(task, "train", 30, SEED) for task in demo_tasks.TASKS}
    asked = {task: demo_tasks.generate(task, "test", DEMO_TESTS, SEED) for task in demo_tasks.TASKS}
    tests = {task: prompts.tests(TESTS) for task, prompts in TASKS.items()}
    ten = [
        Case(f"ten tasks, {count} examples each", {t: p.examples(count) for t, p in TASKS.items()}, tests)
        for count in (30, 10)
    ]
    prompts = [{task: [item.prompt for item in items] for task, items in found.items()} for found in (demo, asked)]
    return [Case("demo, 30 examples each", prompts[0], prompts[1]), *ten]


def router_of(case: Case) -> Choose:
    """Ours."""
    spec = RouterSpec(
        candidates=tuple(case.examples), otherwise="base", examples={k: tuple(v) for k, v in case.examples.items()}
    )
    fitted = FittedRouter.of(*fit_router(spec))

    def choose(text: str) -> tuple[str, str]:
        route = fitted.route(Said(text))
        return route.model, route.scores[0][0]

    return choose


def centroids_of(case: Case) -> Choose:
    """The mean of each task's examples; the threshold keeps as many of the same prompts of no task out."""
    names = list(case.examples)
    means = np.stack([np.stack([vector(text) for text in case.examples[name]]).mean(axis=0) for name in names])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    threshold = np.quantile([float((means @ vector(text)).max()) for text in NEUTRAL_PROMPTS], _KEPT_OUT)

    def choose(text: str) -> tuple[str, str]:
        likeness = means @ vector(text)
        best = names[int(likeness.argmax())]
        return best if likeness.max() >= threshold else "base", best

    return choose


def shares(case: Case, choose: Choose) -> dict[str, float]:
    """Percent: prompts to their task, the highest score at their task, and prompts of no task to the base model."""
    asked = [(name, *choose(text)) for name, texts in case.tests.items() for text in texts]
    return {
        "held-out wordings to their task": 100 * statistics.mean(name == target for name, target, _ in asked),
        "highest score at their task": 100 * statistics.mean(name == best for name, _, best in asked),
        "not to another task's adapter": 100 * statistics.mean(target in (name, "base") for name, target, _ in asked),
        "prompts of no task to the base model": 100 * statistics.mean(choose(text)[0] == "base" for text in NEUTRAL),
    }


def seconds(choose: Choose, text: str, calls: int = 200) -> float:
    """Processor time of a decision."""
    began = time.process_time()
    for _ in range(calls):
        choose(text)
    return (time.process_time() - began) / calls


def rows_of(case: Case) -> list[Row]:
    """Shares do not vary between rounds; times do."""
    ours, theirs = router_of(case), centroids_of(case)
    found = [Row(f"{case.name}: {name}", "%", [value], [shares(case, theirs)[name]])
             for name, value in shares(case, ours).items()]  # fmt: skip
    question = next(iter(case.tests.values()))[0]
    for name, text in (("a question", question), ("1000 characters and more", " ".join(NEUTRAL))):
        taken: tuple[list[float], list[float]] = ([], [])
        for _ in range(ROUNDS):
            for side, choose in zip(taken, (ours, theirs), strict=True):
                side.append(1e6 * seconds(choose, text))
        found.append(Row(f"{case.name}: a decision, {name}", "us", *taken))
    return found


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="routing")
    arguments = parser.parse_args()
    rows = [row for case in cases() for row in rows_of(case)]
    about: dict[str, Any] = {
        "right_mark": RIGHT_MARK, "neutral_mark": NEUTRAL_MARK, "mark_us": MARK_US, "prompts of no task": len(NEUTRAL),
        "tests of a task": f"{TESTS}, of the demo {DEMO_TESTS}; times are processor time",
    }  # fmt: skip
    theirs = "a centroid for each task"
    write_report("What a router gets right", rows, rounds=ROUNDS, out=arguments.out, notes=about, theirs=theirs)


if __name__ == "__main__":
    main()
