"""Every refusal comes with its own class, code and next step, and before a tensor is read."""

from dataclasses import replace
from typing import Any

import pytest

from amalgam.domain.adapter import AdapterHeader, ModuleHeader
from amalgam.domain.recipe import Recipe, RecipeInput
from amalgam.errors import InvalidRequest
from amalgam.errors import merging as errors
from amalgam.merge.methods import METHODS, complete
from amalgam.merge.plan import plan

Q, UP = "model.layers.{}.q_proj", "model.layers.{}.up_proj"


def header(
    rank: int = 4, layers: int = 3, shape: tuple[int, int] = (8, 6), base: str = "base", names: Any = (Q, UP)
) -> Any:
    modules = {name.format(i): ModuleHeader(name.format(i), rank, shape[1], shape[0], 2.0, "F32")
               for i in range(layers) for name in names}  # fmt: skip
    return AdapterHeader(modules=modules, base_model=base, weight_bytes=0)


def recipe(
    method: str = "linear",
    weights: tuple[tuple[str, Any], ...] = (("a", 1.0), ("b", 1.0)),
    **fields: Any,
) -> Any:
    inputs = [{"adapter": name, "weight": weight} for name, weight in weights]
    return Recipe.model_validate({"method": method, "inputs": inputs, **fields})


def planned(wanted: Any, headers: Any = None, max_rank: int = 64, **options: Any) -> Any:
    return plan(wanted, headers or {"a": header(), "b": header(2)}, max_rank=max_rank, **options)


def only(text: Any, value: float = 1.0) -> Any:
    return [{"filter": text, "value": value}]


REFUSED = [
    (recipe("tiess"), {}, errors.UnknownMethod, "unknown_method"),
    (recipe("ties", space="concat"), {}, errors.SpaceRefused, "space_refused"),
    (recipe("ties", parameters={"density": 0.0}), {}, errors.ParameterRefused, "parameter_refused"),
    (recipe("ties", parameters={"density": 1.5}), {}, errors.ParameterRefused, "parameter_refused"),
    (recipe("ties", parameters={"denisty": 0.5}), {}, errors.ParameterRefused, "parameter_refused"),
    (recipe("della", parameters={"density": 0.1}), {}, errors.ParameterRefused, "parameter_refused"),
    (recipe("breadcrumbs", parameters={"density": 1.0}), {}, errors.ParameterRefused, "parameter_refused"),
    (recipe("cat", parameters={"density": 0.5}), {}, errors.ParameterRefused, "parameter_refused"),
    (recipe("slerp", (("a", 1.0),)), {}, errors.InputCountRefused, "input_count"),
    (recipe("slerp", (("a", 2.0), ("b", 1.0)), parameters={"t": 0.3}), {}, errors.WeightRefused, "weight_refused"),
    (recipe("karcher", (("a", -1.0), ("b", 1.0))), {}, errors.WeightRefused, "weight_refused"),
    (recipe("model_stock", (("a", 0.5), ("b", 1.0))), {}, errors.WeightRefused, "weight_refused"),
    (recipe("linear", (("a", 1.0), ("b", -1.0))), {}, errors.ZeroWeightSum, "zero_weight_sum"),
    (recipe(weights=(("a", 1.0), ("c", 1.0))), {}, errors.MissingInput, "adapter_not_found"),
    (recipe(orthogonalize_against=["c"]), {}, errors.MissingInput, "adapter_not_found"),
    (recipe(), {"headers": {"a": header(), "b": header(shape=(8, 5))}}, errors.ShapeMismatch, "shape_mismatch"),
    (recipe(), {"bases": {"a": "x", "b": "y"}}, errors.BaseMismatch, "base_mismatch"),
    (recipe("ties", space="factor"), {}, errors.UnequalRanks, "unequal_ranks"),
    (recipe("task_arithmetic", (("a", 0.0), ("b", 0.0))), {}, errors.NothingToMerge, "nothing_to_merge"),
    (recipe("passthrough"), {}, errors.AmbiguousChoice, "ambiguous_choice"),
    (recipe(output={"rank": 100}), {}, errors.RankTooLarge, "rank_too_large"),
    (recipe("cat"), {"max_rank": 4}, errors.RankTooLarge, "rank_too_large"),
]


