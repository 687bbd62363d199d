"""Recipes that mean the same have one digest; what is printed of them reads back as the same."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amalgam.domain.expression import locate_expression, parse_expression, print_expression
from amalgam.domain.recipe import Recipe, RecipeInput
from amalgam.merge.methods import METHODS, Consensus, complete, method, shorten, unchanged_input

NAMES = st.lists(st.from_regex(r"[a-z][a-z0-9._-]{0,6}@[1-9]", fullmatch=True), min_size=2, max_size=5, unique=True)
WEIGHTS = st.one_of(st.integers(-3, 3).map(float), st.floats(-1e3, 1e3))
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "rank": st.sampled_from(["auto", 8, 16]),
        "dtype": st.sampled_from(["bfloat16", "float32"]),
        "seed": st.integers(0, 1 << 63),
        "norm_balance": st.booleans(),
        "density": st.floats(0.01, 1),
        "lambda": st.sampled_from([1.0, 0.5, -2]),
    },
)


def digest_of(text: str) -> str:
    return complete(parse_expression(text)).digest()


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    spec = METHODS[draw(st.sampled_from(sorted(METHODS)))]
    names = draw(NAMES)[: spec.max_inputs]
    inputs = [RecipeInput(adapter=name, weight=draw(WEIGHTS)) for name in names]
    known = {field.alias or name for name, field in spec.parameters.model_fields.items()}
    options: dict[str, Any] = draw(OPTIONS)
    parameters = {name: value for name, value in options.items() if name in known}
    if "epsilon" in known or "gamma" in known:
        parameters.pop("density", None)
    output = {name: options[name] for name in ("rank", "dtype") if name in options}
    more = {name: options[name] for name in ("seed", "norm_balance") if name in options}
    space = draw(st.sampled_from([None, *map(str, spec.spaces)]))
    return Recipe.model_validate(
        {"method": spec.name, "space": space, "inputs": inputs, "parameters": parameters, "output": output, **more}
    )


@settings(max_examples=150, deadline=None)
@given(recipes(), st.randoms(use_true_random=False))
def test_the_order_of_inputs_does_not_change_the_digest_and_nothing_else_is_lost(recipe: Recipe, random: Any) -> None:
    full = complete(recipe)
    assert complete(full) == full
    shuffled = list(recipe.inputs)
    random.shuffle(shuffled)
    again = complete(recipe.model_copy(update={"inputs": tuple(shuffled)}))
    if method(recipe.method).consensus is Consensus.SLERP:
        assert again.inputs == tuple(shuffled)
    else:
        assert again.digest() == full.digest()
    assert sorted(again.inputs, key=repr) == sorted(recipe.inputs, key=repr)


@settings(max_examples=150, deadline=None)
@given(recipes())
def test_what_is_printed_reads_back_as_the_same_digest(recipe: Recipe) -> None:
    full = complete(recipe)
    text = print_expression(shorten(full), always_seed=method(full.method).random)
    assert text is not None
    assert text.isascii()
    assert text.isprintable()
    assert digest_of(text) == full.digest()
    if method(full.method).random:
        assert "seed" in parse_expression(text).model_fields_set


@settings(max_examples=100, deadline=None)
@given(recipes(), st.integers(0, 4), WEIGHTS)
def test_another_weight_is_another_digest(recipe: Recipe, index: int, weight: float) -> None:
    index %= len(recipe.inputs)
    changed = list(recipe.inputs)
    changed[index] = changed[index].model_copy(update={"weight": weight + 0.0})
    same = weight == recipe.inputs[index].weight
    assert (
        complete(recipe.model_copy(update={"inputs": tuple(changed)})).digest() == complete(recipe).digest()
    ) == same


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("sql + json", "json + sql"),
        ("sql + json", "1.0*json + 1*sql"),
        ("sql + 0.5*json", "task_arithmetic(.5*json, sql)"),
        ("sql - 0*json", "sql + 0*json"),
        ("sql - 0.5*json", "-0.5*json + sql"),
        ("ties(sql, json)", "ties(json, sql; density=1, space=knots, lambda=1.0)"),
        ("linear(sql, json; seed=9)", "linear(sql, json)"),
    ],
)
def test_two_spellings_of_one_merge(one: str, other: str) -> None:
    assert digest_of(one) == digest_of(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("sql + json", "sql + 2*json"),
        ("sql + json", "linear(sql, json)"),
        ("ties(sql, json)", "ties(sql, json; density=0.5)"),
        ("dare_ties(sql, json; seed=1)", "dare_ties(sql, json; seed=2)"),
        ("slerp(sql, json; t=0.25)", "slerp(json, sql; t=0.25)"),
        ("sql + json", "task_arithmetic(sql, json; rank=8)"),
        ("sql + json", "task_arithmetic(sql, json; dtype=float32)"),
    ],
)
def test_two_merges(one: str, other: str) -> None:
    assert digest_of(one) != digest_of(other)


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("1.0*sql@1", "sql@1"),
        ("cat(sql@1)", "sql@1"),
        ("linear(3*sql@1)", "sql@1"),
        ("0.5*sql@1", None),
        ("-sql@1", None),
        ("linear(0*sql@1)", None),
        ("linear(3*sql@1; space=factor)", None),
        ("ties(sql@1)", None),
        ("magnitude_prune(sql@1)", None),
        ("task_arithmetic(sql@1; rank=2)", None),
        ("task_arithmetic(sql@1; dtype=float32)", None),
        ("task_arithmetic(sql@1; orthogonalize_against=json@1)", None),
        ("sql@1 + 0*json@1", None),
    ],
)
def test_an_adapter_alone_is_itself(text: str, same: str | None) -> None:
    assert unchanged_input(complete(parse_expression(text))) == same


def test_columns_are_kept_for_errors_that_are_found_later() -> None:
    read = locate_expression("ties(sql, 0.8*json@1; density=0.3, seed = 7)")
    assert read.adapters == {"sql": 6, "json@1": 15}
    assert read.parts == {"method": 1, "density": 23, "seed": 36}
    assert locate_expression("sql + json").parts == {"method": 1}
