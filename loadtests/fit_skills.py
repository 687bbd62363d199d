"""What merges are worth: every method at its defaults, searched weights, `iteris`, and rivals of it, on families.

The server's own code, in torch and without a server, by ten prompts of each input of the split `dev`: `iteris` as the
worker does it, and with `--search` the search for weights with the server's grades. With `--rivals` beside them what
the server does not have: weights that are learned by gradient (`fit_rivals.py`) and merges in bases that inputs share
(`shared_bases.py`). Every merge then answers held-out questions of the split `test`. Of the families `two`, `five` and
`eight` `iteris` alone is measured. Counts do not depend on how busy the machine is.

    python loadtests/fit_skills.py --work FOLDER [--families demo] [--rivals] [--search] [--out fit_skills]   # goes on
"""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import exp
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "server")]

import torch  # noqa: E402

from amalgam.domain.evaluation import EvaluationItem, Measurement  # noqa: E402
from amalgam.domain.evolution import ELITE, Tried, Weights, elite, first_weights, next_round  # noqa: E402
from amalgam.domain.expression import parse_expression  # noqa: E402
from amalgam.domain.fit import ReadingFit  # noqa: E402
from amalgam.domain.search import SweepPlan, SweepTask  # noqa: E402
from amalgam.merge.sources import TensorSource  # noqa: E402
from amalgam.services.weight_board import Board  # noqa: E402
from amalgam.services.weight_search import in_turn  # noqa: E402
from amalgam.workers.reading_fit import Place, read_and_fit  # noqa: E402
from loadtests.fit_rivals import Descent, by_answers, by_null_space  # noqa: E402
from loadtests.quality_contenders import at_defaults  # noqa: E402
from loadtests.report import RESULTS, machine, versions  # noqa: E402
from loadtests.shared_bases import RULES, compressed  # noqa: E402
from loadtests.skill_families import FAMILIES, MIXED, Family, family_items, is_right  # noqa: E402
from loadtests.skill_model import Answer, Factors, SkillModel, merged, opened, written  # noqa: E402

SETS = FAMILIES | MIXED
PROMPTS = 10
"""Of an input."""
PARTS = 3
"""In which a candidate is measured; between them it may be given up."""
PLAIN = (
    *at_defaults("{}").values(), "svd({}; rank=8)", "task_arithmetic({}; norm_balance=true)",
    "task_arithmetic({}; calibrate=pico)",
)  # fmt: skip
"""Merges at their defaults, as in the quality table."""
SEARCHED = (("task_arithmetic({})", "kept"), ("iso_c({})", "kept"), ("task_arithmetic({})", "right"))
"""What weights are searched for, and by what."""
CALIBRATED = ("linear({}; calibrate=pico)", "iso_c({}; calibrate=pico)")
"""More of them after a pre-step, which go with the rivals."""
LEARNED = (("nsc", "kept"), ("weights", "right"), ("weights on iteris", "right"))
"""Rivals that read prompts: how a row names them, and by what."""
NULL_SPACE = Descent(start=0.5, steps=30, rate=0.03, batch=2)
FROM_PLAIN = Descent(start=0.5, steps=30, rate=0.03, batch=2)
FROM_ITERIS = Descent(start=1.0, steps=30, rate=0.01, batch=2)
"""How they learn; fixed before a held-out question was asked, and the same for all families."""


@dataclass(frozen=True)
class Moment:
    """Two clocks, or the time between two moments.

    Attributes:
        s: seconds that pass.
        cpu_s: those of the processor for this process, which other work hardly lengthens.
    """

    s: float = 0.0
    cpu_s: float = 0.0

    @classmethod
    def now(cls) -> "Moment":
        """What the clocks say."""
        return cls(time.monotonic(), time.process_time())

    def plus(self, other: "Moment", share: float = 1.0) -> "Moment":
        """The sum with a share of the other."""
        return Moment(self.s + share * other.s, self.cpu_s + share * other.cpu_s)

    def until_now(self) -> "Moment":
        """The time since then."""
        return Moment.now().plus(self, -1.0)


