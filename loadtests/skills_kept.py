"""Does what a merge keeps of an input's own answers predict how many it still gets right?

Merges of three families of tasks (the demo's, and two with other formats, lengths and unequal adapters): every method
at its defaults, sums, `ties`, `iso_c` and `karcher` with random weights, and sums of inputs that were fitted to two,
five or ten other prompts, which lose less. Of each merge and each task: agreement, whole answers and likelihood on a
few unlabelled prompts, today's likelihood of references, and right answers to other questions: ten, and forty where
the likelihood is near the threshold of `skill_lost`, because among ten one answer is half of what counts as lost. The
page says how each figure goes with the share of right answers that is kept, and how often a threshold warns rightly.

    python loadtests/skills_kept.py --work FOLDER [--minutes 60] [--out skills_kept]   # goes on where it stopped
    python loadtests/skills_kept.py --work FOLDER --minutes 0 --out skills_kept        # writes what is known
"""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from random import Random
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "server")]

import torch  # noqa: E402

from amalgam.domain.evaluation import EvaluationItem  # noqa: E402
from amalgam.domain.expression import parse_expression  # noqa: E402
from amalgam.domain.fit import ReadingFit  # noqa: E402
from amalgam.domain.kept import AnswerRead, input_kept  # noqa: E402
from amalgam.merge.sources import TensorSource  # noqa: E402
from amalgam.workers.reading_fit import Place, read_and_fit  # noqa: E402
from loadtests.report import RESULTS, machine, versions  # noqa: E402
from loadtests.skill_families import FAMILIES, Family, family_items, is_right  # noqa: E402
from loadtests.skill_model import Answer, SkillModel, merged, opened, written  # noqa: E402
from loadtests.skills_page import skills_page  # noqa: E402

PROBES = 24
"""Unlabelled prompts an input, of the split `test` as the questions are and none of them. Of eight, eight others
would say something else."""
ITEMS = 10
"""Scored questions a task, of the split `test`; of many the first ones."""
MANY = 40
"""So many are asked of an input that is kept more or less."""
NEAR = (0.7, 0.98)
"""It is kept more or less where the likelihood of its own answers is between these."""
ROUND = 24
"""Random merges a family."""
FITTED = (2, 5, 10)
"""Prompts an input of fits, in turn, of the split `dev`."""
FITS = 30
"""Merges of fitted inputs a family: the first of each number with weights of 1, the others with random ones. Without
them hardly a merge would keep every skill, and nothing could be said of false alarms."""
SPREADS = ((0.4, 1.2), (0.8, 1.1))
"""Their random weights are between these, in turn."""
_FIT_MARK = " prompts fit: "
PLAIN = (
    "task_arithmetic({})", "linear({})", "multislerp({})", "karcher({})", "ties({})", "sce({})", "tsv({})",
    "iso_c({})", "magnitude_prune({}; space=knots)", "dare_linear({}; space=knots, seed=1)",
    "dare_ties({}; space=knots, seed=1)", "breadcrumbs_ties({}; space=knots)", "svd({}; rank=8)",
    "task_arithmetic({}; calibrate=pico)", "task_arithmetic({}; norm_balance=true)",
)  # fmt: skip


def expressions(family: Family) -> Iterator[str]:
    """The merges of a family, methods at their defaults and random ones in turn; always the same."""
    names = list(family.tasks)
    chance = Random(f"{family.name}/merges")
    drawn = []
    for number in range(ROUND):
        spread = 1.4 if number % 2 else 0.9
        terms = ", ".join(f"{chance.uniform(0.15, spread):.3f}*{name}" for name in names)
        scale = f"{chance.uniform(0.6, 1.6):.3f}"
        drawn.append((
            f"task_arithmetic({terms})", f"task_arithmetic({terms})", f"ties({terms}; lambda={scale})",
            f"task_arithmetic({terms})", f"iso_c({terms}; lambda={scale})", f"karcher({terms})",
        )[number % 6])  # fmt: skip
    plain = [form.format(", ".join(names)) for form in PLAIN]
    for some in zip_longest(drawn, plain, _fits(family.name, names)):
        yield from (one for one in some if one)


