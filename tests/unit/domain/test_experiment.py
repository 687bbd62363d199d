"""What follows from what an experiment has seen."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest

from amalgam.domain.alias import Alias, AliasTarget
from amalgam.domain.experiment import (
    Carried,
    Ending,
    Experiment,
    ExperimentSpec,
    Guard,
    LatencyGuard,
    TargetCounts,
    judge,
    standings,
)
from amalgam.registry.experiments import targets_after

NOW = datetime(2030, 1, 1, tzinfo=UTC)
GOOD, BAD = TargetCounts(outcomes=200, total=180.0), TargetCounts(outcomes=200, total=100.0)


def seen(counts: Mapping[str, TargetCounts], candidates: tuple[str, ...] = ("b",), **spec: Any) -> Experiment:
    asked = ExperimentSpec(**({"control": "a", "metric": "thumb"} | spec))
    return Experiment(
        id="exp-1", alias="chat", candidates=candidates, spec=asked, state="running", counts=counts, created_at=NOW
    )


def verdict(experiment: Experiment) -> tuple[str, str | None] | None:
    ending = judge(experiment)
    return None if ending is None else (ending.verdict, ending.winner)


def test_it_goes_on_until_something_was_seen() -> None:
    assert judge(seen({})) is None
    assert judge(seen({"a": GOOD})) is None
    assert judge(seen({"a": GOOD, "b": TargetCounts(outcomes=2, total=2.0)})) is None


def test_the_better_one_wins_and_the_worse_one_does_not() -> None:
    assert verdict(seen({"a": BAD, "b": GOOD})) == ("better", "b")
    assert verdict(seen({"a": GOOD, "b": BAD})) == ("worse", "a")
    assert verdict(seen({"a": GOOD, "b": BAD}, higher_is_better=False)) == ("better", "b")
    assert verdict(seen({"a": BAD, "b": GOOD}, higher_is_better=False)) == ("worse", "a")


def test_a_difference_that_does_not_matter_ends_it_for_the_control() -> None:
    many = TargetCounts(outcomes=20_000, total=13_000.0)
    assert verdict(seen({"a": many, "b": many}, minimum_effect=0.05)) == ("not_better", "a")
    assert judge(seen({"a": many, "b": many}, minimum_effect=0.005)) is None


def test_enough_outcomes_end_it_undecided() -> None:
    few = TargetCounts(outcomes=50, total=25.0)
    assert verdict(seen({"a": few, "b": few}, most_outcomes=100)) == ("undecided", "a")
    assert judge(seen({"a": few, "b": few}, most_outcomes=101)) is None


def test_of_several_candidates_the_best_wins_and_all_must_lose_before_the_control_does_win() -> None:
    best = TargetCounts(outcomes=200, total=195.0)
    assert verdict(seen({"a": BAD, "b": GOOD, "c": best}, ("b", "c"))) == ("better", "c")
    assert judge(seen({"a": GOOD, "b": BAD, "c": TargetCounts(outcomes=3, total=3.0)}, ("b", "c"))) is None
    assert verdict(seen({"a": GOOD, "b": BAD, "c": BAD}, ("b", "c"))) == ("worse", "a")


def test_several_candidates_share_the_risk() -> None:
    """Ten candidates need more to be seen of each."""
    barely = {"a": TargetCounts(outcomes=60, total=20.0), "b": TargetCounts(outcomes=60, total=42.0)}
    assert verdict(seen(barely)) == ("better", "b")
    assert judge(seen(barely, tuple("bcdefghijk"))) is None


@pytest.mark.parametrize("promote", [True, False])
def test_only_promotion_changes_the_alias(promote: bool) -> None:
    ending = judge(seen({"a": BAD, "b": GOOD}, promote=promote))
    assert ending is not None
    assert ending.changes_alias is promote


def requests(failed: int = 0, slow: int = 0) -> TargetCounts:
    return TargetCounts(requests=200, errors=failed, slow=slow)


def test_guards_take_out_what_is_worse_by_more_than_they_allow() -> None:
    guards: dict[str, Any] = {
        "metric": None,
        "errors": Guard(most_above=0.1),
        "latency": LatencyGuard(most_above=0.1, slow_ms=9),
    }
    assert judge(seen({"a": requests(2), "b": requests(10)}, **guards)) is None
    found = judge(seen({"a": requests(2), "b": requests(90), "c": requests(3)}, ("b", "c"), **guards))
    assert found == Ending(verdict="guard_errors", removed=("b",), changes_alias=True)
    found = judge(seen({"a": requests(slow=2), "b": requests(slow=90)}, **guards))
    assert found == Ending(verdict="guard_latency", removed=("b",), changes_alias=True)
    assert judge(seen({"a": requests(90), "b": requests(2)}, **guards)) is None, "the control may be worse"


def test_a_guard_comes_before_the_verdict() -> None:
    bad = GOOD.model_copy(update={"requests": 200, "errors": 100})
    good = BAD.model_copy(update={"requests": 200})
    assert verdict(seen({"a": good, "b": bad}, errors=Guard(most_above=0.02))) == ("guard_errors", None)


def test_standings_name_the_control_candidates_and_shadows() -> None:
    found = standings(seen({"a": BAD, "b": GOOD}, shadows=("s",)))
    assert [(one.target, one.mean, one.difference is None) for one in found] == [
        ("a", 0.5, True),
        ("b", 0.9, False),
        ("s", None, True),
    ]
    assert found[1].difference is not None
    assert found[1].difference.low > 0


def alias(**carried: Any) -> Alias:
    targets = tuple(AliasTarget(model=name, weight=weight) for name, weight in (("a", 8), ("b", 1), ("c", 1)))
    experiment = Carried(id="exp-1", **carried) if carried else None
    return Alias(name="chat", revision=1, targets=targets, experiment=experiment, created_at=NOW, updated_at=NOW)


def test_what_the_alias_means_after_an_end() -> None:
    experiment = seen({}, ("b", "c"))
    for ending, models in (
        (Ending(verdict="better", winner="b", changes_alias=True), ["b"]),
        (Ending(verdict="better", winner="b"), ["a", "b", "c"]),
        (Ending(verdict="guard_errors", removed=("b",), changes_alias=True), ["a", "c"]),
        (Ending(verdict="guard_errors", removed=("a", "b", "c"), changes_alias=True), ["a"]),
    ):
        assert [target.model for target in targets_after(alias(), experiment, ending)] == models


def test_what_always_means_the_same_target() -> None:
    assert (alias().sticky("bob", "key"), alias().sticky(None, "key")) == ("bob", None)
    assert alias(assignment="user").sticky("bob", "key") == "bob"
    assert alias(assignment="key").sticky("bob", "key") == "key"
    assert alias(assignment="key").sticky("bob", "") is None
    assert alias(assignment="request").sticky("bob", "key") is None
    assert alias(assignment="request").unit("acme", "bob", "key") is None
    units = {alias(assignment="user").unit(tenant, user, "key") for tenant in ("x", "y") for user in ("bob", "ann")}
    assert len(units) == 4
