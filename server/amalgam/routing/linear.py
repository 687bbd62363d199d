"""A linear model of texts: fitted in one step, with the score of every example as if it had been left out.

Ridge regression of +1 and -1 for each candidate, on the hashed features with the rare ones weighed more. What each
score would be without its own example has a closed form (Rifkin and Lippert, "Notes on Regularized Least Squares",
2007), so that thresholds need no second fit. There is no chance in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from amalgam.domain.routing import Said
from amalgam.routing.features import WIDTH, Vector, vector

RIDGE: Final = 0.1
"""It tells how strongly weights are drawn towards zero."""
CONSTANT: Final = 0.1
"""Every two texts have it in common, so that scores need not be zero where nothing is known."""
_STORED: Final = np.dtype("<f2")
"""It is half precision, the same on every machine."""

Scores: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class LinearModel:
    """Weights of features, a column for each candidate.

    Attributes:
        rarity: what each feature counts, [WIDTH].
        weights: [WIDTH, candidates].
        offsets: [candidates].
    """

    rarity: npt.NDArray[np.float32]
    weights: npt.NDArray[np.float32]
    offsets: npt.NDArray[np.float32]

    def scores(self, said: Said) -> Scores:
        """The score of each candidate, 0 to 1; they are no probabilities."""
        values = vector(said.last, said.earlier)
        places = np.flatnonzero(values)
        row = weighed(values[None, places], self.rarity[places])
        return as_scores((row @ self.weights[places])[0] + self.offsets)

    def to_bytes(self) -> bytes:
        """The bytes for the registry; `from_bytes` reads them."""
        table = np.concatenate([self.rarity[:, None], self.weights], axis=1)
        last = np.concatenate([np.zeros(1, np.float32), self.offsets])[None]
        return bytes(np.concatenate([table, last]).astype(_STORED).tobytes())

    @classmethod
    def from_bytes(cls, stored: bytes) -> "LinearModel":
        """The model that `to_bytes` wrote."""
        table = np.frombuffer(stored, _STORED).reshape(WIDTH + 1, -1).astype(np.float32)
        return cls(np.ascontiguousarray(table[:-1, 0]), np.ascontiguousarray(table[:-1, 1:]), table[-1, 1:].copy())


@dataclass(frozen=True, slots=True)
class Fit:
    """A model, and the scores of the texts it was fitted with as if each had been left out."""

    model: LinearModel
    left_out: Scores
    """It is [texts, candidates]."""


def fit(texts: Sequence[str], labels: Sequence[int], candidates: int) -> Fit:
    """Fit a model; the same arguments give the same one.

    Args:
        texts: examples.
        labels: the candidate of each, from 0; -1: none.
        candidates: how many there are.
    """
    raw = np.stack([vector(text) for text in texts])
    seen = np.count_nonzero(raw, axis=0)
    rarity = (np.log((len(texts) + 1) / (seen + 1)) + 0.1).astype(np.float32)
    rows = weighed(raw, rarity).astype(np.float64)
    label = np.array(labels)
    wanted = np.where(label[:, None] == np.arange(candidates)[None], 1.0, -1.0)
    counts = np.array([np.count_nonzero(label == one) for one in labels])
    # Every candidate counts as much as another, however many examples it has.
    share = len(texts) / (counts * (candidates + 1))
    inverse = np.linalg.inv(rows @ rows.T + CONSTANT + RIDGE * np.diag(1 / share))
    duals = inverse @ wanted
    weights, offsets = rows.T @ duals, CONSTANT * duals.sum(axis=0)
    model = LinearModel(rarity, weights.astype(np.float32), offsets.astype(np.float32))
    return Fit(model, as_scores(wanted - duals / np.diag(inverse)[:, None]))


def as_scores(values: npt.NDArray[np.float32] | Scores) -> Scores:
    """Bring what is from about -1 to 1 to what is from 0 to 1."""
    found: Scores = np.clip((values.astype(np.float64) + 1) / 2, 0.0, 1.0)
    return found


def weighed(rows: Vector, rarity: Vector) -> Vector:
    """Rows with rare features weighed more, of length 1 again."""
    found = rows * rarity
    lengths = np.sqrt((found * found).sum(axis=1, keepdims=True))
    scaled: Vector = found / np.maximum(lengths, np.float32(1e-9))
    return scaled
