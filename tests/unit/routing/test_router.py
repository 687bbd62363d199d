"""Routers: what is fitted is repeatable, known again and kept out; and what scores come to."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from amalgam.domain.routing import Route, Router, RouterSpec, Said
from amalgam.routing.neutral_prompts import NEUTRAL_PROMPTS
from amalgam.routing.router import FittedRouter, decided, fit_router, nearest
from loadtests.routing_prompts import NEUTRAL, TASKS

NAMES = ("sql", "json", "german", "french")
EXAMPLES = {name: tuple(TASKS[name].examples(20)) for name in NAMES}
SPEC = RouterSpec(candidates=NAMES, otherwise="base", examples=EXAMPLES)


@pytest.fixture(scope="module")
def fitted() -> FittedRouter:
    return FittedRouter.of(*fit_router(SPEC))


def router(**changes: Any) -> Router:
    fields: dict[str, Any] = {
        "digest": "d", "candidates": ("a", "b", "c"), "otherwise": "base", "examples": (3, 3, 3), "threshold": 0.2,
        "margin": 0.05, "blend": False, "recognised": 1, "kept_out": 1,
    }  # fmt: skip
    return Router(**(fields | changes))


def test_a_fit_is_the_same_every_time_and_another_one_has_another_digest() -> None:
    first, again = fit_router(SPEC), fit_router(SPEC)
    assert first == again
    other = fit_router(SPEC.model_copy(update={"examples": EXAMPLES | {"sql": (*EXAMPLES["sql"], "SELECT 1")}}))
    assert other[0].digest != first[0].digest


def test_other_wordings_about_other_things_are_known_again(fitted: FittedRouter) -> None:
    asked = [(name, text) for name in NAMES for text in TASKS[name].tests(20)]
    right = [fitted.route(Said(text)).model == name for name, text in asked]
    assert np.mean(right) >= 0.9


def test_prompts_of_no_task_are_kept_out(fitted: FittedRouter) -> None:
    assert not set(NEUTRAL) & set(NEUTRAL_PROMPTS)
    assert np.mean([fitted.route(Said(text)).reason == "below_threshold" for text in NEUTRAL]) >= 0.9
    assert fitted.router.kept_out == pytest.approx(0.87, abs=0.02)


def test_the_examples_of_the_rest_are_kept_out_too() -> None:
    said = Said("Which wine goes with fish in a database of wines?")
    before = FittedRouter.of(*fit_router(SPEC)).route(said).scores
    more = {"base": ("Which wine goes with meat?", "Which wine goes with cheese?", "Wine for a dinner with fish")}
    after = FittedRouter.of(*fit_router(SPEC.model_copy(update={"examples": EXAMPLES | more}))).route(said).scores
    assert dict(after)["sql"] < dict(before)["sql"]


def test_what_was_said_earlier_counts_less_than_the_last_turn(fitted: FittedRouter) -> None:
    german, french = "Translate to German: Good evening.", "Translate to French: Good evening."
    assert fitted.route(Said(german)).model == "german"
    assert fitted.route(Said(french, german)).model == "french"
    assert (
        dict(fitted.route(Said("And this: two coffees.", german)).scores)["german"]
        > dict(fitted.route(Said("And this: two coffees.")).scores)["german"]
    )


@pytest.mark.parametrize("said", [Said(), Said(" \n\t"), Said("", "  ")])
def test_nothing_said_goes_to_the_rest(fitted: FittedRouter, said: Said) -> None:
    assert fitted.route(said) == Route("base", "no_text")


@pytest.mark.parametrize("text", ["\ud800", "\x00", "¿", "…" * 20_000, "9" * 50_000, "a", "  x  "])
def test_odd_texts_have_finite_scores(fitted: FittedRouter, text: str) -> None:
    assert np.isfinite([score for _, score in fitted.route(Said(text)).scores]).all()


@pytest.mark.parametrize(("scores", "changes", "model", "reason"), [
    ((0.9, 0.3, 0.1), {}, "a", "score"),
    ((0.1, 0.9, 0.3), {}, "b", "score"),
    ((0.19, 0.1, 0.1), {}, "base", "below_threshold"),
    ((0.5, 0.46, 0.1), {}, "base", "within_margin"),
    ((0.5, 0.5, 0.5), {"margin": 0}, "a", "score"),
    ((0.5, 0.46, 0.1), {"blend": True}, "0.5*a + 0.5*b", "blend"),
    ((0.9, 0.43, 0.1), {"blend": True}, "0.75*a + 0.25*b", "blend"),
    ((0.9, 0.25, 0.1), {"blend": True}, "a", "score"),
    ((0.21, 0.19, 0.1), {"blend": True}, "base", "within_margin"),
    ((0.1, 0.1, 0.1), {"blend": True}, "base", "below_threshold"),
])  # fmt: skip
def test_what_scores_come_to(scores: tuple[float, ...], changes: dict[str, Any], model: str, reason: str) -> None:
    found = decided(router(**changes), np.array(scores))
    assert (found.model, found.reason) == (model, reason)
    assert [score for _, score in found.scores] == sorted(scores, reverse=True)


def test_the_nearest_examples_are_those_with_the_same_words(fitted: FittedRouter) -> None:
    _, numbers = fit_router(SPEC)
    (first, second) = nearest(numbers, Said(EXAMPLES["json"][4]), 2)
    assert (first[0], first[1], first[2]) == ("json", EXAMPLES["json"][4], 1.0)
    assert first[2] > second[2]


def test_a_header_is_short_ascii_whatever_the_names_are() -> None:
    long = Route("ä" * 900, "score", tuple((f"{'x' * 100}{place}", 0.5) for place in range(15)))
    for route in (long, replace(long, model="sql")):
        text = route.header()
        assert text.isascii()
        assert len(text) <= 1024
    assert replace(long, model="sql").header().count("xxx") >= 1


def test_names_out_of_scope_are_in_no_part_of_a_route() -> None:
    route = Route("0.5*a + 0.5*b", "blend", (("a", 0.9), ("b", 0.8)))
    assert route.shown(lambda name: name == "a", "-") == Route("-", "blend", (("a", 0.9),))
