"""Which prompts the adapters tell apart: measured by prompts of no task, clear of the next, and of nobody's else."""

import numpy as np
import pytest

from amalgam.routing.row_labels import MEASURED_BY, labelled

COUNT = len(MEASURED_BY)
NEUTRAL = np.linspace(0.9, 1.1, COUNT)
"""Of which 1.08 is the threshold: nine in ten are below it. Their mean is 1."""
NAMES = ("sql", "json")


def told(*rows: tuple[float, ...], scale: tuple[float, ...] = (1.0, 1.0)) -> dict[str, list[str]]:
    energies = np.concatenate([np.stack([NEUTRAL] * len(scale), axis=1), np.array(rows)]) * np.array(scale)
    prompts = [f"prompt {place}" for place in range(len(rows))]
    names = NAMES[: len(scale)]
    return {name: list(texts) for name, texts in labelled(prompts, names, energies.tolist()).items()}


def test_a_prompt_is_for_the_adapter_whose_share_stands_out() -> None:
    assert told((2.0, 1.2), (1.1, 1.6)) == {"sql": ["prompt 0"], "json": ["prompt 1"]}


def test_each_adapter_is_measured_by_its_own_mean() -> None:
    assert told((2.0, 1.2), (1.1, 1.6), scale=(1.0, 50.0)) == {"sql": ["prompt 0"], "json": ["prompt 1"]}


@pytest.mark.parametrize(("row", "found"), [
    ((1.0, 0.7), False),
    ((1.07, 0.7), False),
    ((1.09, 0.7), True),
    ((1.5, 1.31), False),
    ((1.5, 1.29), True),
    ((1.5, 1.5), False),
])  # fmt: skip
def test_what_is_like_no_task_and_what_is_for_two_is_left_out(row: tuple[float, float], found: bool) -> None:
    assert told(row) == {"sql": ["prompt 0"] if found else [], "json": []}


def test_one_candidate_has_no_next() -> None:
    assert told((1.09,), (1.07,), scale=(3.0,)) == {"sql": ["prompt 0"]}


def test_an_adapter_that_reads_nothing_knows_nothing() -> None:
    energies = [[1.0, 0.0]] * COUNT + [[2.0, 0.0]]
    assert labelled(["x"], NAMES, energies) == {"sql": ["x"], "json": []}
