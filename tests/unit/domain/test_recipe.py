"""The recipe: weights over depth and by filter, canonical form, digest, pinning."""

import json

import pytest
from pydantic import ValidationError

from amalgam.domain.adapter import VersionRef
from amalgam.domain.recipe import Output, Recipe, RecipeInput, WeightRule, layer_of
from amalgam.errors.merging import DuplicateInput, NoInputs

Q, MLP, HEAD = "model.layers.{}.self_attn.q_proj", "model.layers.{}.mlp.up_proj", "lm_head"


def test_layer_is_the_first_number_in_the_name() -> None:
    assert layer_of("model.layers.12.mlp.experts.3.up_proj") == 12
    assert layer_of("lm_head") is None
    assert layer_of("model.layer1.up_proj") is None


def test_gradient_interpolates_over_depth() -> None:
    entry = RecipeInput(adapter="a", weight=(0.0, 1.0, 0.0))
    assert [entry.weight_at(Q.format(layer), 5) for layer in range(5)] == [0.0, 0.5, 1.0, 0.5, 0.0]
    assert entry.weight_at(HEAD, 5) == 0.0
    assert RecipeInput(adapter="a", weight=(0.2, 1.0)).weight_at(Q.format(0), 1) == 0.2


def test_first_matching_filter_counts_and_none_means_zero() -> None:
    entry = RecipeInput(
        adapter="a",
        weight=(
            WeightRule(filter="mlp", layers="0-1", value=0.3),
            WeightRule(layers="2", value=(4.0, 8.0)),
            WeightRule(filter="q_proj", value=1.0),
        ),
    )
    assert entry.weight_at(MLP.format(1), 3) == 0.3
    assert entry.weight_at(MLP.format(2), 3) == 8.0
    assert entry.weight_at(Q.format(1), 3) == 1.0
    assert entry.weight_at(HEAD, 3) == 0.0


def test_documented_json_reads_and_prints() -> None:
    text = """{"method": "ties", "space": "knots",
     "inputs": [{"adapter": "sql@3", "weight": 1.0}, {"adapter": "json@1", "weight": [0.2, 1.0]},
                {"adapter": "code@2", "weight": [{"filter": "mlp", "value": 0.3}, {"value": 1.0}]}],
     "parameters": {"density": 0.5, "lambda": 1.0}, "seed": 7, "output": {"rank": "auto", "dtype": "bfloat16"}}"""
    recipe = Recipe.model_validate_json(text)
    assert Recipe.model_validate_json(recipe.canonical_json()) == recipe
    assert json.loads(recipe.canonical_json())["parameters"] == {"density": 0.5, "lambda": 1}


def test_digest_ignores_spelling_and_sees_meaning() -> None:
    one = Recipe.model_validate_json('{"inputs":[{"adapter":"a","weight":1}],"output":{"rank":8},"seed":0}')
    same = Recipe.model_validate_json('{"output":{"rank":8},"method":"linear","inputs":[{"weight":1.0,"adapter":"a"}]}')
    assert one.digest() == same.digest()
    base = Recipe(inputs=(RecipeInput(adapter="a", weight=0.0),))
    assert base.digest() == Recipe(inputs=(RecipeInput(adapter="a", weight=-0.0),)).digest()
    changed = [
        base.model_copy(update={"seed": 1}),
        base.model_copy(update={"method": "cat"}),
        base.model_copy(update={"output": Output(rank=4)}),
        base.model_copy(update={"norm_balance": True}),
        Recipe(inputs=(RecipeInput(adapter="a", weight=1e-9),)),
    ]
    assert len({recipe.digest() for recipe in (base, *changed)}) == 1 + len(changed)


def test_pin_replaces_every_name() -> None:
    recipe = Recipe(
        inputs=(RecipeInput(adapter="a", weight=0.5), RecipeInput(adapter="b@2")), orthogonalize_against=("old", "a")
    )
    assert recipe.adapters == ("a", "b@2", "old")
    pinned = recipe.pin({"a": VersionRef("a", 7), "b@2": VersionRef("b", 2), "old": VersionRef("old", 1)})
    assert pinned.adapters == ("a@7", "b@2", "old@1")
    assert pinned.orthogonalize_against == ("old@1", "a@7")
    assert pinned.inputs[0].weight == 0.5


def test_pin_refuses_two_names_of_one_version() -> None:
    recipe = Recipe(inputs=(RecipeInput(adapter="a"), RecipeInput(adapter="a@7")))
    with pytest.raises(DuplicateInput):
        recipe.pin({"a": VersionRef("a", 7), "a@7": VersionRef("a", 7)})


def test_empty_and_unknown_fields_are_refused() -> None:
    with pytest.raises(NoInputs):
        Recipe(inputs=())
    for extra in ({"typo": 1}, {"seed": -1}, {"output": {"rank": 0}}, {"output": {"dtype": "int8"}}):
        with pytest.raises(ValidationError):
            Recipe.model_validate({"inputs": [{"adapter": "a"}], **extra})
    for weight in (float("nan"), float("inf"), [], [1.0, float("nan")], "x"):
        with pytest.raises(ValidationError):
            RecipeInput.model_validate({"adapter": "a", "weight": weight})
