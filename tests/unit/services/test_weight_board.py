"""What a search for weights knows of its targets, while they are measured."""

import itertools

from amalgam.domain.evaluation import EvaluationItem, Measurement
from amalgam.domain.search import SweepPlan, SweepTask
from amalgam.services.weight_board import Board
from amalgam.services.weight_search import in_turn

ITEMS = [EvaluationItem(task=task, prompt="x") for task in ("sql", "sql", "json", "json")]
PLAN = SweepPlan(
    tasks={"sql": SweepTask(adapter=0, metric="kept"), "json": SweepTask(adapter=1, metric="exact_match")},
    first_candidate=2, points=({}, {}), asked={},
)  # fmt: skip


def one(target: int, item: int, **values: float) -> Measurement:
    return Measurement(target=target, item=item, values=values)


def board() -> Board:
    """The own adapter of sql keeps itself; that of json is right once of twice."""
    made = Board(PLAN, ITEMS)
    for item in (0, 1):
        made.note(one(0, item, kept=1, kept_likelihood=1))
    made.note(one(1, 2, exact_match=1, kept_likelihood=1))
    made.note(one(1, 3, exact_match=0, kept_likelihood=1))
    return made


def test_what_is_kept_is_over_the_own_adapters_grade() -> None:
    made = board()
    for item, kept in ((0, 1.0), (1, 0.0)):
        made.note(one(2, item, kept=kept, kept_likelihood=1.0))
    for item in (2, 3):
        made.note(one(2, item, exact_match=0, kept_likelihood=0.75))
    assert made.is_complete(2)
    assert made.kept(2) == (0.75, 0.5)


def test_what_is_not_measured_counts_as_the_best_possible_and_none_as_better_than_the_own_adapter() -> None:
    made = board()
    assert not made.is_complete(2)
    assert made.kept(2) == (1.0, 1.0)
    made.note(one(2, 0, kept=0, kept_likelihood=0))
    assert made.kept(2) == (0.5, 1.0)
    made.note(one(2, 0, kept=0, kept_likelihood=0))
    assert made.kept(2)[0] == 0.5


def test_what_is_kept_does_not_depend_on_the_order_in_which_calls_ended() -> None:
    items = [EvaluationItem(task=task, prompt="x") for task in ("sql", "sql", "sql", "json")]
    kept = set()
    for order in itertools.permutations(range(3)):
        made = Board(PLAN, items)
        for item in order:
            made.note(one(0, item, kept_likelihood=(0.4, 0.6, 0.7)[item]))
            made.note(one(2, item, kept_likelihood=(0.1, 0.2, 0.3)[item]))
        kept.add(made.kept(2))
    assert len(kept) == 1


def test_the_inputs_are_known_when_all_of_their_own_items_are_measured() -> None:
    made = board()
    assert made.knows_the_inputs()
    short = Board(PLAN, ITEMS)
    for target, item in ((0, 0), (0, 1), (1, 2)):
        short.note(one(target, item, kept=1))
        assert not short.knows_the_inputs()
    short.note(Measurement(target=1, item=3, error_code="engine_refused"))
    assert short.knows_the_inputs()


def test_a_refused_target_is_never_complete() -> None:
    made = board()
    for item in range(4):
        made.note(Measurement(target=2, item=item, error_code="engine_refused"))
    assert made.refused == {2}
    assert not made.is_complete(2)


def test_tasks_take_turns() -> None:
    items = [EvaluationItem(task=task, prompt="x") for task in ("a", "a", "a", "b", "c", "c")]
    assert in_turn(items) == [0, 3, 4, 1, 5, 2]
