"""On a real GPU: the compiled kernels against the reference, and whole merges against the processor's.

Needs torch, triton, pytest and hypothesis beside the package; run with ``pytest -m gpu tests/gpu``.
"""

from typing import Any

import pytest
import torch

from amalgam.kernels.eigen import semidefinite_eigh
from amalgam.kernels.philox import Stream, words
from amalgam.kernels.tiles import ReferenceTiles, TileInput, TileRule, order_statistics_by_rows
from amalgam.merge.run import RunOptions
from tests.merge_factory import make_adapter, make_recipe, merge_dense, relative

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

EXACT = 1e-13
"""Of float64 decompositions, relative to the largest eigenvalue."""

SAME = 1e-4
"""Thresholds and elections may flip single entries between two orders of summation."""


def make_inputs(shape: Any, low: float = 0.0, high: Any = float("inf")) -> Any:
    """Small integers: exact in any order of summation."""
    generator = torch.Generator().manual_seed(0)
    return [
        TileInput(
            torch.randint(-3, 4, (shape[0], rank), generator=generator).float().cuda(),
            torch.randint(-3, 4, (rank, shape[1]), generator=generator).float().cuda(),
            weight, Stream((5 << 32) | 9, 11 + t, 4000000000), low, high,
        )
        for t, (rank, weight) in enumerate([(16, 1.0), (3, -2.0), (32, 0.5)])
    ]  # fmt: skip


@pytest.mark.parametrize("shape", [(1, 1), (63, 100), (2000, 1), (1000, 2049)])
@pytest.mark.parametrize("rule", [
    TileRule("none", "sum"), TileRule("trim", "elect"), TileRule("trim", "elect", frequency=True, scale=0.5),
    TileRule("drop", "sum", density=0.3), TileRule("drop", "elect", density=0.5), TileRule("breadcrumbs", "elect"),
])  # fmt: skip
def test_compiled_kernels_are_the_reference(shape: tuple[int, int], rule: Any) -> None:
    from amalgam.kernels.triton_backend import TritonTiles

    inputs = make_inputs(shape, low=4.0, high=40.0 if rule.sparsify == "breadcrumbs" else float("inf"))
    expected = ReferenceTiles().merge_rows(inputs, rule, 0, shape[0])
    torch.testing.assert_close(TritonTiles().merge_rows(inputs, rule, 0, shape[0]), expected, rtol=0, atol=0)
    plain = TileRule("drop" if rule.sparsify == "drop" else "none", "sum", density=rule.density)
    part = TileInput(inputs[0].B, inputs[0].A, 1.0, inputs[0].stream)
    ks = sorted({1, max(1, shape[0] * shape[1] // 5), shape[0] * shape[1]})
    assert TritonTiles().order_statistics(part, plain, shape, ks, None) == order_statistics_by_rows(
        part, plain, shape, ks, torch.empty(shape, device=part.B.device)
    )


def test_masks_are_those_of_the_processor() -> None:
    stream = Stream((3 << 32) | 1, 2, 3)
    assert torch.equal(words(stream, 5, 10_001, "cuda").cpu(), words(stream, 5, 10_001))


@pytest.mark.parametrize(("method", "fields"), [
    ("linear", {}), ("svd", {"rank": 4}), ("ties", {}), ("ties", {"space": "core"}), ("tsv", {}), ("karcher", {}),
    ("ties", {"space": "delta", "rank": 8}), ("dare_ties", {"rank": 8}), ("breadcrumbs", {"rank": 8}),
    ("della", {"rank": 8}), ("sce", {"space": "delta", "rank": 8}),
])  # fmt: skip
def test_merges_agree_with_the_processor(method: str, fields: dict[str, Any]) -> None:
    shapes = {"model.layers.0.q_proj": (320, 256), "model.layers.0.up_proj": (771, 256)}
    sources = {
        name: make_adapter(seed, rank=rank, shapes=shapes) for seed, (name, rank) in enumerate([("a", 8), ("b", 4)])
    }
    recipe = make_recipe(method, {"a": 1.0, "b": 0.5}, seed=3, **fields)
    expected = merge_dense(recipe, sources)
    found = merge_dense(recipe, sources, options=RunOptions(device="cuda:0"))
    for name in shapes:
        assert relative(found[name], expected[name]) < SAME


@pytest.mark.parametrize("rows", [1, 16, 33, 64, 80, 128])
def test_eigenvectors_of_many_matrices(rows: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    factor = torch.randn(37, rows, rows, generator=generator, dtype=torch.float64).cuda()
    matrices = factor * torch.logspace(0, -3, rows, dtype=torch.float64, device="cuda") @ factor.mT
    matrices = matrices @ matrices.mT
    values, vectors = semidefinite_eigh(matrices)
    expected = torch.linalg.eigvalsh(matrices.cpu()).cuda()
    assert float(((values - expected) / expected[:, -1:]).abs().max()) < EXACT
    rebuilt = vectors @ (values.unsqueeze(-1) * vectors.mT)
    assert float((rebuilt - matrices).norm() / matrices.norm()) < EXACT
    overlap = (vectors.mT @ vectors - torch.eye(rows, dtype=torch.float64, device="cuda")).abs()
    real = (values > EXACT * values[:, -1:]).double()
    assert float((overlap * real.unsqueeze(1) * real.unsqueeze(2)).max()) < 1e-10


@pytest.mark.parametrize("k", [1, 20, 400_000, 2_000_000, 2_048_999])
@pytest.mark.parametrize("rule", [TileRule("none", "sum"), TileRule("drop", "sum", density=0.5)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_order_statistics_of_a_batch_are_those_of_each_module(dtype: torch.dtype, k: int, rule: Any) -> None:
    """On tensor cores and on others; with brackets of two passes, of three, and with a module of zeros."""
    from amalgam.kernels.module_batch import ModuleBatch
    from amalgam.kernels.triton_backend import merge_batch
    from amalgam.kernels.triton_selection import largest_of_batch, largest_of_inputs

    generator = torch.Generator().manual_seed(k)
    B = torch.randn(3, 1000, 36, generator=generator).to(dtype).float().cuda()
    A = torch.randn(3, 36, 2049, generator=generator).to(dtype).float().cuda()
    B[2, :, :16] = 0
    batch = ModuleBatch(B, A, (0, 16, 36), torch.ones(3, 2).cuda(), torch.tensor([2, 3, 4]).cuda(), (1, 5), 7).checked()
    assert batch.B.dtype == dtype
    found = largest_of_inputs(batch, rule, k)
    for t in range(2):
        unlike = torch.tensor([[float("inf"), 0.0][:: 1 if t else -1]] * 3).cuda()
        merged = merge_batch(batch, rule, unlike, None, range(1000))
        expected = merged.abs().flatten(1).sort(dim=1, descending=True).values[:, k - 1]
        assert torch.equal(found[:, t], expected)
        assert torch.equal(largest_of_batch(batch, rule, t, k), expected)
