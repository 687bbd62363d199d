"""Sequential tests: by their definition, and by what repeated looks would do to a wrong one."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amalgam.domain.sequential import (
    Sample,
    difference_interval,
    evidence,
    evidence_of_difference,
    interval,
    is_above,
    is_below,
)

RISK = 0.05

samples = st.integers(0, 300).flatmap(lambda count: st.builds(Sample, st.just(count), st.integers(0, count).map(float)))
seen = st.integers(1, 300).flatmap(lambda count: st.builds(Sample, st.just(count), st.integers(0, count).map(float)))
means = st.floats(0.01, 0.99)


@given(samples, means)
def test_the_bet_is_fair_whatever_was_seen(sample: Sample, mean: float) -> None:
    """One more outcome multiplies what the bet has come to by 1 on average, where the mean is as supposed."""
    hit = evidence(sample.plus(Sample(1, 1.0)), mean) - evidence(sample, mean)
    miss = evidence(sample.plus(Sample(1, 0.0)), mean) - evidence(sample, mean)
    assert mean * math.exp(hit) + (1 - mean) * math.exp(miss) == pytest.approx(1)


@given(samples, means, st.floats(0, 1))
def test_outcomes_between_0_and_1_win_the_bet_no_more(sample: Sample, mean: float, spread: float) -> None:
    """Two outcomes at equal distances from the mean, each half the time."""
    far = spread * min(mean, 1 - mean)
    factors = [
        math.exp(evidence(sample.plus(Sample(1, mean + step)), mean) - evidence(sample, mean)) for step in (far, -far)
    ]
    assert sum(factors) / 2 <= 1 + 1e-9


@given(seen, st.sampled_from([0.01, RISK, 0.3]))
def test_an_interval_holds_the_mean_and_no_more_than_its_definition(sample: Sample, risk: float) -> None:
    found, bar = interval(sample, risk), math.log(1 / risk)
    assert sample.mean is not None
    assert 0 <= found.low <= sample.mean <= found.high <= 1
    for edge, outward in ((found.low, -1e-6), (found.high, 1e-6)):
        if 0 < edge < 1:
            assert evidence(sample, min(1.0, max(0.0, edge + outward))) >= bar - 1e-6
            assert evidence(sample, edge - outward) < bar + 1e-3


@given(seen, seen, st.floats(-0.95, 0.95))
def test_the_least_evidence_against_a_difference_is_that_of_its_likeliest_means(
    control: Sample, candidate: Sample, difference: float
) -> None:
    low, high = max(0.0, -difference), min(1.0, 1.0 - difference)
    searched = min(
        evidence(control, mean) + evidence(candidate, min(1.0, max(0.0, mean + difference)))
        for mean in (low + (high - low) * step / 400 for step in range(401))
    )
    found = evidence_of_difference(control, candidate, difference)
    assert found <= searched + 1e-9
    assert found >= searched - 0.5, "the grid is near the least"


@given(seen, seen)
def test_both_sides_mirror_each_other(control: Sample, candidate: Sample) -> None:
    found, mirrored = difference_interval(control, candidate, RISK), difference_interval(candidate, control, RISK)
    assert found.low == pytest.approx(-mirrored.high, abs=1e-6)
    assert found.high == pytest.approx(-mirrored.low, abs=1e-6)


@given(seen, seen, st.floats(-0.5, 0.5))
def test_a_decision_is_where_the_interval_lies(control: Sample, candidate: Sample, difference: float) -> None:
    found = difference_interval(control, candidate, RISK)
    if abs(found.low - difference) > 1e-6:
        assert is_above(control, candidate, difference, RISK) == (found.low > difference)
    if abs(found.high - difference) > 1e-6:
        assert is_below(control, candidate, difference, RISK) == (found.high < difference)


@given(seen, seen)
def test_less_risk_is_a_wider_interval(control: Sample, candidate: Sample) -> None:
    wide, narrow = difference_interval(control, candidate, 0.01), difference_interval(control, candidate, 0.2)
    assert wide.low <= narrow.low + 1e-9
    assert wide.high >= narrow.high - 1e-9


@pytest.mark.parametrize("empty", [(Sample(), Sample(5, 5.0)), (Sample(5, 0.0), Sample()), (Sample(), Sample())])
def test_nothing_is_decided_before_both_were_seen(empty: tuple[Sample, Sample]) -> None:
    assert not is_above(*empty, 0.0, RISK)
    assert not is_below(*empty, 0.0, RISK)
    assert difference_interval(*empty, RISK).low == -1


def test_plain_cases_end_as_one_expects() -> None:
    assert is_above(Sample(100, 10.0), Sample(100, 60.0), 0.0, RISK)
    assert is_above(Sample(100, 0.0), Sample(100, 100.0), 0.5, RISK)
    assert is_below(Sample(100, 60.0), Sample(100, 10.0), 0.0, RISK)
    assert not is_above(Sample(100, 50.0), Sample(100, 55.0), 0.0, RISK)


def test_a_look_after_every_outcome_is_seldom_wrong() -> None:
    """Of 300 experiments without a difference, each looked at 400 times, a twentieth may be decided."""
    wrong = 0
    for seed in range(300):
        draws = random.Random(seed)
        sides = [Sample(), Sample()]
        for _ in range(400):
            side = draws.randrange(2)
            sides[side] = sides[side].plus(Sample(1, float(draws.random() < 0.5)))
            if is_above(sides[0], sides[1], 0.0, RISK) or is_below(sides[0], sides[1], 0.0, RISK):
                wrong += 1
                break
    assert wrong <= 300 * RISK
