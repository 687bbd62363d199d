"""Whether adapters know their own prompts: the energy of what the base model makes of a prompt in their row spaces.

The demo's three adapters, and nine with those of two more families, without any example. Sides: the adapters choose,
at a pass of the base model for each request; a text router with 30 examples a task; a text router whose examples the
adapters found among prompts without labels, at one pass for each when the alias is set; one with examples of both
kinds. The program trains the six adapters into the folder where they are not there yet. No server runs.

    python loadtests/routing_adapters.py --work FOLDER [--out routing_adapters]   # minutes; with training half an hour
"""

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Final

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "server")]

import numpy as np  # noqa: E402
import torch  # noqa: E402

from amalgam.demo.base_model import ensure_base_model  # noqa: E402
from amalgam.domain.routing import RouterSpec, Said  # noqa: E402
from amalgam.routing.neutral_prompts import NEUTRAL_PROMPTS  # noqa: E402
from amalgam.routing.router import FittedRouter, fit_router  # noqa: E402
from amalgam.routing.row_labels import MEASURED_BY, labelled  # noqa: E402
from amalgam.settings import Settings  # noqa: E402
from amalgam.workers.base_reading import BaseReading, energies  # noqa: E402
from loadtests.report import Row, write_report  # noqa: E402
from loadtests.routing_development import DEVELOPMENT  # noqa: E402
from loadtests.routing_prompts import NEUTRAL, TASKS  # noqa: E402
from loadtests.skill_families import FAMILIES, Family, family_items  # noqa: E402
from loadtests.skill_model import SkillModel, opened  # noqa: E402

STEPS: Final = 32
"""Of training; the loss is below a tenth from there on."""
OWN: Final = 30
"""Prompts a task of the adapters' own wordings to fit with; twice as many are asked."""
DEMO: Final = ("sql", "code", "json")
IN_OTHER_WORDS: Final = {"sql": "sql", "code": "python", "json": "json"}
"""Tasks of `routing_prompts` that a demo adapter is for."""
ROUNDS: Final = 5
MARGIN: Final = 0.2
Choose = Callable[[str], str]


@dataclass(frozen=True)
class Case:
    """Adapters, what is asked, and what may be learned from.

    Attributes:
        name: of the rows.
        adapters: the candidates.
        asked: prompts by kind and adapter: in its own wordings, in others.
        foreign: prompts of tasks that no candidate is for.
        examples: by adapter.
        unlabelled: prompts of these tasks and of others.
    """

    name: str
    adapters: Sequence[str]
    asked: Mapping[str, Mapping[str, Sequence[str]]]
    foreign: Sequence[str]
    examples: Mapping[str, Sequence[str]]
    unlabelled: Sequence[str]


def own(task: str, split: str, count: int) -> list[str]:
    """Prompts of a task of the families."""
    return [item.prompt for item in family_items(task, split, count)]  # type: ignore[arg-type]


def cases() -> list[Case]:
    """Three adapters, and nine."""
    every = [task for family in FAMILIES.values() for task in family.tasks]
    others = [text for task, prompts in DEVELOPMENT.items() if task not in IN_OTHER_WORDS.values() for text in prompts]
    in_others = {name: DEVELOPMENT[task] for name, task in IN_OTHER_WORDS.items()}
    elsewhere = [t for n in ("german", "french", "summary", "headline", "sentiment") for t in TASKS[n].tests(24)]
    found = []
    for name, adapters in (("three adapters", DEMO), ("nine adapters", every)):
        examples = {task: own(task, "dev", OWN) for task in adapters}
        asked = {
            "in their own wordings": {task: own(task, "test", 2 * OWN) for task in adapters},
            "in other wordings": {task: TASKS[other].tests(24) for task, other in IN_OTHER_WORDS.items()},
        }
        foreign = elsewhere + [t for task in every if task not in adapters for t in own(task, "test", 20)]
        pool = [t for prompts in (*examples.values(), *in_others.values(), others) for t in prompts]
        found.append(Case(name, adapters, asked, foreign, examples, pool))
    return found


class Bench:
    """The base model and the adapters' factors."""

    def __init__(self, work: Path) -> None:
        folder = ensure_base_model(Settings().storage.cache_dir, print)
        self._a = {
            task: {module: source.factors(module)[0] for module in source.header.modules}
            for family in FAMILIES.values()
            for task, source in opened(_shorter(family), work, _trainer(family, work)).items()
        }
        self._reading = BaseReading(folder)

    def energies(self, adapters: Sequence[str], prompts: Sequence[str]) -> np.ndarray:
        """[prompts, adapters]."""
        return np.array(energies(self._reading, {name: self._a[name] for name in adapters}, prompts))

    def by_adapters(self, case: Case, margin: float) -> Choose:
        """A pass for each prompt; those that are asked are read before, together."""
        texts = list(dict.fromkeys([*_every(case), *NEUTRAL]))
        found = self.energies(case.adapters, [*MEASURED_BY, *texts])
        relative = found / found[: len(MEASURED_BY)].mean(axis=0)
        threshold = np.quantile(relative[: len(MEASURED_BY)].max(axis=1), 0.9)
        rows = dict(zip(texts, relative[len(MEASURED_BY) :], strict=True))

        def choose(text: str) -> str:
            first, second = np.sort(rows[text])[::-1][:2]
            is_clear = first >= threshold and first - second >= margin
            return case.adapters[int(rows[text].argmax())] if is_clear else "base"

        return choose

    def found_examples(self, case: Case) -> Mapping[str, Sequence[str]]:
        """Those of the prompts without labels that an adapter knows."""
        values = self.energies(case.adapters, [*MEASURED_BY, *case.unlabelled])
        return labelled(case.unlabelled, case.adapters, values.tolist())

    def seconds(self, prompt: str, adapters: Sequence[str]) -> float:
        """Processor time of a pass of the base model for a decision, in one thread."""
        modules = {module for name in adapters for module in self._reading.late_modules(self._a[name])}
        began = time.process_time()
        self._reading.inputs([prompt], modules)
        return time.process_time() - began


