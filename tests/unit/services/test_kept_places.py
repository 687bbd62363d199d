"""How many places are kept for lesser users: never beyond fair shares, nor for who has used as much."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amalgam.services.kept_places import RECENT_S, RecentMost, Unused, kept_from, unused_of
from amalgam.services.queue_records import TenantState

UNUSED = st.lists(
    st.builds(Unused, st.floats(0, 1e6), st.floats(0, 64), st.integers(0, 64), st.floats(0, 64)), max_size=8
)


@given(UNUSED, st.floats(0, 1e6))
def test_what_is_kept_for_one_and_what_it_has_are_no_more_than_its_share_or_what_it_had(
    unused: list[Unused], usage: float
) -> None:
    for one in unused:
        assert 0 <= one.kept <= max(0, min(one.share, one.recent + 0.5) - one.running)
    assert kept_from(min((one.usage for one in unused), default=0.0), unused) == 0
    assert 0 <= kept_from(usage, unused) <= sum(one.kept for one in unused) == kept_from(1e7, unused)


def test_places_are_kept_from_those_who_have_used_more() -> None:
    unused = [Unused(5.0, 4.0, 1, 3.0), Unused(9.0, 4.0, 0, 9.0)]
    assert [kept_from(usage, unused) for usage in (5.0, 5.1, 9.0, 9.1)] == [0, 2, 2, 6]


def test_what_was_used_counts_less_with_time_and_is_never_below_what_is_in_use() -> None:
    recent = RecentMost()
    recent.note(6, 100.0)
    assert recent.at(100.0) == 6
    assert recent.at(100.0 + RECENT_S) == pytest.approx(6 / math.e)
    recent.note(2, 100.0 + RECENT_S)
    assert recent.at(100.0 + RECENT_S) == pytest.approx(6 / math.e)
    recent.note(5, 101.0 + RECENT_S)
    assert recent.at(101.0 + RECENT_S) == 5


def test_nothing_is_unused_of_one_alone_of_who_runs_as_much_as_before_or_where_nobody_counts_places() -> None:
    def tenant(running: int, before: int) -> TenantState:
        return TenantState(1.0, 0.0, running=running, recent=RecentMost(before, 5.0))

    assert unused_of([tenant(0, 5)], 8, 5.0) == []
    assert unused_of([tenant(0, 5), tenant(3, 3)], math.inf, 5.0) == []
    assert unused_of([tenant(0, 5), tenant(3, 3)], 8, 5.0) == [Unused(0.0, 4.0, 0, 5.0)]
