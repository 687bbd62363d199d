"""A search for weights: which candidates to try next, given what those before came to.

Weights are searched as logarithms. Each round starts from the centre of the best candidates so far, draws others around
it, less widely from round to round, and moves the weights of the best ones towards what is kept least. All of it
follows from the seed and from what was measured, so that another server goes on where one stopped.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

from amalgam.domain.answer_metrics import KEPT_LIKELIHOOD
from amalgam.domain.recipe import Recipe, RecipeInput

ROUND: Final = 6
"""One round has so many candidates."""
ELITE: Final = 3
"""The next round starts from so many candidates."""
LOWEST, HIGHEST = 0.02, 2.0
"""They bound a weight."""
_FIRST_SPREAD: Final = 0.5
_SPREAD_KEPT: Final = 0.85
"""It is what is kept from one round to the next."""
_LEAST_SPREAD: Final = 0.06
_DIGITS: Final = 3

Weights = tuple[float, ...]


class Evolution(BaseModel):
    """What a search for weights keeps beside its sweep."""

    model_config = ConfigDict(frozen=True)

    recipe: Mapping[str, Any]
    """It is pinned; its weights are where the search begins."""
    candidates: int = Field(ge=1)
    """At most so many are tried."""
    seed: int
    budget_s: float
    spent_s: float = 0.0
    """So many seconds were spent when the last round was laid out."""

    def at(self, weights: Sequence[float]) -> Recipe:
        """The recipe with these weights."""
        recipe = Recipe.model_validate(self.recipe)
        inputs = (RecipeInput(adapter=e.adapter, weight=w) for e, w in zip(recipe.inputs, weights, strict=True))
        return recipe.model_copy(update={"inputs": tuple(inputs)})


@dataclass(frozen=True, slots=True)
class Tried:
    """A candidate that was measured to the end."""

    target: int
    weights: Weights
    kept: tuple[float, ...]
    """It has what is kept of each input, in the order of the weights; see `grade`, over that of the input's own
    adapter."""

    @property
    def rank(self) -> tuple[float, float, int]:
        """Larger is better: the input that is kept least, then the mean, then who came first."""
        return min(self.kept), math.fsum(self.kept) / len(self.kept), -self.target


def grade(values: Mapping[str, float], metric: str) -> float:
    """How well one item went, 0 to 1, finer than right or wrong.

    Half of it is the metric; the other half is how likely the merge finds the input's own answer. Ten items tell right
    answers in tenths alone, and most candidates of a round would be alike.
    """
    value = min(max(values.get(metric, 0.0), 0.0), 1.0)
    return (value + min(max(values.get(KEPT_LIKELIHOOD, 0.0), 0.0), 1.0)) / 2


def elite(tried: Sequence[Tried]) -> list[Tried]:
    """The best, the first one first."""
    return sorted(tried, key=lambda one: one.rank, reverse=True)[:ELITE]


def first_weights(recipe: Recipe) -> Weights:
    """Where a search begins: the recipe's own weights, so small that their sum has the length of one."""
    plain = [entry.weight for entry in recipe.inputs]
    assert all(isinstance(weight, float | int) for weight in plain)
    scale = math.sqrt(len(plain))
    return tuple(_bounded(float(weight) / scale) for weight in plain)  # type: ignore[arg-type]


def next_round(tried: Sequence[Tried], known: Sequence[Weights], start: Weights, seed: int, room: int) -> list[Weights]:
    """Candidates of one round that were not tried before.

    Args:
        tried: measured to the end, in any order.
        known: weights of every candidate so far, those that were given up included.
        start: where the search begins.
        seed: of the draws.
        room: most candidates.
    """
    # Not a secret: the same seed gives the same candidates.
    chance = random.Random(f"{seed}/{len(known)}")  # noqa: S311
    best = elite(tried)
    middle = _middle(best) if best else [math.log(weight) for weight in start]
    wanted = [middle, *(_balanced(one) for one in best[:2])]
    spread = max(_LEAST_SPREAD, _FIRST_SPREAD * _SPREAD_KEPT ** (len(known) // ROUND))
    while len(wanted) < 4 * ROUND:
        wanted.append([at + spread * chance.gauss(0.0, 1.0) for at in middle])
    found: dict[Weights, None] = {}
    before = set(known)
    for logs in wanted:
        weights = tuple(_bounded(math.exp(min(log, 1.0))) for log in logs)
        if weights not in before and len(found) < min(ROUND, room):
            found[weights] = None
    return list(found)


def _middle(best: Sequence[Tried]) -> list[float]:
    """The mean of logarithms, in which better ones count for more."""
    shares = [math.log(ELITE + 1) - math.log(place) for place in range(1, len(best) + 1)]
    columns = zip(*(one.weights for one in best), strict=True)
    return [
        math.fsum(share * math.log(weight) for share, weight in zip(shares, column, strict=True)) / math.fsum(shares)
        for column in columns
    ]


def _balanced(one: Tried) -> list[float]:
    """The same with more of what is kept less than the mean, and less of what is kept more."""
    mean = math.fsum(one.kept) / len(one.kept)
    return [math.log(weight) + mean - kept for weight, kept in zip(one.weights, one.kept, strict=True)]


def _bounded(weight: float) -> float:
    return round(min(max(weight, LOWEST), HIGHEST), _DIGITS)
