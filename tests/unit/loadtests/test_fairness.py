import itertools
from collections import Counter

import numpy as np
import pytest

from loadtests.fairness import (
    POPULARITIES,
    by_adapter,
    jain_index,
    percentile,
    schedule,
    worst_over_median,
    zipf_weights,
)

NAMES = [f"a{number}" for number in range(10)]


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.9, 0.99, 1.0])
@pytest.mark.parametrize("values", [[3.0], [2.0, 1.0], [5.0, 1.0, 4.0, 2.0, 3.0, 9.0]])
def test_percentiles_are_numpys(values: list[float], share: float) -> None:
    assert percentile(values, share) == pytest.approx(np.percentile(values, share * 100))


def test_jains_index() -> None:
    assert jain_index([7.0] * 5) == pytest.approx(1)
    assert jain_index([1.0, 0, 0, 0]) == pytest.approx(0.25)
    assert jain_index([1.0, 2.0, 3.0]) == pytest.approx(36 / 42)
    assert jain_index([2.0, 4.0, 6.0]) == pytest.approx(jain_index([1.0, 2.0, 3.0])), "free of units"
    for nothing in ([], [0.0, 0.0]):
        with pytest.raises(ValueError, match="nothing"):
            jain_index(nothing)


def test_zipf_weights_fall_as_one_over_the_rank() -> None:
    weights = zipf_weights(4)
    assert sum(weights) == pytest.approx(1)
    assert [weights[0] / weight for weight in weights] == pytest.approx([1, 2, 3, 4])
    assert [zipf_weights(2, 2.0)[0] / weight for weight in zipf_weights(2, 2.0)] == pytest.approx([1, 4])


def test_schedules() -> None:
    assert schedule("identical", NAMES, 3, 0) == ["a0"] * 3
    assert schedule("distinct", NAMES, 12, 5) == [*NAMES, "a0", "a1"]
    uniform = Counter(schedule("uniform", NAMES, 20_000, 1))
    assert all(1700 < uniform[name] < 2300 for name in NAMES)
    zipf = [count for _, count in Counter(schedule("zipf", NAMES, 20_000, 1)).most_common()]
    expected = [20_000 * weight for weight in zipf_weights(10)]
    assert zipf == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize("popularity", POPULARITIES)
def test_a_schedule_follows_from_its_seed(popularity: str) -> None:
    again = [schedule(popularity, NAMES, 50, 3) for _ in range(2)]  # type: ignore[arg-type]
    assert again[0] == again[1]
    assert len(again[0]) == 50
    if popularity in ("uniform", "zipf"):
        assert schedule(popularity, NAMES, 50, 4) != again[0]  # type: ignore[arg-type]


def test_which_adapter_is_popular_changes_with_the_seed() -> None:
    first = {Counter(schedule("zipf", NAMES, 500, seed)).most_common(1)[0][0] for seed in range(8)}
    assert len(first) > 1


def test_the_worst_adapter_over_the_median_one() -> None:
    pairs = [("a", 1.0), ("b", 2.0), ("a", 1.0), ("c", 6.0)]
    values = by_adapter(pairs)
    assert values == {"a": [1.0, 1.0], "b": [2.0], "c": [6.0]}
    assert worst_over_median(values) == 3.0
    for order in itertools.permutations(values.items()):
        assert worst_over_median(dict(order)) == 3.0