class FitBench:
    """One family."""

    def __init__(self, family: Family, model: SkillModel, work: Path, held_out: int) -> None:
        self.family, self._model, self._names = family, model, list(family.tasks)
        self._sources = opened(family, work, model)
        self._held_out = {task: family_items(task, "test", held_out) for task in self._names}
        self._items = [item for task in self._names for item in family_items(task, "dev", PROMPTS)]
        self._order = in_turn([EvaluationItem(task=item.task, prompt=item.prompt) for item in self._items])
        self.own: dict[str, int] = {}
        self._answers: dict[int, Sequence[int]] = {}
        self._nats: dict[int, float] = {}
        self._own_right: dict[int, bool] = {}
        self._own_answers: dict[str, Sequence[Answer]] = {}
        self._answering = Moment()
        self._fits: dict[str, tuple[Mapping[str, TensorSource], Moment]] = {}
        for task in self._names:
            model.wear(merged(f"1*{task}", self._sources))
            mine = [at for at, item in enumerate(self._items) if item.task == task]
            rows = [self._items[at] for at in mine]
            began = Moment.now()
            answers = model.answers([*rows, *self._held_out[task]], family.max_tokens)
            # Answered together, which is faster; of the time the share of the prompts that fits read.
            self._answering = self._answering.plus(began.until_now(), len(rows) / len(answers))
            answers, self._own_answers[task] = answers[: len(rows)], answers[len(rows) :]
            for at, item, answer, read in zip(mine, rows, answers, model.read(rows, answers), strict=True):
                self._answers[at], self._nats[at] = answer, read[2]
                self._own_right[at] = is_right(item, model.text(answer))
            texts = [model.text(one) for one in self._own_answers[task]]
            self.own[task] = sum(map(is_right, self._held_out[task], texts))

    def right_now(self) -> dict[str, int]:
        """Held-out questions of every task that the model as it is now answers right."""
        asked = [item for task in self._names for item in self._held_out[task]]
        # An answer begins with what is alike in the adapter's own, which is read and need not be written again.
        drafts = [draft for task in self._names for draft in self._own_answers[task]]
        answers = [one.answer for one in self._model.drafts(asked, drafts, self.family.max_tokens)]
        found = dict.fromkeys(self._names, 0)
        for item, answer in zip(asked, answers, strict=True):
            found[item.task] += is_right(item, self._model.text(answer))
        return found

    def right(self, expression: str) -> dict[str, int]:
        """The same of a merge, on every task."""
        self._model.wear(merged(expression, self._sources))
        return self.right_now()

    def _board(self, metric: str) -> Board:
        plan = SweepPlan(
            tasks={task: SweepTask(adapter=at, metric=metric) for at, task in enumerate(self._names)},
            first_candidate=len(self._names), points=(), asked={},
        )  # fmt: skip
        board = Board(plan, [EvaluationItem(task=item.task, prompt=item.prompt) for item in self._items])
        for at, item in enumerate(self._items):
            values = {metric: float(metric == "kept" or self._own_right[at]), "kept_likelihood": 1.0}
            board.note(Measurement(target=self._names.index(item.task), item=at, values=values))
        return board

    def _measure(self, board: Board, target: int, metric: str, tried: Sequence[Tried]) -> int:
        """What the model wears now is the target; how many items were measured before it was given up."""
        size = -(-len(self._order) // PARTS)
        for start in range(0, len(self._order), size):
            best = elite(tried)
            if len(best) == ELITE and min(board.kept(target)) < min(best[-1].kept):
                return start
            part = self._order[start : start + size]
            rows = [self._items[at] for at in part]
            read = self._model.read(rows, [self._answers[at] for at in part])
            right = [float(alike == len(self._answers[at])) for at, (_, alike, _) in zip(part, read, strict=True)]
            if metric != "kept":
                texts = [self._model.text(one) for one in self._model.answers(rows, self.family.max_tokens)]
                right = [float(is_right(item, text)) for item, text in zip(rows, texts, strict=True)]
            for at, value, (_, _, nats) in zip(part, right, read, strict=True):
                likelihood = exp(min(0.0, (nats - self._nats[at]) / len(self._answers[at])))
                values = {metric: value, "kept_likelihood": likelihood}
                board.note(Measurement(target=target, item=at, values=values))
        return len(self._order)

    def fit(self, form: str, metric: str, candidates: int, seed: int) -> dict[str, Any]:
        """The best weights of a merge of this form, and what it took to find them."""
        began, calls = Moment.now(), 0
        start = first_weights(parse_expression(" + ".join(self._names)))
        board, known, tried = self._board(metric), list[Weights](), list[Tried]()
        while len(known) < candidates and (drawn := next_round(tried, known, start, seed, candidates - len(known))):
            for weights in drawn:
                target = len(self._names) + len(known)
                known.append(weights)
                self._model.wear(merged(self.expression(form, weights), self._sources))
                calls += self._measure(board, target, metric, tried)
                if board.is_complete(target):
                    tried.append(Tried(target, weights, board.kept(target)))
                    print(metric, len(known), weights, [round(one, 3) for one in tried[-1].kept], flush=True)
        best, took = elite(tried)[0], began.until_now()
        return {
            "by": metric, "seed": seed, "form": form, "expression": self.expression(form, best.weights),
            "kept": best.kept, "candidates": len(known), "given_up": len(known) - len(tried), "items_measured": calls,
            "s": round(took.s, 1), "cpu_s": round(took.cpu_s, 1),
        }  # fmt: skip

    def iteris(self, metric: str) -> dict[str, Any]:
        """The sum of the inputs, each fitted to what it reads: its own answers, or by ``right`` those that are wanted.

        Returns: the row, less the right answers of what the model wears then.
        """
        sources, took = self._fitted(metric)
        expression = " + ".join(self._names)
        self._model.wear(merged(expression, sources))
        return self._fit_row(metric, f"iteris: {expression}", took)

    def _fitted(self, metric: str) -> tuple[Mapping[str, TensorSource], Moment]:
        """The inputs, each fitted, and the time that it took."""
        if metric in self._fits:
            return self._fits[metric]
        began = Moment.now()
        items = {
            task: tuple(
                EvaluationItem(messages=tuple(item.messages), reference=item.reference)
                for item in self._items
                if item.task == task
            )
            for task in self._names
        }
        fit = ReadingFit(items=items, labelled=metric == "right", max_tokens=self.family.max_tokens, budget_s=1e6)
        place = Place(self._model.base, "cpu", 1 << 30)
        found = read_and_fit(place, self._sources, fit, lambda: False)
        self._fits[metric] = found.sources, began.until_now()
        return self._fits[metric]

    def _fit_row(self, metric: str, expression: str, took: Moment) -> dict[str, Any]:
        """What a row says of a fit that tries no candidates."""
        return {
            "by": metric, "seed": 0, "expression": expression, "kept": [], "candidates": 0, "given_up": 0,
            "items_measured": len(self._items), "s": round(took.s, 1), "cpu_s": round(took.cpu_s, 1),
        }  # fmt: skip

    def learned(self, rival: str, metric: str) -> dict[str, Any]:
        """The sum of the inputs with weights by module that are learned.

        Returns: the row, less the right answers of what the model wears then.
        """
        sources, took = self._fitted(metric) if rival == "weights on iteris" else (self._sources, Moment())
        began = Moment.now()
        items = {task: [item for item in self._items if item.task == task] for task in self._names}
        found: Factors
        if rival == "nsc":
            prompts = self._model.prompts(self._items)
            rows = {
                task: [[*prompts[at], *self._answers[at]] for at, item in enumerate(self._items) if item.task == task]
                for task in self._names
            }
            found = by_null_space(self._model, sources, rows, NULL_SPACE)
            took = took.plus(self._answering)
        else:
            found = by_answers(self._model, sources, items, FROM_PLAIN if rival == "weights" else FROM_ITERIS)
        self._model.wear(found)
        return self._fit_row(metric, f"{rival}: {' + '.join(self._names)}", took.plus(began.until_now()))

    def shared(self, form: str) -> dict[str, int]:
        """Right answers of the inputs that are compressed and merged by a rule of `RULES`."""
        self._model.wear(compressed(self._sources, RULES[form]))
        return self.right_now()

    def expression(self, form: str, weights: Weights) -> str:
        """The merge of this form with these weights."""
        return form.format(", ".join(f"{weight}*{name}" for weight, name in zip(weights, self._names, strict=True)))


def measure(work: Path, arguments: argparse.Namespace) -> None:
    """All that the file does not know yet."""
    file, model = work / "fits.jsonl", SkillModel()
    for name in arguments.families:
        bench = FitBench(SETS[name], model, work, arguments.items)
        base = {"family": name, "items": arguments.items, "own": bench.own}
        print(name, bench.own, flush=True)
        for found in measured(file, bench, arguments):
            row = base | found | {"right": found.get("right") or bench.right_now()}
            written(file, row)
            print(row, flush=True)


def measured(file: Path, bench: FitBench, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row after the other that is not known, less the family; where it lacks right answers, the model wears it."""
    name, inputs = bench.family.name, ", ".join(bench.family.tasks)
    has_rivals = arguments.rivals and name in FAMILIES
    for metric in ("kept", "right"):
        if not known_rows(file, family=name, by=metric, expression=f"iteris: {inputs.replace(', ', ' + ')}"):
            yield bench.iteris(metric)
    for rival, metric in LEARNED if has_rivals else ():
        if not known_rows(file, family=name, by=metric, expression=f"{rival}: {inputs.replace(', ', ' + ')}"):
            yield bench.learned(rival, metric)
    for form in RULES if has_rivals else ():
        expression = form.format(inputs)
        if not known_rows(file, family=name, expression=expression):
            yield {"by": "", "expression": expression, "right": bench.shared(form)}
    has_plain = name in FAMILIES and not arguments.fits_alone
    for form in (*(CALIBRATED if has_rivals else ()), *(PLAIN if has_plain else ())):
        expression = form.format(inputs)
        if not known_rows(file, family=name, expression=expression):
            yield {"by": "", "expression": expression, "right": bench.right(expression)}
    for seed in range(arguments.seeds if arguments.search and name in FAMILIES else 0):
        for form, metric in SEARCHED:
            if not known_rows(file, family=name, by=metric, seed=seed, form=form):
                found = bench.fit(form, metric, arguments.candidates, seed)
                yield found | {"right": bench.right(found["expression"])}


def known_rows(file: Path, **fields: Any) -> list[dict[str, Any]]:
    """Rows so far that have these values."""
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    return [row for row in rows if all(row.get(name) == value for name, value in fields.items())]


def worst_kept(row: Mapping[str, Any]) -> float:
    """Right answers to the task that keeps least, over those of its own adapter."""
    return min(float(row["right"][task] / own) for task, own in row["own"].items() if own)


def page(report: Mapping[str, Any]) -> str:
    """A table for each family."""
    lines = [
        "# Merges of families of tasks", "",
        f"{report['machine']}; {', '.join(f'{name} {value}' for name, value in report['versions'].items())}; "
        f"{report['date']}.",
        f"Right answers to held-out questions. Fits and searches for weights by {PROMPTS} prompts "
        "an input: `kept` by the input's own answers, `right` by those that are wanted. Seconds are of one thread of "
        "torch in one process, beside other work, and not of a server: by the clock, and what the processor worked. "
        "`ctm`: compressed in shared bases, then merged; `nsc`: "
        "weights by module of least null-space ratio; `weights`: weights by module, learned from wanted answers.", "",
        f"`{report['command']}`",
    ]  # fmt: skip
    known = {row["family"] for row in report["rows"]}
    for family in (name for name in SETS if name in known):
        rows = [row for row in report["rows"] if row["family"] == family]
        own, count = rows[0]["own"], rows[0]["items"]
        rows.sort(key=lambda row: (bool(row["by"]), -worst_kept(row), -sum(row["right"].values())))
        lines += [
            "", f"## {family}: {count} questions a task", "",
            "| merge | " + " | ".join(own) + " | worst, of its own | candidates, given up | items measured | seconds "
            "| of the processor |",
            "|---|" + "---|" * (len(own) + 5),
            "| each adapter alone | " + " | ".join(str(value) for value in own.values()) + " | | | | | |",
        ]  # fmt: skip
        for row in rows:
            right = " | ".join(str(row["right"][task]) for task in own)
            name = f"`{row['expression']}`"
            worked = f"{row['cpu_s']:.0f}" if "cpu_s" in row else ""
            told = f" | | {row['s']:.0f} | {worked}" if row["by"] else " | | | "
            if row["by"]:
                name = f"`{row['expression']}`, by {row['by']}"
            if row["by"] and row["candidates"]:
                name += f", seed {row['seed']}"
                told = f"{row['candidates']}, {row['given_up']} | {row['items_measured']} | {row['s']:.0f} | {worked}"
            lines.append(f"| {name} | {right} | {worst_kept(row):.0%} | {told} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for adapters and rows")
    parser.add_argument("--families", nargs="+", default=["demo"], choices=list(SETS))
    parser.add_argument("--items", type=int, default=40, help="held-out questions a task")
    parser.add_argument("--fits-alone", action="store_true", help="measure no merge at its defaults")
    parser.add_argument("--rivals", action="store_true", help="measure what the server does not have too")
    parser.add_argument("--search", action="store_true", help="search weights too")
    parser.add_argument("--candidates", type=int, default=48)
    parser.add_argument("--seeds", type=int, default=1, help="fits of each kind")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--so-far", action="store_true", help="measure nothing, write what is known")
    parser.add_argument("--out", default="")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(arguments.threads)
    if not arguments.so_far:
        measure(arguments.work, arguments)
    command = "python loadtests/fit_skills.py " + shlex.join(sys.argv[1:]).replace(str(arguments.work), "FOLDER")
    report = {
        "machine": machine(), "versions": versions(), "date": time.strftime("%Y-%m-%d"), "command": command,
        "rows": known_rows(arguments.work / "fits.jsonl"),
    }  # fmt: skip
    print(page(report))
    if arguments.out:
        (RESULTS / f"{arguments.out}.json").write_text(json.dumps(report, ensure_ascii=False) + "\n")
        (RESULTS / f"{arguments.out}.md").write_text(page(report))


if __name__ == "__main__":
    main()
