"""The search for weights: it follows from its seed, keeps its bounds, and finds more than chance does."""

import math
from collections.abc import Callable, Sequence
from random import Random
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amalgam.domain.evolution import (
    ELITE,
    HIGHEST,
    LOWEST,
    ROUND,
    Evolution,
    Tried,
    Weights,
    elite,
    first_weights,
    grade,
    next_round,
)
from amalgam.domain.recipe import Recipe, RecipeInput

START = (0.577, 0.577, 0.577)
Skills = Callable[[Weights], tuple[float, ...]]


def world(seed: int, count: int = 3) -> tuple[Skills, Skills]:
    """What weights keep of skills that disturb each other, on ten prompts each; and on two hundred others."""
    chance = Random(f"world {seed}")
    size = [math.exp(chance.gauss(0, 0.5)) for _ in range(count)]
    cross = [[chance.uniform(0.05, 0.35) for _ in range(count)] for _ in range(count)]
    few, many = ([[chance.gauss(0.12, 0.06) for _ in range(n)] for _ in range(count)] for n in (10, 200))

    def margin(weights: Weights, skill: int) -> float:
        real = [
            weight * scale / (1 + 0.15 * (weight * scale) ** 2) for weight, scale in zip(weights, size, strict=True)
        ]
        lost = sum(cross[skill][at] * real[at] for at in range(count) if at != skill)
        return real[skill] - lost - 0.12 * sum(one * one for one in real)

    def on(prompts: Sequence[Sequence[float]], weights: Weights) -> tuple[float, ...]:
        have = [margin(weights, skill) for skill in range(count)]
        return tuple(fmean(mine >= level for level in row) for mine, row in zip(have, prompts, strict=True))

    def graded(weights: Weights) -> tuple[float, ...]:
        have = [margin(weights, skill) for skill in range(count)]
        close = [
            fmean(math.exp(min(0.0, 1.5 * (mine - level))) for level in row)
            for mine, row in zip(have, few, strict=True)
        ]
        return tuple((a + b) / 2 for a, b in zip(on(few, weights), close, strict=True))

    return graded, lambda weights: on(many, weights)


def searched(skills: Skills, candidates: int, seed: int) -> list[Tried]:
    tried: list[Tried] = []
    while len(tried) < candidates:
        known = [one.weights for one in tried]
        drawn = next_round(tried, known, START, seed, candidates - len(tried))
        if not drawn:
            break
        tried += [Tried(len(tried) + at, weights, skills(weights)) for at, weights in enumerate(drawn)]
    return tried


def test_it_finds_more_than_chance_does_in_half_the_time() -> None:
    found, drawn = [], []
    for seed in range(40):
        graded, held_out = world(seed)
        found.append(min(held_out(elite(searched(graded, 24, seed))[0].weights)))
        chance = Random(seed)
        by_chance = [tuple(chance.uniform(0.15, 1.2) for _ in START) for _ in range(48)]
        drawn.append(min(held_out(max(by_chance, key=lambda weights: min(graded(weights))))))
    assert fmean(found) > fmean(drawn) + 0.1
    assert fmean(found) > 0.7


def test_rounds_follow_from_the_seed_and_from_what_was_measured() -> None:
    graded, _ = world(1)
    assert searched(graded, 20, 3) == searched(graded, 20, 3)
    assert searched(graded, 20, 3) != searched(graded, 20, 4)
    before = searched(graded, 12, 3)
    assert searched(graded, 18, 3)[:12] == before


def test_a_round_has_the_centre_and_more_of_what_is_kept_least() -> None:
    tried = [Tried(3, (0.5, 0.5, 0.5), (0.4, 0.9, 0.8)), Tried(4, (0.5, 0.5, 0.5), (0.2, 0.9, 0.9))]
    first, balanced, *_ = next_round(tried, [(0.5, 0.5, 0.501)], START, 0, ROUND)
    assert first == (0.5, 0.5, 0.5)
    assert balanced[0] > 0.6
    assert balanced[1] < 0.5
    assert balanced[2] < 0.5


@given(
    st.lists(st.tuples(st.floats(0.01, 3), st.floats(0.01, 3)), max_size=6),
    st.integers(0, 1 << 53),
    st.integers(1, 2 * ROUND),
)
def test_candidates_are_new_within_bounds_and_no_more_than_there_is_room_for(
    weights: list[tuple[float, float]], seed: int, room: int
) -> None:
    known = [(round(a, 3), round(b, 3)) for a, b in weights]
    tried = [Tried(at, pair, (0.5, at / 10)) for at, pair in enumerate(known)]
    drawn = next_round(tried, known, (0.7, 0.7), seed, room)
    assert 0 < len(drawn) == len(set(drawn)) <= min(room, ROUND)
    assert not set(drawn) & set(known)
    assert all(LOWEST <= weight <= HIGHEST for pair in drawn for weight in pair)


def test_the_worst_counts_then_the_mean_then_who_was_first() -> None:
    rows = [(0.5, 0.9), (0.6, 0.6), (0.6, 0.7), (0.6, 0.7), (0.1, 1.0)]
    tried = [Tried(at, (1.0, 1.0), kept) for at, kept in enumerate(rows)]
    assert [one.target for one in elite(tried)] == [2, 3, 1]
    assert len(elite(tried)) == ELITE


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({"kept": 1.0, "kept_likelihood": 1.0}, 1.0),
        ({"kept": 0.0, "kept_likelihood": 0.5}, 0.25),
        ({"kept": 1.0, "kept_likelihood": 7.0}, 1.0),
        ({"exact_match": 1.0}, 0.0),
        ({}, 0.0),
    ],
)
def test_a_grade_is_half_the_metric_and_half_the_likelihood(values: dict[str, float], found: float) -> None:
    assert grade(values, "kept") == found


def test_a_search_begins_at_the_recipes_weights_scaled() -> None:
    recipe = Recipe(
        inputs=tuple(RecipeInput(adapter=f"a{at}@1", weight=w) for at, w in enumerate((1.0, 2.0, 0.5, 1.0)))
    )
    assert first_weights(recipe) == (0.5, 1.0, 0.25, 0.5)
    evolution = Evolution(recipe=recipe.model_dump(mode="json"), candidates=4, seed=0, budget_s=1)
    found = evolution.at((0.1, 0.2, 0.3, 0.4))
    assert [entry.weight for entry in found.inputs] == [0.1, 0.2, 0.3, 0.4]
    assert found.method == recipe.method
