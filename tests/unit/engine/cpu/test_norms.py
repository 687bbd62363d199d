"""Normalisation on CPU: by vLLM's compiled kernels where they take what is given, and as exact as its own in torch."""

import pytest
import torch
from torch import Tensor

from amalgam.engine.cpu import patches
from amalgam.engine.cpu.norms import PROVIDER
from amalgam.engine.cpu.processor import is_avx2_build

ROUNDED = {torch.float32: 1e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}
"""Relative; the nearest number, and in sums what is added is rounded before."""


@pytest.fixture(scope="module", autouse=True)
def known() -> None:
    """The kernels are made known, as a worker does it."""
    from vllm.platforms.cpu import CpuPlatform

    patches.apply("begin", on=CpuPlatform)
    CpuPlatform.import_kernels()
    CpuPlatform.import_ir_kernels()
    CpuPlatform.import_ir_kernels()


def test_they_are_chosen_on_cpu() -> None:
    from vllm.platforms.cpu import CpuPlatform

    order = CpuPlatform.get_default_ir_op_priority(None)
    assert order.rms_norm == order.fused_add_rms_norm == [PROVIDER, "native"]
    assert order.gelu_and_mul_sparse == ["native"]


@pytest.mark.parametrize("dtype", ROUNDED)
@pytest.mark.parametrize("shape", [(1, 64), (5, 576), (3, 2, 128)])
def test_they_are_exact(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    from vllm import ir

    x, residual, weight = numbers(shape, dtype, 0), numbers(shape, dtype, 1), numbers(shape[-1:], dtype, 2)
    given, kept = x.clone(), residual.clone()
    with ir.ops.rms_norm.set_priority([PROVIDER, "native"]):
        # The build for AVX2 cuts bfloat16 off, which is told from rounding by the tolerance below.
        expected = "native" if dtype is torch.bfloat16 and is_avx2_build() else PROVIDER
        assert ir.ops.rms_norm.dispatch(x, weight, 1e-5).provider == expected
        alone = ir.ops.rms_norm(x, weight, 1e-5)
    with ir.ops.fused_add_rms_norm.set_priority([PROVIDER, "native"]):
        both, total = ir.ops.fused_add_rms_norm(x, residual, weight, 1e-5)
    # Nothing that was given is changed, although the kernel works in place.
    assert x.equal(given)
    assert residual.equal(kept)
    close(alone, normed(x.double(), weight), dtype)
    close(both, normed(x.double() + residual.double(), weight), dtype)
    assert total.equal((x.float() + residual.float()).to(dtype))


@pytest.mark.parametrize("what", ["odd row", "no weight", "another type", "a view", "part of the row"])
def test_what_they_do_not_take_goes_to_torch(what: str) -> None:
    from vllm import ir

    x, weight = numbers((4, 65 if what == "odd row" else 64), torch.bfloat16, 0), None
    if what != "no weight":
        weight = numbers(x.shape[-1:], torch.float32 if what == "another type" else torch.bfloat16, 1)
    if what == "a view":
        x = numbers((4, 128), torch.bfloat16, 0)[:, :64]
    part = 32 if what == "part of the row" else None
    with ir.ops.rms_norm.set_priority([PROVIDER, "native"]):
        assert ir.ops.rms_norm.dispatch(x, weight, 1e-5, part).provider == "native"
        assert ir.ops.rms_norm(x, weight, 1e-5, part).shape == x.shape


def numbers(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def normed(x: Tensor, weight: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * weight.double()


def close(got: Tensor, want: Tensor, dtype: torch.dtype) -> None:
    torch.testing.assert_close(got.double(), want, rtol=ROUNDED[dtype], atol=ROUNDED[dtype] / 100)
