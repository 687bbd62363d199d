"""The Triton kernels compiled for GPUs that are not here: what the interpreter cannot tell.

A threshold is found by one kernel and compared by another, with values that both compute. They have to multiply by the
same instruction, or a bit may differ.
"""

import importlib.util
import re
from typing import Any

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed"),
]

CAPABILITIES = (80, 89, 90, 100, 120)

FEW_BYTES = 16
"""Spilled by a thread, they cost nothing beside its thousand instructions."""


def products(kernel: Any) -> set[str]:
    """The instructions that multiply matrices."""
    return set(re.findall(r"\b(?:mma|wgmma|tcgen05)\.\S+", kernel.asm["ptx"]))


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_kernels_multiply_alike_and_keep_to_registers(capability: int) -> None:
    from loadtests import gpu_instructions as code

    kernels = [
        code.compiled(kernel, constants, types, capability) for _, kernel, constants, types in code.cases("*bf16")[:3]
    ]
    assert products(kernels[0]), "no tensor cores"
    assert all(products(kernel) == products(kernels[0]) for kernel in kernels)
    for kernel in kernels:
        assert code.code_of("", kernel).spilled_bytes <= FEW_BYTES


def test_factors_that_are_not_bfloat16_are_multiplied_in_float32() -> None:
    from loadtests import gpu_instructions as code

    for name, kernel, constants, types in code.cases("*fp32"):
        made = code.compiled(kernel, constants, types)
        assert not products(made), name
        assert "tf32" not in made.asm["ptx"], name


@pytest.mark.parametrize("ones", [("rank",), ("M", "begin"), ("K", "rank")])
def test_sizes_of_one_compile(ones: tuple[str, ...]) -> None:
    """Triton takes an argument that is 1 for a constant, which has not all that a number has."""
    from loadtests import gpu_instructions as code

    for name, kernel, constants, types in code.cases("*bf16"):
        some = {one: 1 for one in ones if one in kernel.arg_names}
        assert code.compiled(kernel, {**constants, **some}, types).asm["cubin"], name


@pytest.mark.parametrize("rows", [16, 64, 128])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_the_eigensolver_compiles(capability: int, axis: int, rows: int) -> None:
    from amalgam.kernels.triton_eigen import jacobi_kernel
    from loadtests import gpu_instructions as code

    types = {**dict.fromkeys(("G", "X", "lengths", "scratch"), "*fp64"), "N": "i32", "nothing": "i32", "sweeps": "i32"}
    kernel = code.compiled(jacobi_kernel, {"NP": rows, "AXIS": axis}, {**types, "tolerance": "fp64"}, capability)
    assert kernel.asm["cubin"]
