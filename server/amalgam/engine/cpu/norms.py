"""On CPU the layers between products normalise by vLLM's own compiled kernels.

vLLM's build for CPU has them, and vLLM 0.32 gives them to GPUs alone. On CPU each normalisation, of which a layer has
two, is ten calls of torch, and all of them are an eighth of a token's time. The kernels compute in float32 and round
once, but for bfloat16 in the build for AVX2, which cuts off and is left to torch. They are made known in the way that
vLLM has for it, and stand before its own in the order in which it chooses.
"""

import functools
from dataclasses import replace
from typing import Any, Final

from amalgam.engine.cpu.processor import is_avx2_build

PROVIDER: Final = "amalgam_cpu"
"""It is what ``--ir-op-priority`` calls them."""
_OPS: Final = ("rms_norm", "fused_add_rms_norm")
_LANES: Final = 8
"""A row is a multiple of so many values: the kernels refuse others."""


def making_known(original: Any) -> Any:
    """Stands in for `CpuPlatform.import_ir_kernels`, which is called before kernels are chosen."""
    function = original.__func__

    @functools.wraps(function)
    def import_kernels(platform: type[Any]) -> None:
        function(platform)
        _register()

    return classmethod(import_kernels)


def preferring(original: Any) -> Any:
    """Stands in for `CpuPlatform.get_default_ir_op_priority`; what a user asks for stays before it."""
    function = original.__func__

    @functools.wraps(function)
    def priority(platform: type[Any], vllm_config: Any) -> Any:
        order = function(platform, vllm_config)
        return replace(order, **{name: [PROVIDER, *getattr(order, name)] for name in _OPS})

    return classmethod(priority)


def _register() -> None:
    import torch
    from torch import Tensor
    from vllm import ir

    if PROVIDER in ir.ops.rms_norm.impls:
        return
    kernels = torch.ops._C

    def rms_norm(x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None) -> Tensor:
        out = torch.empty_like(x)
        kernels.rms_norm(out, x, weight, epsilon)
        return out

    def fused_add_rms_norm(
        x: Tensor, x_residual: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
    ) -> tuple[Tensor, Tensor]:
        kernels.fused_add_rms_norm(x, x_residual, weight, epsilon)
        return x, x_residual

    cuts_bfloat16 = is_avx2_build()

    def takes(x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None) -> bool:
        is_alike = weight is not None and weight.dtype == x.dtype and x.is_contiguous()
        is_alike = is_alike and not (cuts_bfloat16 and x.dtype is torch.bfloat16)
        return variance_size is None and is_alike and x.shape[-1] % _LANES == 0

    def takes_both(
        x: Tensor, x_residual: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
    ) -> bool:
        return x_residual.dtype == x.dtype and x_residual.is_contiguous() and takes(x, weight, epsilon, variance_size)

    has_them = all(hasattr(kernels, name) for name in _OPS)
    alone, added = ir.ops.rms_norm, ir.ops.fused_add_rms_norm
    alone.register_impl(PROVIDER, supported=has_them, supports_args=takes)(rms_norm)
    added.register_impl(PROVIDER, supported=has_them, supports_args=takes_both, inplace=True)(fused_add_rms_norm)
