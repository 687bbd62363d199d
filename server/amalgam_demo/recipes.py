"""How the demo adapters are trained: one recipe a task."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class TrainRecipe:
    """Everything that decides an adapter's weights, on one kind of machine and one set of versions."""

    task: str
    steps: int = 320
    batch: int = 4
    """A step has so many items."""
    learning_rate: float = 1e-3
    """It is the peak, after a warm-up over the first tenth, then a straight line to zero."""
    rank: int = 8
    alpha: int = 16
    """Scaling is alpha / rank."""
    seed: int = 0
    """It draws the items and the first values of ``lora_A``."""

    def changed(self, **given: Any) -> "TrainRecipe":
        """The recipe with those fields that are not None; alpha follows the rank, so that the scaling stays."""
        made = replace(self, **{name: value for name, value in given.items() if value is not None})
        return replace(made, alpha=self.alpha * made.rank // self.rank)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for the card and for lineage."""
        return asdict(self)


RECIPES: Final[Mapping[str, TrainRecipe]] = {
    "sql": TrainRecipe(task="sql", seed=11),
    "code": TrainRecipe(task="code", steps=560, seed=12),
    "json": TrainRecipe(task="json", seed=13),
}
"""They made the committed adapters."""
