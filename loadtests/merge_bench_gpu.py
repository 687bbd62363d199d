"""The GPU part of the merge benchmark: each measurement beside its floor, correctness checked in the same run.

Floors are arithmetic for one H200 (4.3 TB/s, 790 TFLOP/s bf16), four inputs of rank 16, output rank 16.
"""

import statistics
from typing import Any

import torch
from torch import Tensor

from amalgam.domain.adapter import AdapterHeader, ModuleHeader
from amalgam.domain.recipe import Recipe
from amalgam.merge.plan import MergePlan, plan
from amalgam.merge.run import RunOptions, stacks
from amalgam.merge.spaces import Circumstances, merge_stack, tile_backend
from merge_sides import LAYERS, module_shapes

RANK, COUNT = 16, 4
TIES = {"method": "ties", "parameters": {"density": 0.2}}
FLOORS_S = {
    "llama-3-8b": {"cat": 0.16e-3, "linear": 0.42e-3, "core": 0.6e-3, "delta": 35e-3},
    "llama-3-70b": {"cat": 0.77e-3, "linear": 2.0e-3, "core": 2.4e-3, "delta": 339e-3},
}
RECIPES = {
    "cat": {"method": "cat"},
    "linear": {"method": "svd", "output": {"rank": RANK}},
    "core": {**TIES, "space": "core"},
    "delta": {**TIES, "space": "delta", "output": {"rank": RANK}},
}
CHECK = 1e-3
"""Against the float64 answer of one module, relative: bf16 products, float32 sums."""


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
            times = [_once(layout, sources, device) for _ in range(rounds + 1)][1:]
            row = {"model": model, "merge": name, "seconds": statistics.median(times), "runs": times}
            row |= {"floor_s": floors[name], "times_floor": row["seconds"] / floors[name]}
            row |= {"peak_bytes": torch.cuda.max_memory_allocated(device), **_check(layout, sources, device)}
            rows.append(row)
            print(row, flush=True)
    return {"rounds": rounds, "gpu": torch.cuda.get_device_name(device), "rows": rows}


def _around(layout: MergePlan, device: str) -> Circumstances:
    on = torch.device(device)
    return Circumstances(layout, tuple(range(COUNT)), on, tile_backend(layout, "auto", on), 16 << 30, spectrum=False)


def _once(layout: MergePlan, sources: dict[str, DeviceAdapter], device: str) -> float:
    around = _around(layout, device)
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize(device)
    start.record()
    for stack in stacks(layout, sources, RunOptions(device=device, max_workspace_bytes=16 << 30), None):
        merge_stack(stack, around)
    end.record()
    torch.cuda.synchronize(device)
    return start.elapsed_time(end) / 1e3


def _check(layout: MergePlan, sources: dict[str, DeviceAdapter], device: str) -> dict[str, float]:
    """The first module against the processor's reference, and the energy it keeps."""
    options = RunOptions(device=device, max_workspace_bytes=16 << 30)
    stack = next(stacks(layout, sources, options, None))
    found = merge_stack(stack, _around(layout, device))
    plain = next(stacks(layout, sources, RunOptions(), None))
    expected = merge_stack(plain, _around(layout, "cpu"))
    one = found.B[0].double().cpu() @ found.A[0].double().cpu()
    other = expected.B[0].double() @ expected.A[0].double()
    error = float((one - other).norm() / other.norm())
    assert error < CHECK, f"{layout.spec.name} differs from the reference by {error:.2e}"
    kept = float(found.kept[0] / found.total[0]) if found.total[0] > 0 else 1.0
    return {"error": error, "energy_kept": kept}
