"""Which layers have a second copy of their weight, and when they multiply by it."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from amalgam.engine.cpu import amx_loops, dot_loops
from amalgam.engine.cpu.factors import FactorCache
from amalgam.engine.cpu.fused import LEAST_ROWS, FusedLinear, WeightCopies, bytes_of, fusing
from amalgam.engine.cpu.plan import plan_rows
from amalgam.engine.cpu.processor import CpuUnits, OnePass, has_tiles, has_vectors, one_pass_units
from amalgam.engine.cpu.products import GroupedPunicaWrapper
from amalgam.engine.cpu.sources import PlaceholderStack, SlotContents, StoredPair
from tests.unit.engine.cpu.product_cases import BFLOAT16_TOLERANCE

LENGTH, WIDTHS, SLOTS = 64, (64, 32), 3
WEIGHT = torch.randn(sum(WIDTHS), LENGTH, generator=torch.Generator().manual_seed(0)).bfloat16()
FOUND = one_pass_units("detected")
UNITS: OnePass = FOUND or "vectors"
ROWS = LEAST_ROWS[UNITS]
needs_units = pytest.mark.skipif(FOUND is None, reason="the processor has neither AMX nor AVX-512 BF16")


def base_layer(**more: Any) -> Any:
    """As vLLM's, with its weight given away to a library."""
    from vllm.model_executor.layers.linear import UnquantizedLinearMethod

    method = UnquantizedLinearMethod.__new__(UnquantizedLinearMethod)
    method.apply = lambda layer, x, bias: torch.nn.functional.linear(x, WEIGHT, bias)
    facts = {"input_size": LENGTH, "output_size": sum(WIDTHS), "params_dtype": torch.bfloat16, "quant_method": method}
    return SimpleNamespace(**facts | more)


def lora_layer(wrapper: Any, **more: Any) -> Any:
    contents = SlotContents()
    a = [torch.zeros(1, 1, 16, LENGTH, dtype=torch.bfloat16) for _ in WIDTHS]
    b = [torch.zeros(1, 1, width, 16, dtype=torch.bfloat16) for width in WIDTHS]
    stacks = {
        "lora_a_stacked": PlaceholderStack(a, SLOTS, contents), "lora_b_stacked": PlaceholderStack(b, SLOTS, contents)
    }  # fmt: skip
    return SimpleNamespace(base_layer=base_layer(), punica_wrapper=wrapper, **stacks | more)


def wrapper_of(slots: list[int], room: int, span_rows: int = ROWS) -> Any:
    """Ours in the middle of a step with rows of these slots."""
    made = GroupedPunicaWrapper.__new__(GroupedPunicaWrapper)
    made.__dict__.update(
        {
            "token_plan": plan_rows(torch.tensor(slots), compiled=True, has_units=True, span_rows=span_rows),
            "_copies": WeightCopies(room, UNITS), "_factors": FactorCache(), "_slot_ids": list(range(SLOTS)),
        }
    )  # fmt: skip
    return made


def give(layer: Any, slot: int, seed: int) -> Tensor:
    """Give it an adapter; what that adds to the weight, [out, in], in float64."""
    generator = torch.Generator().manual_seed(seed)
    pairs: list[StoredPair | None] = []
    deltas = []
    for width in WIDTHS:
        a, b = (
            torch.randn(8, LENGTH, generator=generator).bfloat16(),
            torch.randn(width, 8, generator=generator).bfloat16(),
        )
        pairs.append(StoredPair.of(a, b, 0.25))
        deltas.append(0.25 * b.double() @ a.double())
    layer.lora_a_stacked.contents.put(slot, pairs)
    return torch.cat(deltas)


def untouched(*_: Any) -> Tensor:
    raise AssertionError("vLLM's own way is not taken")


@needs_units
@pytest.mark.parametrize(("is_batched", "span_rows"), [(False, ROWS), (True, ROWS), (False, 20)])
def test_a_layer_multiplies_in_one_pass(is_batched: bool, span_rows: int) -> None:
    """Short runs beside the long ones have their adapters, and rows of none have none."""
    slots = [2, 2, -1] + [0] * span_rows + [1] * 5 + [2] * (span_rows + 7) + [-1]
    layer = lora_layer(wrapper_of(slots, 1 << 20, span_rows))
    deltas = [give(layer, slot, seed=slot) for slot in range(SLOTS)]
    x = torch.randn(len(slots), LENGTH, generator=torch.Generator().manual_seed(9)).bfloat16()
    bias = torch.arange(sum(WIDTHS)).bfloat16() / 16
    got = fusing(untouched)(layer, x[None] if is_batched else x, bias)
    assert got.shape == ((1,) if is_batched else ()) + (len(slots), sum(WIDTHS))
    weights = torch.stack([WEIGHT.double() + delta for delta in (*deltas, torch.zeros(()))])
    want = torch.einsum("roi,ri->ro", weights[slots], x.double()) + bias.double()
    # Rows of short runs are rounded twice.
    torch.testing.assert_close(got.view_as(want).double(), want, rtol=BFLOAT16_TOLERANCE, atol=16 * BFLOAT16_TOLERANCE)