def _fits(family: str, names: Sequence[str]) -> Iterator[str]:
    chance = Random(f"{family}/fits")
    for number in range(FITS):
        spread = SPREADS[number // len(FITTED) % len(SPREADS)]
        drawn = [1.0 if number < len(FITTED) else chance.uniform(*spread) for _ in names]
        terms = " + ".join(f"{weight:.3f}*{name}" for weight, name in zip(drawn, names, strict=True))
        yield f"{FITTED[number % len(FITTED)]}{_FIT_MARK}{terms}"


class FamilyBench:
    """One family: its adapters' own answers once, then merge after merge."""

    def __init__(self, family: Family, model: SkillModel, work: Path) -> None:
        self.family, self._model = family, model
        self._sources = opened(family, work, model)
        drawn = {task: family_items(task, "test", MANY + PROBES) for task in family.tasks}
        self._many = {task: items[:MANY] for task, items in drawn.items()}
        self._probes = {task: items[MANY:] for task, items in drawn.items()}
        self._items = {task: items[:ITEMS] for task, items in self._many.items()}
        self._drafts: dict[str, Sequence[Answer]] = {}
        self._own: dict[str, dict[str, Any]] = {}
        self._fitted: dict[int, Mapping[str, TensorSource]] = {}
        for task in family.tasks:
            model.wear(merged(f"1*{task}", self._sources))
            answers = model.answers(self._probes[task], family.max_tokens)
            self._drafts[task] = model.answers(self._many[task], family.max_tokens)
            self._own[task] = {"answers": answers} | self._figures({task: answers})[task]
            self._own[task]["many_right"] = self._right_of_many([task])[task]
            print(family.name, task, "own right", self._own[task]["many_right"], flush=True)

    def _figures(self, answers: Mapping[str, Sequence[Answer]]) -> dict[str, dict[str, Any]]:
        """Of what the model wears now, by task: right answers, how it reads the probes' answers, and the references."""
        asked = [item for task in answers for item in self._items[task]]
        references = [self._model.tokenizer(item.reference, add_special_tokens=False)["input_ids"] for item in asked]
        found = self._model.drafts(asked, references, self.family.max_tokens)
        probes = [item for task in answers for item in self._probes[task]]
        read = self._model.read(probes, [one for task in answers for one in answers[task]])
        weighed = [one.nats / len(tokens) for one, tokens in zip(found, references, strict=True)]
        figures = {}
        for place, task in enumerate(answers):
            mine, its = slice(place * ITEMS, (place + 1) * ITEMS), slice(place * PROBES, (place + 1) * PROBES)
            texts = [self._model.text(one.answer) for one in found[mine]]
            figures[task] = {
                "right": sum(is_right(item, text) for item, text in zip(asked[mine], texts, strict=True)),
                "read": read[its],
                "reference_nats": sum(weighed[mine]) / ITEMS,
            }
        return figures

    def _right_of_many(self, tasks: Sequence[str]) -> dict[str, int]:
        """Right answers to all questions of these tasks."""
        asked = [item for task in tasks for item in self._many[task]]
        drafts = [draft for task in tasks for draft in self._drafts[task]]
        found = dict.fromkeys(tasks, 0)
        for item, one in zip(asked, self._model.drafts(asked, drafts, self.family.max_tokens), strict=True):
            found[item.task] += is_right(item, self._model.text(one.answer))
        return found

    def _inputs(self, count: int) -> Mapping[str, TensorSource]:
        """The adapters, each fitted to so many prompts of its own, as the worker does it."""
        if count not in self._fitted:
            items = {
                task: tuple(EvaluationItem(messages=tuple(item.messages)) for item in family_items(task, "dev", count))
                for task in self.family.tasks
            }
            fit = ReadingFit(items=items, labelled=False, max_tokens=self.family.max_tokens, budget_s=1e6)
            place = Place(self._model.base, "cpu", 1 << 30)
            self._fitted[count] = read_and_fit(place, self._sources, fit, lambda: False).sources
        return self._fitted[count]

    def row(self, expression: str) -> dict[str, Any]:
        """Everything about one merge, on the tasks of its own inputs."""
        began = time.monotonic()
        count, _, plain = expression.rpartition(_FIT_MARK)
        self._model.wear(merged(plain, self._inputs(int(count)) if count else self._sources))
        names = [entry.adapter for entry in parse_expression(plain).inputs]
        found = self._figures({task: self._own[task]["answers"] for task in names})
        tasks = {}
        for task, mine in found.items():
            own = self._own[task]
            probes = [
                [len(answer), agreed, alike, round(before, 4), round(nats, 4)]
                for answer, (*_, before), (agreed, alike, nats) in zip(
                    own["answers"], own["read"], mine["read"], strict=True
                )
            ]
            gap = mine["reference_nats"] - own["reference_nats"]
            tasks[task] = {
                "items": ITEMS, "right": mine["right"], "own_right": own["right"], "reference_gap": round(gap, 5),
                "probes": probes,
            }  # fmt: skip
        near = [task for task, one in tasks.items() if NEAR[0] < likelihood(one["probes"]) < NEAR[1]]
        for task, right in (self._right_of_many(near) if near else {}).items():
            tasks[task] |= {"items": MANY, "right": right, "own_right": self._own[task]["many_right"]}
        seconds = round(time.monotonic() - began, 1)
        return {"family": self.family.name, "expression": expression, "tasks": tasks, "s": seconds}


def likelihood(probes: Sequence[Sequence[Any]]) -> float:
    """The figure that `skill_lost` goes by."""
    return input_kept([AnswerRead(*probe) for probe in probes]).likelihood


def measure(work: Path, names: Sequence[str], until: float) -> None:
    """Rows, a merge of each family in turn, until the time is over."""
    file = work / "rows.jsonl"
    known = {(row["family"], row["expression"]) for row in rows_of(file)}
    model = SkillModel()
    benches: list[FamilyBench] = []
    for name in names:
        benches.append(FamilyBench(FAMILIES[name], model, work))
    for batch in zip_longest(*(expressions(bench.family) for bench in benches)):
        for bench, expression in zip(benches, batch, strict=True):
            if expression is None or (bench.family.name, expression) in known:
                continue
            if time.monotonic() > until:
                return
            row = bench.row(expression)
            written(file, row)
            print(bench.family.name, expression, {t: x["right"] for t, x in row["tasks"].items()}, row["s"], flush=True)


def rows_of(file: Path) -> list[Mapping[str, Any]]:
    """What was measured so far."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for adapters and rows")
    parser.add_argument("--families", nargs="+", default=list(FAMILIES))
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", default="")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(arguments.threads)
    if arguments.minutes > 0:
        measure(arguments.work, arguments.families, time.monotonic() + 60 * arguments.minutes)
    command = "python loadtests/skills_kept.py " + shlex.join(sys.argv[1:]).replace(str(arguments.work), "FOLDER")
    report = {
        "machine": machine(), "versions": versions(), "date": time.strftime("%Y-%m-%d"), "command": command,
        "probes": PROBES, "items": ITEMS, "many": MANY, "near": NEAR, "rows": rows_of(arguments.work / "rows.jsonl"),
    }  # fmt: skip
    page, plot = skills_page(report)
    print(page)
    if arguments.out:
        (RESULTS / f"{arguments.out}.json").write_text(json.dumps(report, ensure_ascii=False) + "\n")
        (RESULTS / f"{arguments.out}.md").write_text(page)
        (RESULTS / f"{arguments.out}.svg").write_text(plot + "\n")


if __name__ == "__main__":
    main()
