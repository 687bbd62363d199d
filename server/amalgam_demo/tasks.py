"""The demo tasks: one table, read by training, scoring and tests."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Final

from amalgam_demo import tasks_code, tasks_json, tasks_sql
from amalgam_demo.task_item import Split, TaskItem


@dataclass(frozen=True, slots=True)
class Task:
    """A kind of question with an exact metric.

    Attributes:
        summary: One line for people.
        metric: What makes an answer right, in words.
        generate: ``(split, count, rng)`` to items.
        score: ``(item, answer)`` to right or wrong.
    """

    summary: str
    metric: str
    generate: Callable[[Split, int, Random], tuple[TaskItem, ...]]
    score: Callable[[TaskItem, str], bool]


TASKS: Final[Mapping[str, Task]] = {
    "sql": Task(
        summary="a question about one or two tables becomes one SQLite query",
        metric="execution accuracy: the query returns what the reference returns, on two filled databases",
        generate=tasks_sql.generate,
        score=tasks_sql.score,
    ),
    "code": Task(
        summary="a sentence becomes one short Python function",
        metric="the function returns what the reference returns on every case, in a limited process",
        generate=tasks_code.generate,
        score=tasks_code.score,
    ),
    "json": Task(
        summary="a sentence and a shape become JSON",
        metric="the answer parses and equals the reference: keys, types, values and the order of lists",
        generate=tasks_json.generate,
        score=tasks_json.score,
    ),
}


def generate(task: str, split: Split, count: int, seed: int) -> tuple[TaskItem, ...]:
    """``count`` items of ``task``; the same arguments give the same items, on any machine."""
    return TASKS[task].generate(split, count, Random(f"{task}/{split}/{seed}"))  # noqa: S311 -- questions, not secrets


def score(task: str, item: TaskItem, answer: str) -> bool:
    """Whether ``answer`` is right, by the task's metric; every prompt has exactly one meaning, not one spelling."""
    return TASKS[task].score(item, answer)
