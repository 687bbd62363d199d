"""Who asks for which adapter, and how evenly they were served: pure functions, tested without a server."""

import random
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal

Popularity = Literal["identical", "distinct", "uniform", "zipf"]
POPULARITIES: Final[tuple[Popularity, ...]] = ("identical", "distinct", "uniform", "zipf")


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which ``share`` of ``values`` lie, between neighbours in proportion, as NumPy has it.

    Args:
        values: at least one, in any order.
        share: in [0, 1].
    """
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def jain_index(values: Iterable[float]) -> float:
    """(Σx)² / (n·Σx²): 1 where all get the same, 1/n where one gets everything.

    R. Jain, D. Chiu, W. Hawe: A quantitative measure of fairness, DEC-TR-301, 1984.

    Raises:
        ValueError: no values, or nobody got anything.
    """
    shares = list(values)
    squares = sum(share * share for share in shares)
    if not squares:
        raise ValueError("fairness of nothing")
    return sum(shares) ** 2 / (len(shares) * squares)


def zipf_weights(count: int, exponent: float = 1.0) -> list[float]:
    """Shares of ``count`` adapters, the most popular first: proportional to 1/rank**exponent, 1 in all."""
    raw = [rank**-exponent for rank in range(1, count + 1)]
    total = sum(raw)
    return [weight / total for weight in raw]


def schedule(popularity: Popularity, adapters: Sequence[str], requests: int, seed: int) -> list[str]:
    """What each of ``requests`` asks for; the same arguments give the same list.

    identical: the first adapter always. distinct: one after the other, from the first again behind the last. uniform:
    drawn alike. zipf: drawn by `zipf_weights`; which adapter is popular follows from the seed.
    """
    draws = random.Random(seed)
    if popularity == "identical":
        return [adapters[0]] * requests
    if popularity == "distinct":
        return [adapters[number % len(adapters)] for number in range(requests)]
    if popularity == "uniform":
        return draws.choices(adapters, k=requests)
    ranked = draws.sample(list(adapters), len(adapters))
    return draws.choices(ranked, zipf_weights(len(ranked)), k=requests)


def by_adapter(pairs: Iterable[tuple[str, float]]) -> dict[str, list[float]]:
    """Values by adapter."""
    found: dict[str, list[float]] = defaultdict(list)
    for adapter, value in pairs:
        found[adapter].append(value)
    return dict(found)


def worst_over_median(values: Mapping[str, Sequence[float]], share: float = 0.99) -> float:
    """Each adapter's percentile: the greatest over the median one. 1 where all wait alike; 3: one waits three times."""
    tails = [percentile(its, share) for its in values.values()]
    return max(tails) / statistics.median(tails)
