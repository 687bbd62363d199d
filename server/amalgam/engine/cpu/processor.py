"""What a CPU multiplies in hardware, which decides the types that engine and LoRA compute in."""

from typing import Final, Literal

CpuUnits = Literal["detected", "bfloat16", "float32"]
OnePass = Literal["tiles", "vectors"]
_BFLOAT16_UNITS: Final = ("avx512_bf16", "amx_bf16", "bf16")
"""They are named as by torch: Intel's and AMD's vectors, Intel's tiles, Arm's."""
_VECTORS: Final = {"avx512_bf16": "avx512bf16"}
"""They are named as by torch and as by LLVM: what products in vectors of bfloat16 need."""
_TILES: Final = {"amx_tile": "amx-tile", "amx_bf16": "amx-bf16", **_VECTORS}
"""Products in tiles need these."""


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


def one_pass_units(units: CpuUnits) -> OnePass | None:
    """What this process multiplies a layer and its LoRA with in one pass; None where it has nothing for it."""
    if has_tiles(units):
        return "tiles"
    return "vectors" if has_vectors(units) else None


def has_tiles(units: CpuUnits) -> bool:
    """Whether this process may multiply bfloat16 in tiles (AMX), and code compiled here may say so.

    Args:
        units: as in `multiplies_bfloat16`; ``float32`` is a processor without, and ``bfloat16`` cannot bring them.
    """
    import torch

    # Linux gives a process tiles when it is asked.
    return units != "float32" and _has(_TILES) and bool(torch.cpu._init_amx())


def has_vectors(units: CpuUnits) -> bool:
    """Whether this processor multiplies bfloat16 in vectors (AVX-512 BF16), and code compiled here may say so.

    Args:
        units: as in `has_tiles`.
    """
    return units != "float32" and _has(_VECTORS)


def _has(names: dict[str, str]) -> bool:
    import torch
    from llvmlite import binding
    from numba.core import config

    has, compiled_for = torch.cpu.get_capabilities(), binding.get_host_cpu_features()
    # Code that is compiled for another processor has no words for what this one has.
    is_for_this = config.CPU_NAME is None
    return is_for_this and all(has.get(name) and compiled_for.get(words) for name, words in names.items())


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
