"""The fit of a router against its plain definition: one dense solve for each question."""

import numpy as np
import pytest

from amalgam.domain.routing import Said
from amalgam.routing.features import vector
from amalgam.routing.linear import CONSTANT, RIDGE, as_scores, fit, weighed

TEXTS = (
    "How many users are there?", "Count the rows of the table", "List every order of last week",
    "Turn the sentence into JSON", "Extract name and age as JSON", "Tell me a story about a fox", "Good morning",
)  # fmt: skip
LABELS = (0, 0, 0, 1, 1, -1, -1)
SHARES = np.array([len(TEXTS) / (LABELS.count(label) * 3) for label in LABELS])
ROUNDING = 2e-3
"""Weights are kept in single precision here, and features have length 1."""


def solved(kept: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Likeness of all texts, and the dual weights of a fit of ``kept`` alone."""
    rows = weighed(np.stack([vector(text) for text in TEXTS]), fit(TEXTS, LABELS, 2).model.rarity).astype(np.float64)
    alike = rows @ rows.T + CONSTANT
    wanted = np.array([[1.0 if label == one else -1.0 for one in range(2)] for label in LABELS])
    inner = alike[np.ix_(kept, kept)] + RIDGE * np.diag(1 / SHARES[kept])
    return alike, np.linalg.solve(inner, wanted[kept])


@pytest.mark.parametrize("left", range(len(TEXTS)))
def test_a_score_without_its_own_example_is_that_of_a_fit_without_it(left: int) -> None:
    kept = [place for place in range(len(TEXTS)) if place != left]
    alike, duals = solved(kept)
    np.testing.assert_allclose(
        fit(TEXTS, LABELS, 2).left_out[left], as_scores(alike[left, kept] @ duals), rtol=0, atol=1e-9
    )


def test_scores_are_those_of_the_dense_solve() -> None:
    alike, duals = solved(list(range(len(TEXTS))))
    model = fit(TEXTS, LABELS, 2).model
    for place, text in enumerate(TEXTS):
        expected = as_scores(alike[place] @ duals)
        np.testing.assert_allclose(model.scores(Said(text)), expected, rtol=0, atol=ROUNDING)
