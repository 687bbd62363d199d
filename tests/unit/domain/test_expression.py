"""The expression grammar: what reads, what prints, and where a fault is pointed at."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amalgam.domain.expression import is_expression, parse_expression, print_expression
from amalgam.domain.recipe import EnergyRank, Output, Recipe, RecipeInput
from amalgam.errors.merging import DuplicateInput, InvalidExpression, TooManyInputs


def weights(recipe: Recipe) -> dict[str, object]:
    return {entry.adapter: entry.weight for entry in recipe.inputs}


def test_sum_reads_signs_and_weights() -> None:
    recipe = parse_expression("sql + 0.5*json - 0.2*toxic@3")
    assert recipe.method == "task_arithmetic"
    assert weights(recipe) == {"sql": 1.0, "json": 0.5, "toxic@3": -0.2}


def test_call_sorts_options_into_recipe_output_and_parameters() -> None:
    recipe = parse_expression(
        "ties(sql, -0.8*json; density=.3, space=delta, seed=7, energy=0.95, dtype=float32, min_energy=0.5,"
        " norm_balance=true, calibrate=pico, orthogonalize_against=old+older@2, orthogonalize_rows=true)"
    )
    assert weights(recipe) == {"sql": 1.0, "json": -0.8}
    assert recipe.parameters == {"density": 0.3}
    assert (recipe.space, recipe.seed, recipe.norm_balance, recipe.calibrate) == ("delta", 7, True, "pico")
    assert recipe.orthogonalize_against == ("old", "older@2")
    assert recipe.output == Output(rank=EnergyRank(energy=0.95), dtype="float32", min_energy=0.5)


def test_names_may_hold_minus_dot_and_underscore() -> None:
    assert weights(parse_expression("a-b.c_d+2*e-f")) == {"a-b.c_d": 1.0, "e-f": 2.0}


def test_leading_minus_and_exponents() -> None:
    assert weights(parse_expression("-a + 1e-3*b")) == {"a": -1.0, "b": 0.001}


def test_paths_only_where_allowed() -> None:
    text = 'ties(./a, 0.5*/srv/b, 2*"./with blank", 3*some/folder-1, ~/x; density=0.5)'
    recipe = parse_expression(text, allow_paths=True)
    expected = {"./a": 1.0, "/srv/b": 0.5, "./with blank": 2.0, "some/folder-1": 3.0, "~/x": 1.0}
    assert weights(recipe) == expected
    assert print_expression(recipe) == text
    with pytest.raises(InvalidExpression) as caught:
        parse_expression("ties(./a, b)")
    assert caught.value.column == 6


@pytest.mark.parametrize(
    ("text", "column"),
    [
        ("", 1),
        ("sql +", 6),
        ("sql json", 5),
        ("sql -0.2*json", 5),
        ("sql - x*json", 7),
        ("sql + 9e9*json", 7),
        ("sql ? json", 5),
        (".٣*sql + json", 1),
        ("sql@0", 4),
        ("ties(sql", 9),
        ("ties(sql; density=)", 19),
        ("ties(sql; density 3)", 19),
        ("ties(sql; density=0.3, density=0.4)", 24),
        ("ties(sql; rank=0)", 11),
        ("ties(sql; seed=-1)", 11),
        ("ties(sql; energy=2)", 11),
        ("ties(sql) + json", 11),
        ("ties(sql, linear(a, b))", 11),
        ("ties@2(sql)", 1),
        ("a" * 5000, 4097),
    ],
)
def test_faults_point_at_their_column(text: Any, column: int) -> None:
    with pytest.raises(InvalidExpression) as caught:
        parse_expression(text)
    assert caught.value.column == column
    assert caught.value.code == "invalid_expression"
    assert len(caught.value.message) < 400


def test_one_adapter_twice_is_refused() -> None:
    with pytest.raises(DuplicateInput):
        parse_expression("a + b - a")


def test_too_many_inputs_are_refused() -> None:
    with pytest.raises(TooManyInputs):
        parse_expression(" + ".join(f"a{i}" for i in range(65)))


@pytest.mark.parametrize(
    ("text", "answer"),
    [("sql", False), ("sql@3", False), ("smollm2:sql", False), ("a-b", False), ("a + b", True), ("2*a", True),
     ("ties(a)", True), ("-a", True), ("a - b", True)],
)  # fmt: skip
def test_what_is_an_expression(text: str, answer: bool) -> None:
    assert is_expression(text) is answer


def test_gradients_and_filters_have_no_expression() -> None:
    assert print_expression(Recipe(inputs=(RecipeInput(adapter="a", weight=(0.0, 1.0)),))) is None


NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,6}(@[1-9])?", fullmatch=True)
NUMBERS = st.floats(-1e6, 1e6, allow_nan=False).map(lambda value: value + 0.0)
RECIPES = st.builds(
    lambda names, numbers, method, parameters, seed, output, space: Recipe(
        method=method,
        inputs=tuple(RecipeInput(adapter=n, weight=w) for n, w in zip(names, numbers, strict=False)),
        parameters=parameters,
        seed=seed,
        output=output,
        space=space,
    ),
    st.lists(NAMES, min_size=1, max_size=4, unique=True),
    st.lists(NUMBERS, min_size=4, max_size=4),
    st.sampled_from(["task_arithmetic", "ties", "linear"]),
    st.dictionaries(st.sampled_from(["density", "lambda"]), st.one_of(NUMBERS, st.booleans(), st.just("total"))),
    st.integers(0, 2**64 - 1),
    st.builds(
        Output,
        rank=st.one_of(st.just("auto"), st.integers(1, 512), st.builds(EnergyRank, energy=st.floats(0.01, 1))),
        dtype=st.sampled_from(["bfloat16", "float16", "float32"]),
    ),
    st.sampled_from([None, "delta", "knots"]),
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(RECIPES)
def test_print_then_parse_is_the_same_recipe(recipe: Any) -> None:
    text = print_expression(recipe)
    assert text is not None
    assert parse_expression(text).digest() == recipe.digest()


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text(alphabet='ab1@.+-*(),;= "/~', max_size=24))
def test_any_text_parses_or_is_refused(text: Any) -> None:
    try:
        recipe = parse_expression(text, allow_paths=True)
    except (InvalidExpression, DuplicateInput):
        return
    printed = print_expression(recipe)
    assert printed is not None
    assert parse_expression(printed, allow_paths=True) == recipe
