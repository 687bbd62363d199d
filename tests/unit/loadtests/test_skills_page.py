"""The page on what predicts that a skill is kept counts hits, false alarms and correlations as it says."""

import pytest

from loadtests.skills_page import Case, alarms, best_threshold, correlation, ranked, singly, skills_page, together


def case(merge: str, task: str, right: float, figure: float) -> Case:
    return Case("demo", merge, task, right, {"whole answers": figure})


FOUND = (
    case("a", "sql", 1.0, 0.9), case("a", "json", 0.2, 0.3),
    case("b", "sql", 0.9, 0.4), case("b", "json", 1.0, 0.9),
    case("c", "sql", 0.5, 0.7), case("c", "json", 1.0, 0.9),
    case("d", "sql", 1.0, 0.8), case("d", "json", 1.0, 0.8),
)  # fmt: skip


def test_every_input_of_a_merge_is_warned_of_by_itself() -> None:
    assert alarms(singly(FOUND), "whole answers", 0.5) == (0.5, 1 / 6)
    assert alarms(singly(FOUND), "whole answers", 0.75) == (1.0, 1 / 6)


def test_a_merge_is_warned_of_where_one_of_its_inputs_is() -> None:
    assert alarms(together(FOUND), "whole answers", 0.5) == (0.5, 0.5)
    assert alarms(together(FOUND), "whole answers", 0.75) == (1.0, 0.5)
    assert alarms(together(FOUND), "whole answers", 0.85) == (1.0, 1.0)
    assert best_threshold(together(FOUND[:4]), "whole answers") == 0.4


def test_correlations_are_pearsons_and_spearmans() -> None:
    assert correlation([1, 2, 3], [2, 4, 6]) == pytest.approx(1)
    assert correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert correlation([1, 1], [0, 1]) == 0
    assert ranked([5, 1, 5, 9]) == [1.5, 0, 1.5, 3]


def test_the_page_says_how_much_was_measured() -> None:
    probes = [[4, 4, 4, -0.1, -0.2], [5, 3, 1, -0.1, -4.0]]
    task = {"items": 10, "right": 6, "own_right": 8, "reference_gap": -0.1, "probes": probes}
    more = task | {"items": 40, "right": 18, "own_right": 30}
    rows = [
        {"family": "demo", "expression": f"{weight}*a + b", "tasks": {"sql": its}, "s": 1}
        for weight, its in ((1, task), (2, more))
    ]
    report = {
        "machine": "m", "versions": {"python": "3"}, "date": "d", "command": "c",
        "probes": 2, "items": 10, "many": 40, "near": [0.7, 0.98],
    }  # fmt: skip
    page, plot = skills_page(report | {"rows": rows})
    assert (
        "Hits: of the 2 that lost a fifth or more of the right answers (of one input); false alarms: of the other 0"
        in page
    )
    assert "2 merges of adapters (demo 2), 2 inputs in all; of 2 of them a fifth" in page
    assert "| demo | sql | 30 of 40 | 60%, 75% |" in page
    assert plot.count("<circle") == 2 * 2 + 1