@needs_units
def test_the_first_prompt_finds_the_pass_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    config = SimpleNamespace(lora_dtype=torch.bfloat16)
    GroupedPunicaWrapper(256, 16, torch.device("cpu"), lora_config=config)
    loops: Any = {"tiles": amx_loops.multiply_in_tiles, "vectors": dot_loops.multiply}[UNITS]
    compiled = set(loops.signatures)
    layer = lora_layer(wrapper_of([0] * ROWS, 1 << 20))
    give(layer, 0, seed=1)
    with torch.inference_mode():
        fusing(untouched)(layer, torch.zeros(ROWS, LENGTH, dtype=torch.bfloat16))
    assert compiled
    assert compiled == set(loops.signatures)


@pytest.mark.parametrize(
    ("slots", "rows", "room", "has_adapter", "dtype"),
    [
        ([0] * 19, 19, 1 << 20, True, torch.bfloat16),
        ([-1] * 300, 300, 1 << 20, True, torch.bfloat16),
        ([0] * 300, 300, 0, True, torch.bfloat16),
        ([0] * 300, 40, 1 << 20, True, torch.bfloat16),
        ([0] * 300, 300, 1 << 20, False, torch.bfloat16),
        ([0] * 300, 300, 1 << 20, True, torch.float32),
    ],
    ids=[
        "short runs", "base model", "no room", "other rows than the step's", "no adapter for the layer", "float32 rows"
    ],
)  # fmt: skip
def test_other_steps_go_vllms_way(
    slots: list[int], rows: int, room: int, has_adapter: bool, dtype: torch.dtype
) -> None:
    layer = lora_layer(wrapper_of(slots, room, span_rows=20))
    if has_adapter:
        give(layer, 0, seed=1)
    x, said = torch.zeros(rows, LENGTH, dtype=dtype), torch.zeros(1)
    assert fusing(lambda *_: said)(layer, x) is said


def test_the_weight_is_what_its_product_with_the_identity_says() -> None:
    by_library, itself = FusedLinear.of(base_layer(), UNITS), FusedLinear(WEIGHT, UNITS)
    assert (by_library.packed == itself.packed).all()


@pytest.mark.parametrize(("units", "longest"), [("tiles", 3072), ("vectors", 8192)])
def test_layers_that_are_multiplied_otherwise_have_no_copy(units: OnePass, longest: int) -> None:
    assert bytes_of(base_layer(), units) == WEIGHT.nbytes
    for facts in ({"quant_method": object()}, {"params_dtype": torch.float16}, {"output_size": 72}, {"input_size": 40}):
        assert bytes_of(base_layer(**facts), units) == 0, facts
    assert bytes_of(base_layer(input_size=longest), units) > 0
    assert bytes_of(base_layer(input_size=longest + 32), units) == 0
    copies = WeightCopies(1 << 20, units)
    assert copies.of(lora_layer(None, lora_a_stacked=(torch.zeros(1),))) is None


def test_a_processor_without_such_units_has_no_copies() -> None:
    assert WeightCopies(1 << 20, None).of(lora_layer(None)) is None


def test_copies_end_where_there_is_no_more_room(caplog: pytest.LogCaptureFixture) -> None:
    copies, layers = WeightCopies(2 * WEIGHT.nbytes + 1, UNITS), [lora_layer(None) for _ in range(4)]
    with caplog.at_level(logging.WARNING):
        made = [copies.of(layer) for layer in layers]
    assert [copy is not None for copy in made] == [True, True, False, False]
    assert [copies.of(layer) for layer in layers] == made
    assert [record.message for record in caplog.records if "AMALGAM_CPU_COPIES_GIB" in record.message] == [
        caplog.records[0].message
    ]


@pytest.mark.parametrize(
    "missing", ["the units", "the processor's", "the compiler's", "the system's", "a code of its own", "vectors"]
)
def test_units_are_used_where_processor_compiler_and_system_have_them(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llvmlite import binding
    from numba.core import config

    lacks: dict[str, set[str]] = {
        "the processor's": {"amx_bf16"}, "the compiler's": {"amx-tile"}, "vectors": {"avx512_bf16"}
    }  # fmt: skip
    named = {"amx_tile", "amx_bf16", "avx512_bf16"} - lacks.get(missing, set())
    in_code = {"amx-tile", "amx-bf16", "avx512bf16"} - lacks.get(missing, set())
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(named, True))
    monkeypatch.setattr(binding, "get_host_cpu_features", lambda: dict.fromkeys(in_code, True))
    monkeypatch.setattr(torch.cpu, "_init_amx", lambda: missing != "the system's")
    monkeypatch.setattr(config, "CPU_NAME", "generic" if missing == "a code of its own" else None)
    units: CpuUnits = "float32" if missing == "the units" else "detected"
    assert not has_tiles(units)
    has_others = missing in ("the processor's", "the compiler's", "the system's")
    assert has_vectors(units) is has_others
    assert one_pass_units(units) == ("vectors" if has_others else None)
    if missing == "the units":
        assert one_pass_units("detected") == one_pass_units("bfloat16") == "tiles"
