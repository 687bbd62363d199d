"""Drawing: shares as the weights say, the same for the same user, and no more users moved than have to be."""

import random
from collections import Counter
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amalgam.domain.alias import MAX_WEIGHT, AdapterUse, Alias, AliasTarget, adapters_used, draw
from amalgam.errors.merging import InvalidExpression

NOW = datetime(2030, 1, 31, tzinfo=UTC)
USERS = [f"user-{index}" for index in range(1000)]
STANDARD_ERRORS = 4.5
FEW = 5
"""Beside them, because rare events are no bell curve; together one example in a million may fall outside."""


def alias(*weights: int, name: str = "support", models: tuple[str, ...] = ()) -> Alias:
    models = models or tuple(f"sql@{index + 1}" for index in range(len(weights)))
    targets = tuple(AliasTarget(model=model, weight=weight) for model, weight in zip(models, weights, strict=True))
    return Alias(name=name, revision=1, targets=targets, created_at=NOW, updated_at=NOW)


def never() -> float:
    raise AssertionError("chance was asked")


def by_user(meant: Alias) -> dict[str, str]:
    return {user: draw(meant, user, never).model for user in USERS}


def assert_shares(meant: Alias, counts: Counter[str], total: int) -> None:
    for target in meant.targets:
        share = target.weight / meant.total_weight
        allowed = STANDARD_ERRORS * (share * (1 - share) / total) ** 0.5 + FEW / total
        assert abs(counts[target.model] / total - share) <= allowed, (target, counts)


WEIGHTS = st.lists(st.integers(1, 100) | st.integers(1, MAX_WEIGHT), min_size=2, max_size=6)


@settings(max_examples=15)
@given(weights=WEIGHTS, seed=st.integers(0, 1 << 32))
def test_without_a_user_chance_keeps_to_the_weights(weights: list[int], seed: int) -> None:
    meant = alias(*weights)
    uniform = random.Random(seed).random
    counts = Counter(draw(meant, None, uniform).model for _ in range(1000))
    assert_shares(meant, counts, 1000)


@settings(max_examples=15)
@given(weights=WEIGHTS, name=st.sampled_from(["support", "a", "x.y-z"]))
def test_users_keep_to_the_weights_and_to_their_target(weights: list[int], name: str) -> None:
    meant = alias(*weights, name=name)
    first = by_user(meant)
    assert_shares(meant, Counter(first.values()), len(USERS))
    assert by_user(meant) == first
    # The order in which targets stand, and scaling all weights, mean nothing.
    turned = alias(*reversed(weights), name=name, models=tuple(t.model for t in reversed(meant.targets)))
    assert by_user(turned) == first
    if max(weights) * 3 <= MAX_WEIGHT:
        assert by_user(alias(*(3 * weight for weight in weights), name=name)) == first


@settings(max_examples=15)
@given(weights=WEIGHTS, grown=st.integers(0, 5), factor=st.integers(2, 50))
def test_when_one_weight_grows_users_move_to_it_and_nowhere_else(weights: list[int], grown: int, factor: int) -> None:
    grown %= len(weights)
    more = [min(w * factor, MAX_WEIGHT) if index == grown else w for index, w in enumerate(weights)]
    before, after = alias(*weights), alias(*more)
    first, second = by_user(before), by_user(after)
    moved = [user for user in USERS if first[user] != second[user]]
    assert {second[user] for user in moved} <= {f"sql@{grown + 1}"}
    gained = more[grown] / after.total_weight - weights[grown] / before.total_weight
    assert abs(len(moved) / len(USERS) - gained) <= STANDARD_ERRORS * (gained / len(USERS)) ** 0.5 + FEW / len(USERS)


def test_a_canary_that_grows_keeps_those_it_had() -> None:
    """90/10 to 80/20 to 50/50 to 100: both weights change, and still users only ever go over to the canary."""
    stages = [by_user(alias(*weights)) for weights in ((90, 10), (80, 20), (50, 50))] + [dict.fromkeys(USERS, "sql@2")]
    for earlier, later in pairwise(stages):
        assert all(later[user] == "sql@2" for user in USERS if earlier[user] == "sql@2")


def test_a_target_that_goes_leaves_the_others_users_alone() -> None:
    first = by_user(alias(5, 3, 2))
    second = by_user(alias(5, 3))
    assert all(second[user] == first[user] for user in USERS if first[user] != "sql@3")


def test_two_aliases_split_users_independently() -> None:
    """Else the same users would be in every experiment."""
    one, other = by_user(alias(1, 1)), by_user(alias(1, 1, name="other"))
    both = Counter((one[user], other[user]) for user in USERS)
    assert len(both) == 4
    assert all(abs(count / len(USERS) - 0.25) < 0.045 for count in both.values()), both


def test_who_gets_what_is_the_same_in_every_release() -> None:
    meant = alias(50, 30, 20, models=("sql@3", "sql", "sql + 0.5*json"))
    drawn = [draw(meant, user, never).model for user in ("ann", "bob", "Åsa", "\x00", "a" * 256)]
    assert drawn == ["sql + 0.5*json", "sql@3", "sql", "sql + 0.5*json", "sql@3"]


@pytest.mark.parametrize("user", [None, ""])
def test_nobody_in_particular_is_left_to_chance(user: str | None) -> None:
    meant = alias(90, 10)
    assert [draw(meant, user, partial(float, at)).model for at in (0.0, 0.8999, 0.9001, 1 - 2**-53)] == [
        "sql@1", "sql@1", "sql@2", "sql@2",
    ]  # fmt: skip


def test_one_target_needs_no_chance() -> None:
    assert draw(alias(7), None, never).model == "sql@1"


@pytest.mark.parametrize(
    ("weights", "meaning"),
    [((3,), "sql@1"), ((90, 10), "90 % sql@1, 10 % sql@2"), ((1, 2), "33.33 % sql@1, 66.67 % sql@2")],
)
def test_what_it_means_for_people(weights: tuple[int, ...], meaning: str) -> None:
    assert alias(*weights).meaning == meaning


def test_what_targets_need() -> None:
    models = ("sql", "sql@3", "base", "json", "ties(sql@3, 0.8*code; density=0.3, orthogonalize_against=toxic@2)")
    needed = adapters_used([AliasTarget(model=model, weight=1) for model in models], "base")
    assert needed == (
        AdapterUse("sql", None), AdapterUse("sql", 3), AdapterUse("json", None), AdapterUse("code", None),
        AdapterUse("toxic", 2),
    )  # fmt: skip
    with pytest.raises(InvalidExpression):
        adapters_used([AliasTarget(model="sql + ", weight=1)], "base")
