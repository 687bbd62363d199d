"""What a CPU multiplies in hardware, which decides the types that engine and LoRA compute in."""

from typing import Final, Literal

CpuUnits = Literal["detected", "bfloat16", "float32"]
_BFLOAT16_UNITS: Final = ("avx512_bf16", "amx_bf16", "bf16")
"""They are named as by torch: Intel's and AMD's vectors, Intel's tiles, Arm's."""
_TILES: Final = ("amx_tile", "amx_bf16", "avx512_bf16")
"""They are named as by torch: what products in tiles need."""
_TILES_IN_CODE: Final = ("amx-tile", "amx-bf16", "avx512bf16")
"""They are the same, named as by LLVM."""


def multiplies_bfloat16(units: CpuUnits) -> bool:
    """Whether this CPU has units for bfloat16 products; without them float32 is several times faster.

    Args:
        units: ``detected`` asks the processor. The others are taken for the answer whatever it has, so that either way
            can be tested on any machine: what it lacks, libraries compute by conversion.
    """
    if units != "detected":
        return units == "bfloat16"
    import torch

    has = torch.cpu.get_capabilities()
    return any(has.get(unit) for unit in _BFLOAT16_UNITS)


def has_tiles(units: CpuUnits) -> bool:
    """Whether this process may multiply bfloat16 in tiles (AMX), and code compiled here may say so.

    Args:
        units: as in `multiplies_bfloat16`; ``float32`` is a processor without, and ``bfloat16`` cannot bring them.
    """
    import torch
    from llvmlite import binding
    from numba.core import config

    has, compiled_for = torch.cpu.get_capabilities(), binding.get_host_cpu_features()
    is_known = all(has.get(name) for name in _TILES) and all(compiled_for.get(name) for name in _TILES_IN_CODE)
    # Linux gives a process tiles when it is asked; code that is compiled for another processor has no words for them.
    return units != "float32" and is_known and config.CPU_NAME is None and bool(torch.cpu._init_amx())


def is_avx2_build() -> bool:
    """Whether vLLM's kernels on this CPU are those of its build for x86 without AVX-512.

    It has none for weights packed in words (GPTQ, AWQ), and cuts bfloat16 off where the others round.
    """
    import torch

    has = torch.cpu.get_capabilities()
    return has.get("architecture") == "x86_64" and not has.get("avx512_f")


def multiplies_words() -> bool:
    """Whether vLLM's build for this CPU multiplies weights packed in words (GPTQ, AWQ)."""
    return not is_avx2_build()