def _shorter(family: Family) -> Family:
    how = {task: made if made is None else replace(made, steps=STEPS) for task, made in family.tasks.items()}
    return replace(family, tasks=how)


def _trainer(family: Family, work: Path) -> SkillModel:
    """Only asked where an adapter is missing."""
    missing = any(how is not None and not (work / task).is_dir() for task, how in family.tasks.items())
    return SkillModel() if missing else None  # type: ignore[return-value]


def _every(case: Case) -> list[str]:
    return [t for kinds in case.asked.values() for texts in kinds.values() for t in texts] + list(case.foreign)


def by_text(examples: Mapping[str, Sequence[str]]) -> Choose:
    """A text router."""
    given = {name: tuple(dict.fromkeys(texts))[:200] for name, texts in examples.items()}
    spec = RouterSpec(candidates=tuple(given), otherwise="base", examples=given)
    fitted = FittedRouter.of(*fit_router(spec))
    return lambda text: fitted.route(Said(text)).model


def joined(told: Mapping[str, Sequence[str]], found: Mapping[str, Sequence[str]]) -> Mapping[str, Sequence[str]]:
    """Both signals: examples that are written out, and behind them those that the adapters found."""
    return {task: [*texts, *found.get(task, ())] for task, texts in told.items()}


def shares(case: Case, choose: Choose) -> dict[str, float]:
    """Percent of what is asked."""
    found = {}
    for kind, by_task in case.asked.items():
        targets = [(task, choose(text)) for task, texts in by_task.items() for text in texts]
        found[f"{kind}, to their adapter"] = 100 * mean(task == target for task, target in targets)
        found[f"{kind}, not to another adapter"] = 100 * mean(target in (task, "base") for task, target in targets)
    found["prompts of no task to the base model"] = 100 * mean(choose(text) == "base" for text in NEUTRAL)
    found["prompts of other tasks to the base model"] = 100 * mean(choose(text) == "base" for text in case.foreign)
    return found


def rows_of(case: Case, bench: Bench) -> list[Row]:
    """The adapters against text routers with examples, and with examples that the adapters found."""
    examples = bench.found_examples(case)
    told = {task: set(texts) for task, texts in case.examples.items()}
    wrong = mean(
        text not in told[task] and text not in DEVELOPMENT.get(IN_OTHER_WORDS.get(task, ""), ())
        for task, texts in examples.items() for text in texts
    )  # fmt: skip
    sides = {
        "no margin": shares(case, bench.by_adapters(case, 0.0)),
        "examples": shares(case, by_text(case.examples)),
        "examples found by the adapters": shares(case, by_text(examples)),
        "examples of both kinds": shares(case, by_text(joined(case.examples, examples))),
    }
    rows = [
        Row(f"{case.name}: {name}", "%", [value], [sides["examples"][name]],
            {side: f"{values[name]:.4g}" for side, values in sides.items() if side != "examples"})
        for name, value in shares(case, bench.by_adapters(case, MARGIN)).items()
    ]  # fmt: skip
    choose, prompt = by_text(case.examples), case.examples[case.adapters[0]][0]
    taken = [1e3 * bench.seconds(prompt, case.adapters) for _ in range(ROUNDS)]
    began = time.process_time()
    for _ in range(100):
        choose(prompt)
    rows.append(Row(f"{case.name}: a decision", "ms", taken, [10 * (time.process_time() - began)]))
    sizes = {task: len(texts) for task, texts in examples.items()}
    print(case.name, "found", sizes, f"of {len(case.unlabelled)}; wrong {100 * wrong:.3g} %", flush=True)
    return rows


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of the trained adapters")
    parser.add_argument("--out", default="routing_adapters")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(arguments.work)
    rows = [row for case in cases() for row in rows_of(case, bench)]
    notes = {
        "prompts of no task": len(NEUTRAL), "measured by": f"{len(MEASURED_BY)} of {len(NEUTRAL_PROMPTS)} prompts",
        "margin": MARGIN, "of times": "processor time in one thread",
    }  # fmt: skip
    title = "Whether adapters know their own prompts"
    write_report(
        title, rows, rounds=ROUNDS, out=arguments.out, notes=notes, ours="the adapters", theirs="a text router"
    )


if __name__ == "__main__":
    main()