@pytest.mark.parametrize(
    ("wanted", "options", "kind", "code"), REFUSED, ids=lambda value: getattr(value, "__name__", "")
)
def test_refusals(wanted: Any, options: Any, kind: Any, code: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        planned(wanted, **options)
    assert type(caught.value) is kind
    assert caught.value.code == code
    assert caught.value.param
    assert caught.value.message.rstrip().endswith(".")


def test_base_mismatch_passes_where_it_is_meant() -> None:
    assert planned(recipe(allow_base_mismatch=True), bases={"a": "x", "b": "y"}).rank == 6
    assert planned(recipe(), bases={"a": "x", "b": None}).rank == 6


def test_ranks_by_space_and_request() -> None:
    assert planned(recipe("task_arithmetic")).rank == 6
    assert planned(recipe("task_arithmetic"), max_rank=5).rank == 5
    assert planned(recipe("task_arithmetic", output={"rank": 3})).rank == 3
    assert planned(recipe("svd")).rank == 4
    wide = {"a": header(shape=(100, 90)), "b": header(2, shape=(100, 90))}
    assert planned(recipe("ties", space="delta"), wide).rank == 64
    assert planned(recipe("ties"), wide).rank == 6
    same = {"a": header(), "b": header()}
    assert planned(recipe("ties", space="factor"), same).rank == 4


def test_rank_never_exceeds_the_matrix() -> None:
    assert planned(recipe(), {"a": header(5), "b": header(4)}).rank == 6


def test_weights_by_depth_filter_and_absence() -> None:
    headers = {"a": header(), "b": header(2, names=(Q,))}
    layout = planned(recipe("task_arithmetic", (("a", (0.0, 1.0)), ("b", only("q_proj", 0.5)))), headers)
    found = {module.name: {part.index: part.weight for part in module.inputs} for module in layout.modules}
    assert found == {
        Q.format(0): {1: 0.5}, Q.format(1): {0: 0.5, 1: 0.5}, UP.format(1): {0: 0.5},
        Q.format(2): {0: 1.0, 1: 0.5}, UP.format(2): {0: 1.0},
    }  # fmt: skip
    # An input whose filter leaves a module out is not missing there.
    assert dict(layout.partial) == {}
    assert planned(recipe(), headers).partial == {UP.format(i): ("b",) for i in range(3)}


def test_linear_divides_by_all_weights_even_of_absent_modules() -> None:
    layout = planned(recipe("linear", (("a", 1.0), ("b", 3.0))), {"a": header(), "b": header(2, names=(Q,))})
    weights = {module.name: [part.weight for part in module.inputs] for module in layout.modules}
    assert weights[Q.format(0)] == [0.25, 0.75]
    assert weights[UP.format(0)] == [0.25]


def test_shares_are_divided_among_those_present() -> None:
    layout = planned(recipe("karcher", (("a", 1.0), ("b", 3.0))), {"a": header(), "b": header(2, names=(Q,))})
    weights = {module.name: [part.weight for part in module.inputs] for module in layout.modules}
    assert weights[Q.format(0)] == [0.25, 0.75]
    assert weights[UP.format(0)] == [1.0]


def test_groups_hold_one_shape_and_layers_in_order() -> None:
    layout = planned(recipe(), {"a": header(layers=11), "b": header(2, layers=11)})
    assert [len(group) for group in layout.groups] == [22]
    assert [module.name for module in layout.modules][4] == Q.format(2)


def test_completing_a_recipe_makes_equal_meanings_equal() -> None:
    spelled = complete(recipe("ties", space="knots", parameters={"density": 1.0, "lambda": 1}, seed=9))
    assert spelled.digest() == complete(recipe("ties")).digest()
    assert complete(recipe("dare_ties", seed=9)).digest() != complete(recipe("dare_ties")).digest()
    delta = complete(recipe("ties", space="delta"))
    assert delta.parameters["density"] == 0.2
    assert complete(delta) == delta


@pytest.mark.parametrize("method", ["linear", "ties", "iso_c", "tsv"])
def test_a_cut_is_said_before_anything_is_built(method: str) -> None:
    wide: dict[str, Any] = {"shape": (40, 30)}
    cut = planned(recipe(method, output={"rank": 2}), {"a": header(4, **wide), "b": header(4, **wide)})
    assert (cut.exact_rank, cut.rank) == (8, 2)
    assert any("exact rank up to 8, planned rank 2" in text for text in cut.warnings)
    whole = planned(recipe(method), {"a": header(2, **wide), "b": header(2, **wide)})
    assert (whole.exact_rank, whole.rank, whole.warnings) == (4, 4, ())


def test_one_input_with_weight_one_is_cut_no_less_openly() -> None:
    one = Recipe(method="linear", inputs=(RecipeInput(adapter="a"),))
    cut = plan(one, {"a": header(96, shape=(200, 150))}, max_rank=64)
    assert (cut.exact_rank, cut.rank) == (96, 64)
    assert any("exact rank up to 96, planned rank 64" in text for text in cut.warnings)


def test_an_input_that_shares_no_module_with_any_other_is_refused() -> None:
    same = {"model.layers.0.q_proj": ModuleHeader("model.layers.0.q_proj", 2, 8, 8, 1.0, "F32")}
    other = {"layers.0.q_proj": ModuleHeader("layers.0.q_proj", 2, 8, 8, 1.0, "F32")}
    headers = {name: AdapterHeader(mods, None, 0) for name, mods in {"a": same, "b": other, "c": same}.items()}
    with pytest.raises(errors.NoCommonModule) as caught:
        plan(recipe("linear"), headers, max_rank=8)
    assert caught.value.code == "no_common_module"
    three = Recipe(method="linear", inputs=tuple(RecipeInput(adapter=name) for name in "acb"))
    with pytest.raises(errors.NoCommonModule, match="'b'"):
        plan(three, headers, max_rank=8)
    assert plan(recipe("passthrough"), headers, max_rank=8).rank == 2
    assert plan(Recipe(inputs=(RecipeInput(adapter="b"),)), headers, max_rank=8).rank == 2


def test_the_task_is_that_of_the_inputs_and_none_where_they_differ() -> None:
    def task(*names: Any) -> Any:
        headers = {n: replace(header(2), task_type=t) for n, t in zip("ab", names, strict=True)}
        return planned(recipe("linear"), headers).task_type

    assert task("FEATURE_EXTRACTION", "FEATURE_EXTRACTION") == "FEATURE_EXTRACTION"
    assert task("CAUSAL_LM", None) == "CAUSAL_LM"
    assert task("CAUSAL_LM", "FEATURE_EXTRACTION") is None
    assert task(None, None) is None


def test_table_is_whole() -> None:
    for spec in METHODS.values():
        assert spec.spaces
        assert spec.summary
        one = Recipe(method=spec.name, inputs=tuple(RecipeInput(adapter=str(i)) for i in range(spec.min_inputs)))
        for space in spec.spaces:
            assert complete(one.model_copy(update={"space": str(space)})).space == space
