"""The GPU part of the merge benchmark: each measurement beside its floor, correctness checked in the same run.

Floors are arithmetic for one H200 (4.3 TB/s, 790 TFLOP/s bf16), four inputs of rank 16, output rank 16.
"""

import statistics
import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from amalgam.domain.adapter import AdapterHeader, ModuleHeader
from amalgam.domain.recipe import Recipe
from amalgam.merge.lowrank import Factors
from amalgam.merge.plan import MergePlan, plan
from amalgam.merge.run import RunOptions, stacks
from amalgam.merge.spaces import Circumstances, merge_stack, tile_backend
from merge_sides import LAYERS, module_shapes

RANK, COUNT = 16, 4
WORKSPACE = 16 << 30
TIES = {"method": "ties", "parameters": {"density": 0.2}}
FLOORS_S = {
    "llama-3-8b": {"cat": 0.16e-3, "linear": 0.42e-3, "core": 0.6e-3, "delta": 35e-3},
    "llama-3-70b": {"cat": 0.77e-3, "linear": 2.0e-3, "core": 2.4e-3, "delta": 339e-3},
}
RECIPES: dict[str, dict[str, Any]] = {
    "cat": {"method": "cat"},
    "linear": {"method": "svd", "output": {"rank": RANK}},
    "core": {**TIES, "space": "core"},
    "delta": {**TIES, "space": "delta", "output": {"rank": RANK}},
}
CHECK = 1e-3
"""Of one module's merged matrix, relative: float32 sums in another order decide some entries otherwise."""


class DeviceAdapter:
    """Random bf16 factors, already on the device."""

    def __init__(self, model: str, seed: int, device: str) -> None:
        generator = torch.Generator(device).manual_seed(seed)
        self.tensors, modules = {}, {}
        for name, (rows, columns) in module_shapes(model, LAYERS[model]).items():
            a = torch.randn(RANK, columns, generator=generator, device=device) / columns**0.5
            b = torch.randn(rows, RANK, generator=generator, device=device) * 0.02
            self.tensors[name] = (a.bfloat16(), b.bfloat16())
            modules[name] = ModuleHeader(name, RANK, columns, rows, 2.0, "BF16")
        self.header = AdapterHeader(modules=modules, base_model="base", weight_bytes=0)
        self.digest = f"{seed:064x}"

    def factors(self, module: str) -> tuple[Tensor, Tensor]:
        """(A, B)."""
        return self.tensors[module]


def measure(device: str, rounds: int) -> dict[str, Any]:
    """Rows for every model and method: seconds from factors on the device to factors on the device."""
    rows = []
    for model, floors in FLOORS_S.items():
        sources = {str(i): DeviceAdapter(model, i, device) for i in range(COUNT)}
        for name, fields in RECIPES.items():
            inputs = [{"adapter": key, "weight": 1.0} for key in sources]
            recipe = Recipe.model_validate({**fields, "inputs": inputs})
            layout = plan(recipe, {key: source.header for key, source in sources.items()}, max_rank=64)
            _once(layout, sources, device)
            torch.cuda.reset_peak_memory_stats(device)
            held = torch.cuda.memory_allocated(device)
            times = [_once(layout, sources, device) for _ in range(rounds)]
            row: dict[str, Any] = {"model": model, "merge": name, "seconds": statistics.median(times), "runs": times}
            row |= {"floor_s": floors[name], "times_floor": row["seconds"] / floors[name]}
            row |= {"peak_bytes": torch.cuda.max_memory_allocated(device) - held, **_check(layout, sources, device)}
            rows.append(row)
            print(row, flush=True)
    return {"rounds": rounds, "gpu": torch.cuda.get_device_name(device), "rows": rows}


def on_gpu_markdown(result: dict[str, Any]) -> str:
    """The report as a page."""
    about = result["about"]
    lines = [
        f"# Merging on a GPU: {result['gpu']}",
        "",
        f"{about['date']}, Python {about['python']}, torch {about['versions']['torch']}; four synthetic adapters of",
        f"rank {RANK}, bfloat16, on the device; merged factors left there. Medians of {result['rounds']} runs",
        "(fastest-slowest) by the clock. Floors are arithmetic for an H200. Each first module was compared with the",
        "processor's answer; 0 says that it is the same to the last bit.",
        *(["", result["note"]] if "note" in result else []),
        "",
        "| model | merge | ms | floor, ms | times the floor | peak beside the inputs, GB | relative error |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        runs = [f"{1e3 * run:.1f}" for run in (min(row["runs"]), max(row["runs"]))]
        lines.append(
            f"| {row['model']} | {row['merge']} | {1e3 * row['seconds']:.1f} ({'-'.join(runs)}) "
            f"| {1e3 * row['floor_s']:.2f} | {row['times_floor']:.1f} | {row['peak_bytes'] / 1e9:.1f} "
            f"| {row['error']:.1e} |"
        )
    return "\n".join(lines) + "\n"


def _around(layout: MergePlan, device: str) -> Circumstances:
    on = torch.device(device)
    return Circumstances(layout, tuple(range(COUNT)), on, tile_backend(layout, "auto", on), WORKSPACE, spectrum=False)


def _once(layout: MergePlan, sources: dict[str, DeviceAdapter], device: str) -> float:
    around = _around(layout, device)
    torch.cuda.synchronize(device)
    began = time.perf_counter()
    for stack in stacks(layout, sources, RunOptions(device=device, max_workspace_bytes=WORKSPACE), None):
        merge_stack(stack, around)
    torch.cuda.synchronize(device)
    return time.perf_counter() - began


def _check(layout: MergePlan, sources: dict[str, DeviceAdapter], device: str) -> dict[str, float]:
    """The first module against the processor's answer, and the energy it keeps."""

    def merged(on: str) -> Factors:
        stack = next(stacks(layout, sources, RunOptions(device=on, max_workspace_bytes=WORKSPACE), None))
        first = {name: getattr(stack, name)[:1] for name in ("modules", "B", "A", "scaling", "weights")}
        return merge_stack(replace(stack, **first), _around(layout, on))

    found, expected = merged(device), merged("cpu")
    one = found.B[0].double().cpu() @ found.A[0].double().cpu()
    other = expected.B[0].double() @ expected.A[0].double()
    error = float((one - other).norm() / other.norm())
    assert error < CHECK, f"{layout.spec.name} differs from the processor's by {error:.2e}"
    kept = float(found.kept[0] / found.total[0]) if found.total[0] > 0 else 1.0
    return {"error": error, "energy_kept": kept}
