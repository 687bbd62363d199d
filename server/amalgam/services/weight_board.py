"""How every target of a search for weights did so far, and how well it could still do.

Sums are exact, so that what they come to does not depend on the order in which calls ended: two candidates that kept
the same are equal, and not apart by a rounding.
"""

from collections import defaultdict
from collections.abc import Sequence
from fractions import Fraction

from amalgam.domain.evaluation import EvaluationItem, Measurement
from amalgam.domain.evolution import grade
from amalgam.domain.search import SweepPlan


class Board:
    """How every target did so far.

    Args:
        plan: of the sweep.
        items: in order.
    """

    def __init__(self, plan: SweepPlan, items: Sequence[EvaluationItem]) -> None:
        self._plan = plan
        self._items = items
        self._sizes: dict[str, int] = defaultdict(int)
        for item in items:
            self._sizes[item.task] += 1
        self._sums: dict[tuple[int, str], Fraction] = defaultdict(Fraction)
        self._counts: dict[tuple[int, str], int] = defaultdict(int)
        self._seen: set[tuple[int, int]] = set()
        self.refused: set[int] = set()
        """Targets that an item was refused to."""

    def note(self, one: Measurement) -> None:
        """Count it, once."""
        if (one.target, one.item) in self._seen:
            return
        self._seen.add((one.target, one.item))
        task = self._items[one.item].task
        self._sums[one.target, task] += Fraction(grade(one.values, self._plan.tasks[task].metric))
        self._counts[one.target, task] += 1
        if one.error_code is not None:
            self.refused.add(one.target)

    def has(self, target: int, item: int) -> bool:
        """Whether it is measured."""
        return (target, item) in self._seen

    def is_complete(self, target: int) -> bool:
        """Whether all items are measured, and none was refused."""
        counted = all(self._counts[target, task] == size for task, size in self._sizes.items())
        return counted and target not in self.refused

    def knows_the_inputs(self) -> bool:
        """Whether each adapter's own items are all measured, which is what candidates are compared with."""
        owners = ((measure.adapter, task) for task, measure in self._plan.tasks.items())
        return all(self._counts[owner, task] == self._sizes[task] for owner, task in owners)

    def kept(self, target: int) -> tuple[float, ...]:
        """The share of its own adapter's grade that each input has; what is not measured yet counts as the best.

        It says something once `knows_the_inputs`.
        """
        found = [1.0] * self._plan.first_candidate
        for task, measure in self._plan.tasks.items():
            own = self._sums[measure.adapter, task] / max(1, self._counts[measure.adapter, task])
            size = self._sizes[task]
            mean = (self._sums[target, task] + size - self._counts[target, task]) / size
            found[measure.adapter] = min(found[measure.adapter], float(mean / own) if own else 0.0)
        return tuple(found)
