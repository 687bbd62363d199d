"""What the Triton kernels of delta space become for a GPU, without one: instructions, registers, spilled bytes.

    python loadtests/gpu_instructions.py --out loadtests/results/gpu_instructions

An entry of a merged matrix costs what its tile costs; these kernels are bound by the instructions they issue, so a
kernel with half of them is a faster one. It says nothing of waits: times are ``merge_bench.py --device cuda:0``.
"""

import argparse
import importlib.metadata
import json
import re
import subprocess
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from amalgam.kernels.triton_selection import BINS, STEPS
from amalgam.kernels.triton_tiles import BLOCK_COLUMNS, BLOCK_ROWS, count_kernel, merge_kernel, sample_kernel

WARPS = 4
ENTRIES_A_THREAD = BLOCK_ROWS * BLOCK_COLUMNS // (32 * WARPS)
H200_LANES = 132 * 128 * 1.755e9
"""Instructions of single threads that one H200 issues in a second."""

LLAMA_3_8B = 6_979_321_856
"""Entries of its 224 matrices."""

TYPES = {
    **dict.fromkeys(("lows", "highs", "weights", "out"), "*fp32"), "gate": "*u8",
    **dict.fromkeys(("spans", "shifts", "begins"), "*i32"),
    **dict.fromkeys(("ids", "keys", "tensors", "above", "counts"), "*i64"), "bound": "i64",
    **dict.fromkeys(("M", "K", "R", "begin", "rank", "first", "last"), "i32"),
    **dict.fromkeys(("inverse_density", "scale"), "fp32"),
}  # fmt: skip
MULTIPLES_OF_16 = {"M", "K", "R", "begin", "rank"}


@dataclass(frozen=True)
class Code:
    """One kernel for one GPU."""

    kernel: str
    products: str
    instructions: float
    """For each entry, of a tile; of a loop's body where there is a loop."""
    registers: int
    spilled_bytes: int


def compiled(kernel: Any, constants: dict[str, Any], types: dict[str, str], capability: int = 90) -> Any:
    """A kernel as Triton compiles it for a capability, four adapters of rank 16 and sizes that are multiples of 16."""
    names = list(kernel.arg_names)
    signature = {name: "constexpr" if name in constants else {**TYPES, **types}[name] for name in names}
    aligned = [name for name in names if signature[name][0] == "*" or name in MULTIPLES_OF_16 - constants.keys()]
    source = ASTSource(
        fn=kernel, signature=signature, constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )  # fmt: skip
    options = {"num_warps": WARPS, "enable_fp_fusion": False}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def cases(factors: str) -> list[tuple[str, Any, dict[str, Any], dict[str, str]]]:
    """Each kernel by name, with its constants and types, for an election of four trimmed inputs.

    Args:
        factors: Their type, ``*bf16`` or ``*fp32``.
    """
    is_short = factors == "*bf16"
    tile = {"RP": 16, "DROP": False, "BM": BLOCK_ROWS, "BN": BLOCK_COLUMNS}
    count = {**tile, "BF16": int(is_short), "BINS": BINS, "STEPS": STEPS}
    merge = {
        **tile, "T": 4, "BF16_INPUTS": 15 if is_short else 0, "ELECT": True, "FREQUENCY": False, "GATED": False,
        "LOW": True, "HIGH": False,
    }  # fmt: skip
    types = {"A": factors, "B": factors}
    sample_types = {**types, "out": "*fp32", "entries": "i64", "step": "i64"}
    return [
        ("count, first pass", count_kernel, {**count, "FIRST": True}, {**types, "lows": "*i32"}),
        ("count, later pass", count_kernel, {**count, "FIRST": False}, {**types, "lows": "*i32"}),
        ("merge four inputs", merge_kernel, merge, types),
        ("sample", sample_kernel, {"RP": 16, "BLOCK": 128}, sample_types),
    ]


def code_of(name: str, kernel: Any) -> Code:
    """What a compiled kernel is made of, by NVIDIA's own tools, which Triton brings."""
    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(kernel.asm["cubin"])
        listed, used = (
            subprocess.run([str(tools / tool), flag, file.name], capture_output=True, text=True, check=True).stdout
            for tool, flag in (("nvdisasm", "-c"), ("cuobjdump", "-res-usage"))
        )
    numbers = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", used)}
    products = "tensor cores" if "HMMA" in listed else "float32"
    spilled = numbers.get("STACK", 0) + numbers.get("LOCAL", 0)
    return Code(name, products, _longest_loop(listed) / ENTRIES_A_THREAD, numbers["REG"], spilled)


def _longest_loop(listed: str) -> int:
    """Instructions between the farthest jump back and its label; all of them where none jumps back."""
    labels: dict[str, int] = {}
    count = longest = 0
    for line in listed.splitlines():
        if label := re.match(r"(\.L_x_\d+):", line):
            labels[label.group(1)] = count
        if re.search(r"/\*[0-9a-f]{4,5}\*/\s+(@!?U?P\d+\s+)?(?!NOP)[A-Z]", line):
            count += 1
            jump = re.search(r"BRA.*`\((\.L_x_\d+)\)", line)
            # A jump to itself is the padding behind the end.
            if jump and labels.get(jump.group(1), count) < count - 1:
                longest = max(longest, count - labels[jump.group(1)])
    return longest or count


def rows() -> list[Code]:
    """Every kernel of a merge by ``ties`` that sees all entries, for factors that bfloat16 holds and for others."""
    return [
        code_of(name, compiled(kernel, constants, types))
        for factors in ("*bf16", "*fp32")
        for name, kernel, constants, types in cases(factors)[:3]
    ]


def markdown(found: list[Code]) -> str:
    """The rows as a page."""
    lines = [
        "# Kernels of delta space, compiled for an NVIDIA H200 (sm_90)",
        "",
        f"{time.strftime('%Y-%m-%d')}, Triton {importlib.metadata.version('triton')} with its assembler; nothing ran",
        "on a GPU. Instructions for each entry of a merged matrix (in a later pass, those for counting are skipped in",
        "most tiles); the last column is what issuing them takes for the 7.0 billion entries of Llama-3-8B, once for a",
        "merge, four times for a pass over four inputs, if no cycle is lost.",
        "",
        "| kernel | products by | instructions an entry | registers | spilled bytes | least ms for Llama-3-8B |",
        "|---|---|---|---|---|---|",
    ]
    for one in found:
        times = 1 if one.kernel.startswith("merge") else 4
        least = 1e3 * times * LLAMA_3_8B * one.instructions / H200_LANES
        cells = (one.kernel, one.products, f"{one.instructions:.1f}", one.registers, one.spilled_bytes, f"{least:.0f}")
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Compile, count, print and keep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    found = rows()
    print(page := markdown(found))
    if chosen.out is not None:
        chosen.out.with_suffix(".md").write_text(page)
        chosen.out.with_suffix(".json").write_text(json.dumps([asdict(one) for one in found], indent=1) + "\n")


if __name__ == "__main__":
    main()
