"""What is set aside for a blend before it is built: never less than its files, and on deltas hardly more."""

import pytest

from amalgam.domain.adapter import AdapterHeader, AdapterVersion, BaseModelSpec, ModuleHeader
from amalgam.domain.expression import parse_expression
from amalgam.merge.plan import plan
from amalgam.services.blends import Blend

SHAPES = {"m.0.q_proj": (64, 64), "m.0.up_proj": (256, 64), "m.1.q_proj": (64, 64), "m.1.down_proj": (64, 256)}
BASE = BaseModelSpec("base", "f" * 64, SHAPES, max_lora_rank=32)


def version_of(size_bytes: int, dtype: str | None) -> AdapterVersion:
    return AdapterVersion.model_construct(size_bytes=size_bytes, dtype=dtype)  # type: ignore[call-arg]


def blend_of(expression: str, modules: list[str]) -> tuple[Blend, int]:
    """A blend of adapters of rank 4 on these modules; and the bytes of its result."""
    parts = {name: ModuleHeader(name, 4, SHAPES[name][1], SHAPES[name][0], 1.0, "BF16") for name in modules}
    size = sum(2 * part.rank * (part.in_features + part.out_features) for part in parts.values())
    recipe = parse_expression(expression)
    headers = {name: AdapterHeader(parts, None, size) for name in recipe.adapters}
    versions = {name: version_of(size, "bfloat16") for name in recipe.adapters}
    built = plan(recipe, headers, max_rank=BASE.max_lora_rank)
    return Blend("d", recipe, expression, versions, {}, 0.0), built.output_bytes


@pytest.mark.parametrize(
    "expression",
    ["a + b", "ties(a, b)", "ties(a, b; space=delta)", "ties(a, b; space=delta, rank=3)", "dare_ties(a, b; seed=1)"],
)
@pytest.mark.parametrize("modules", [list(SHAPES), ["m.0.q_proj"]])
def test_as_much_is_set_aside_as_the_files_take(expression: str, modules: list[str]) -> None:
    blend, size = blend_of(expression, modules)
    assert size <= blend.reserve_bytes(BASE)


def test_a_blend_on_deltas_fits_where_the_largest_adapter_of_the_model_does() -> None:
    for rank in ("auto", "5"):
        blend, size = blend_of(f"ties(a, b; space=delta, rank={rank})", list(SHAPES))
        assert blend.reserve_bytes(BASE) <= size + (64 << 10), "a smaller rank is what the refusal advises"


@pytest.mark.parametrize(("dtype", "width"), [("float32", 4), ("bfloat16", 2), (None, 2)])
def test_an_input_that_is_widened_takes_more_than_its_files_and_one_that_is_not_does_not(
    dtype: str | None, width: int
) -> None:
    part = ModuleHeader("m.0.q_proj", 4, 64, 64, 1.0, "F32")
    entries = part.rank * (part.in_features + part.out_features)
    recipe = parse_expression("task_arithmetic(a, b; dtype=float32)")
    built = plan(recipe, {name: AdapterHeader({part.name: part}, None, 0) for name in "ab"}, max_rank=32)
    versions = {name: version_of(width * entries, dtype) for name in "ab"}
    reserve = Blend("d", recipe, "", versions, {}, 0.0).reserve_bytes(BASE)
    assert built.output_bytes <= reserve <= built.output_bytes + (64 << 10)
