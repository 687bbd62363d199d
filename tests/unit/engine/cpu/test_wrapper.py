"""Our wrapper driven as vLLM drives it: with its mappings and its stacked tensors."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from amalgam.engine.cpu.plan import TALL_ROWS
from amalgam.engine.cpu.processor import one_pass_units
from tests.unit.engine.cpu.product_cases import FLOAT32_TOLERANCE, SLICES, SLOTS, random_factors, random_rows, reference
from tests.unit.engine.cpu.test_stored_factors import random_pairs, stacks

SLOT_IDS = [31, 7, None, 12, 99]
"""Adapter ids by slot; slot 2 is free."""
TOKENS = [7] * 5 + [0] * 3 + [99] * 4 + [31] + [0]
TOKEN_SLOTS = [1] * 5 + [-1] * 3 + [4] * 4 + [0] + [-1]
SAMPLES = [7, 0, 99, 31, 0]
SAMPLE_SLOTS = [1, -1, 4, 0, -1]


def make_wrapper(lora_dtype: torch.dtype = torch.float32) -> Any:
    from amalgam.engine.cpu.products import GroupedPunicaWrapper

    return GroupedPunicaWrapper(256, 16, torch.device("cpu"), lora_config=SimpleNamespace(lora_dtype=lora_dtype))


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16, torch.float16], ids=str)
def wrapper(request: pytest.FixtureRequest) -> Any:
    """Of an engine of any type; the rows and factors of these tests are float32."""
    from vllm.lora.layers import LoRAMapping

    made = make_wrapper(request.param)
    made.update_metadata(LoRAMapping(tuple(TOKENS), tuple(SAMPLES), is_prefill=True), SLOT_IDS, SLOTS + 1, 1000)
    return made


def assert_close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got.double(), want.double(), rtol=FLOAT32_TOLERANCE, atol=FLOAT32_TOLERANCE)


def test_linear(wrapper: Any) -> None:
    a_stacked, b_stacked = random_factors(SLICES["qkv"], ranks=(8, 1, 0, 3, 16))
    x, y = random_rows(TOKEN_SLOTS, SLICES["qkv"])
    got = y.clone()
    wrapper.add_lora_linear(got, x, a_stacked, b_stacked, 1.0, SLICES["qkv"])
    assert_close(got, reference(y, x, a_stacked, b_stacked, TOKEN_SLOTS))
    assert got[torch.tensor(TOKEN_SLOTS) < 0].equal(y[torch.tensor(TOKEN_SLOTS) < 0])


def test_halves_give_the_whole(wrapper: Any) -> None:
    """Layers with sharded factors call shrink and expand apart."""
    a_stacked, b_stacked = random_factors(SLICES["gate_up"], ranks=(8, 1, 0, 3, 16))
    x, y = random_rows(TOKEN_SLOTS, SLICES["gate_up"])
    hidden = torch.zeros(2, len(x), 64)
    got = y.clone()
    wrapper.add_shrink(hidden, x, a_stacked, 1.0)
    wrapper.add_expand(got, hidden, b_stacked, SLICES["gate_up"], offset_start=0, add_input=True)
    assert_close(got, reference(y, x, a_stacked, b_stacked, TOKEN_SLOTS))


def test_logits_use_the_sampled_rows(wrapper: Any) -> None:
    (a,), (b,) = random_factors((72,), ranks=(8,) * SLOTS)
    x, y = random_rows(SAMPLE_SLOTS, (72,))
    got = y.clone()
    wrapper.add_lora_logits(got, x, a, b, 1.0)
    assert_close(got, reference(y, x, (a,), (b,), SAMPLE_SLOTS))


@pytest.mark.parametrize(("first", "stop"), [(0, 4), (5, 8), (8, 13), (0, len(TOKENS))])
def test_logits_of_a_prompt_use_the_prompts_rows(wrapper: Any, first: int, stop: int) -> None:
    """(8, 13) has as many rows as are sampled from."""
    (a,), (b,) = random_factors((72,), ranks=(8,) * SLOTS)
    states, logits = random_rows(TOKEN_SLOTS, (72,))
    y = logits[first:stop]
    got = y.clone()
    wrapper.add_lora_logits(got, states[first:stop], a, b, 1.0)
    assert_close(got, reference(y, states[first:stop], (a,), (b,), TOKEN_SLOTS[first:stop]))


def test_logits_stay_as_they_are_without_head_weights(wrapper: Any) -> None:
    (a,), (b,) = random_factors((72,), ranks=(0,) * SLOTS)
    x, y = random_rows([0] * 9, (72,))
    got = y.clone()
    wrapper.add_lora_logits(got, x, a, b, 1.0)
    assert got.equal(y)


def test_embedding(wrapper: Any) -> None:
    _, (b,) = random_factors((40,), ranks=(8,) * SLOTS)
    x = torch.randn(len(TOKENS), 64, generator=torch.Generator().manual_seed(5))
    y = torch.ones(len(TOKENS), 40)
    wrapper.add_lora_embedding(y, x, b, add_input=True)
    for row, slot in enumerate(TOKEN_SLOTS):
        assert_close(y[row], 1 + b[slot, 0].double() @ x[row].double() if slot >= 0 else torch.ones(40))


def test_whole_heads_replace_the_base_head_where_an_adapter_has_one(wrapper: Any) -> None:
    (weight,), _ = random_factors((8,), ranks=(8,) * SLOTS)
    weight = weight[:, :, :8]
    bias = torch.arange(SLOTS * 8.0).view(SLOTS, 8)
    enabled = torch.tensor([True, False, False, False, True])
    x, y = random_rows(SAMPLE_SLOTS, (8,))
    got = y.clone()
    wrapper.apply_lora_full_linear(got, x, weight, bias, enabled)
    for row, slot in enumerate(SAMPLE_SLOTS):
        replaced = slot >= 0 and bool(enabled[slot])
        assert_close(got[row], weight[slot, 0].double() @ x[row].double() + bias[slot] if replaced else y[row])


def test_a_step_of_the_base_model_alone_multiplies_nothing(wrapper: Any) -> None:
    from vllm.lora.layers import LoRAMapping

    alone = make_wrapper()
    alone.update_metadata(LoRAMapping((0,) * 6, (0,) * 2, is_prefill=True), SLOT_IDS, SLOTS + 1, 1000)
    a_stacked, b_stacked = random_factors(SLICES["qkv"], ranks=(8,) * SLOTS)
    x, y = random_rows([-1] * 6, SLICES["qkv"])
    got = y.clone()
    alone.add_lora_linear(got, x, a_stacked, b_stacked, 1.0, SLICES["qkv"])
    assert got.equal(y)


COMPILED = "in compiled loops"
UNITS = f"{COMPILED}, long runs in bfloat16 units"


@pytest.mark.parametrize(
    ("dtype", "units", "products"),
    [
        (torch.float32, "float32", COMPILED),
        (torch.float32, "bfloat16", COMPILED),
        (torch.bfloat16, "float32", COMPILED),
        (torch.bfloat16, "bfloat16", UNITS),
        (torch.float16, "bfloat16", "in torch"),
    ],
)
def test_products_follow_the_type_and_the_units_and_the_log_names_them(
    dtype: torch.dtype, units: str, products: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.lora.layers import LoRAMapping

    monkeypatch.setenv("AMALGAM_CPU_UNITS", units)
    with caplog.at_level(logging.INFO, logger="amalgam.engine.cpu.products"):
        made = make_wrapper(dtype)
    in_one_pass = ", in one pass with the layer's own" if products is UNITS and one_pass_units("detected") else ""
    assert f"products of {str(dtype).removeprefix('torch.')} rows {products}{in_one_pass}\n" in caplog.text
    ids = (7,) * TALL_ROWS + (99,)
    made.update_metadata(LoRAMapping(ids, (7, 99), is_prefill=True), SLOT_IDS, SLOTS + 1, 1000)
    assert bool(made.token_plan.tall) == (products is UNITS)
    assert (made.token_plan.groups is not None) == (made.sample_plan.groups is not None) == (dtype != torch.float16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_first_request_finds_the_loops_compiled(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wrapper compiles for just the types that requests come with."""
    from vllm.lora.layers import LoRAMapping

    from amalgam.engine.cpu import copies, loops

    kept: list[Any] = [loops.add_low_rank, loops.add_low_rank_together]
    kept += [copies.used_rows, copies.copy_slice, copies.take_slice]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    make_wrapper(torch.float16)
    made = make_wrapper(dtype)
    compiled = [set(loop.signatures) for loop in kept]
    a_stacked, b_stacked = random_factors(SLICES["qkv"], ranks=(8,) * SLOTS, dtype=dtype)
    given = [(a_stacked, b_stacked)]
    for dtypes in ((torch.bfloat16, torch.bfloat16), (torch.float32, torch.float32)):
        a_stored, b_stored, contents = stacks(SLOTS, dtype)
        for slot in range(SLOTS):
            contents.put(slot, random_pairs((4, 2), seed=slot, dtypes=dtypes)[0])
        given.append((a_stored, b_stored))
    for ids in ((7, 99), (7, 99, 31, 12), (7,) * 20):
        made.update_metadata(LoRAMapping(ids, ids, is_prefill=False), SLOT_IDS, SLOTS + 1, 1000)
        for a, b in given:
            x = torch.ones(len(ids), a[0].shape[-1], dtype=dtype)
            y = torch.ones(len(ids), sum(part.shape[2] for part in b), dtype=dtype)
            with torch.inference_mode():
                made.add_lora_linear(y, x, a, b, 1.0, SLICES["qkv"])
    assert compiled == [set(loop.signatures) for loop in kept]
