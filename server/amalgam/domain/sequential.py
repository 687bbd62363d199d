"""Which of two targets is better, asked after every outcome without being wrong more often for it.

Outcomes are numbers from 0 to 1. Against a supposed mean, `evidence` bets with the beta-binomial mixture of Howard,
Ramdas, McAuliffe and Sekhon, "Time-uniform, nonparametric, nonasymptotic confidence sequences" (Annals of Statistics
49, 2021; arXiv:1810.08240): what the bet has come to is a nonnegative supermartingale where the mean is as supposed,
for outcomes of 0 and 1 as for any between them. By Ville's inequality it ever reaches ``1 / risk`` with a probability
of at most ``risk``, however often one looks and whenever one stops. The product of the bets on two targets is such a
supermartingale too, so that all differences which it does not speak against are a confidence sequence of the
difference. What is assumed: outcomes of one target do not depend on each other, and its mean stays as it is.

Only how many outcomes there were, and their sum, is needed: what several servers counted is added up.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

_PRIOR: Final = 0.5
"""Both parameters of the beta distribution are this: Krichevsky's and Trofimov's, good for means near 0 and 1 as well.
"""
_STEPS: Final = 50
"""So many bisections find the likeliest mean: finer than what a float tells apart near 1."""
_EDGE_STEPS: Final = 30
"""So many bisections find the edge of an interval: to a billionth."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The outcomes of one target.

    Attributes:
        count: how many.
        total: their sum, from 0 to ``count``.
    """

    count: int = 0
    total: float = 0.0

    @property
    def mean(self) -> float | None:
        """None before the first outcome."""
        return self.total / self.count if self.count else None

    def plus(self, other: "Sample") -> "Sample":
        """Both together."""
        return Sample(self.count + other.count, self.total + other.total)


@dataclass(frozen=True, slots=True)
class Interval:
    """What a mean, or a difference of two, is not outside of."""

    low: float
    high: float


def evidence(sample: Sample, mean: float) -> float:
    """The logarithm of what a bet against ``mean`` has come to; minus infinity is never reached, infinity may be.

    Args:
        sample: what was seen.
        mean: supposed, 0 to 1.
    """
    return _marginal(sample) - _log_likelihood(sample, mean)


def interval(sample: Sample, risk: float) -> Interval:
    """A confidence sequence of the mean: ever outside of it with a probability of at most ``risk``."""
    middle = sample.mean
    if middle is None:
        return Interval(0.0, 1.0)
    bar, marginal = math.log(1 / risk), _marginal(sample)

    def is_possible(mean: float) -> bool:
        return marginal - _log_likelihood(sample, mean) < bar

    return Interval(_edge(is_possible, middle, 0.0), _edge(is_possible, middle, 1.0))


def evidence_of_difference(control: Sample, candidate: Sample, difference: float) -> float:
    """The least that bets against both means have come to, where the candidate's is ``difference`` above the control's.

    Args:
        control: one target.
        candidate: the other.
        difference: supposed, -1 to 1.
    """
    bets = _marginal(control) + _marginal(candidate)
    mean = _likeliest(control, candidate, difference)
    other = min(1.0, max(0.0, mean + difference))
    return bets - _log_likelihood(control, mean) - _log_likelihood(candidate, other)


def difference_interval(control: Sample, candidate: Sample, risk: float) -> Interval:
    """A confidence sequence of the candidate's mean less the control's."""
    if control.mean is None or candidate.mean is None:
        return Interval(-1.0, 1.0)
    middle, bar = candidate.mean - control.mean, math.log(1 / risk)

    def is_possible(difference: float) -> bool:
        return evidence_of_difference(control, candidate, difference) < bar

    return Interval(_edge(is_possible, middle, -1.0), _edge(is_possible, middle, 1.0))


def is_above(control: Sample, candidate: Sample, difference: float, risk: float) -> bool:
    """Whether the candidate's mean is more than ``difference`` above the control's: what the whole sequence lies above.

    Asks for one point of what `difference_interval` searches, and so costs a thirtieth of it.
    """
    if control.mean is None or candidate.mean is None or candidate.mean - control.mean <= difference:
        return False
    return evidence_of_difference(control, candidate, difference) >= math.log(1 / risk)


def is_below(control: Sample, candidate: Sample, difference: float, risk: float) -> bool:
    """Whether the candidate's mean is less than ``difference`` above the control's."""
    return is_above(candidate, control, -difference, risk)


def _marginal(sample: Sample) -> float:
    """The logarithm of what the outcomes are likely to be, over all means."""
    hits, misses = sample.total + _PRIOR, sample.count - sample.total + _PRIOR
    return _log_beta(hits, misses) - _log_beta(_PRIOR, _PRIOR)


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def _log_likelihood(sample: Sample, mean: float) -> float:
    return _times_log(sample.total, mean) + _times_log(sample.count - sample.total, 1 - mean)


def _times_log(count: float, share: float) -> float:
    """``count`` · log ``share``, where nothing of nothing is nothing."""
    if count <= 0:
        return 0.0
    return count * math.log(share) if share > 0 else -math.inf


def _likeliest(control: Sample, candidate: Sample, difference: float) -> float:
    """The control's mean under which both samples are likeliest. Their likelihood is concave: its slope only falls."""
    low, high = max(0.0, -difference), min(1.0, 1.0 - difference)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if _slope(control, middle) + _slope(candidate, middle + difference) > 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _slope(sample: Sample, mean: float) -> float:
    rising = sample.total / mean if sample.total > 0 and mean > 0 else 0.0
    misses = sample.count - sample.total
    return rising - (misses / (1 - mean) if misses > 0 and mean < 1 else 0.0)


def _edge(is_possible: Callable[[float], bool], inside: float, outside: float) -> float:
    """How far from ``inside`` towards ``outside`` values are possible."""
    if is_possible(outside):
        return outside
    for _ in range(_EDGE_STEPS):
        middle = (inside + outside) / 2
        if is_possible(middle):
            inside = middle
        else:
            outside = middle
    return outside
