"""Small adapters in memory, their dense deltas in float64, and merges of them: what the merge tests are built from."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from amalgam.domain.adapter import AdapterHeader, ModuleHeader
from amalgam.domain.recipe import Output, Recipe, RecipeInput
from amalgam.merge.plan import plan
from amalgam.merge.run import RunOptions, run
from amalgam.merge.sources import TensorSource

SHAPES = {
    "model.layers.0.self_attn.q_proj": (24, 20),
    "model.layers.1.self_attn.q_proj": (24, 20),
    "model.layers.0.mlp.up_proj": (31, 20),
    "lm_head": (37, 20),
}
"""Odd on purpose."""

_STORED = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


@dataclass
class MemoryAdapter:
    """A ``TensorSource`` whose factors are in memory."""

    tensors: dict[str, tuple[Tensor, Tensor]]
    scaling: dict[str, float]
    digest: str = "0" * 64
    base_model: str | None = "base"
    reads: list[str] = field(default_factory=list)

    @property
    def header(self) -> AdapterHeader:
        modules = {
            name: ModuleHeader(name, a.shape[0], a.shape[1], b.shape[0], self.scaling[name], _STORED[a.dtype])
            for name, (a, b) in self.tensors.items()
        }
        return AdapterHeader(modules=modules, base_model=self.base_model, weight_bytes=0)

    def factors(self, module: str) -> tuple[Tensor, Tensor]:
        self.reads.append(module)
        return self.tensors[module]

    def delta(self, module: str) -> Tensor:
        """Dense, float64; zero where the adapter lacks the module is the caller's business."""
        a, b = self.tensors[module]
        return self.scaling[module] * (b.double() @ a.double())

    def regauged(self, seed: int, spread: float = 1.0) -> "MemoryAdapter":
        """The same deltas split otherwise: (B·G, G⁻¹·A), factors in float32."""
        generator = torch.Generator().manual_seed(seed)
        tensors = {}
        for name, (a, b) in self.tensors.items():
            r = a.shape[0]
            mix = torch.linalg.qr(torch.randn(r, r, generator=generator, dtype=torch.float64)).Q
            gauge = mix * torch.exp(spread * torch.randn(r, generator=generator, dtype=torch.float64))
            tensors[name] = (
                torch.linalg.solve(gauge, a.double()).float(),
                (b.double() @ gauge).float(),
            )
        return replace(self, tensors=tensors, reads=[])


def make_adapter(
    seed: int,
    *,
    rank: int | Mapping[str, int] = 4,
    alpha: float = 8.0,
    rslora: bool = False,
    shapes: Mapping[str, tuple[int, int]] = SHAPES,
    dtype: torch.dtype = torch.float32,
    drop: Sequence[str] = (),
    size: float = 1.0,
) -> MemoryAdapter:
    """An adapter with a decaying spectrum; ``rank`` may differ by module, ``drop`` names modules it lacks."""
    generator = torch.Generator().manual_seed(1000 + seed)
    tensors, scaling = {}, {}
    for name, (rows, columns) in shapes.items():
        r = rank if isinstance(rank, int) else rank[name]
        decay = torch.tensor([0.7**i for i in range(r)])
        a = torch.randn(r, columns, generator=generator) / math.sqrt(columns)
        b = torch.randn(rows, r, generator=generator) * decay * size / math.sqrt(rows)
        if name not in drop:
            tensors[name] = (a.to(dtype), b.to(dtype))
            scaling[name] = alpha / math.sqrt(r) if rslora else alpha / r
    return MemoryAdapter(tensors, scaling, digest=f"{seed:064x}")


def make_recipe(method: str, weights: Mapping[str, object], **fields: object) -> Recipe:
    """A recipe with float32 output; ``rank`` and what else the output has goes there, the rest where it belongs."""
    output = {"dtype": fields.pop("dtype", "float32")}
    output |= {name: fields.pop(name) for name in ("rank", "min_energy", "uniform_rank") if name in fields}
    inputs = tuple(RecipeInput.model_validate({"adapter": n, "weight": w}) for n, w in weights.items())
    return Recipe.model_validate(
        {"method": method, "inputs": inputs, "output": Output.model_validate(output), **fields}
    )


def merge_dense(
    recipe: Recipe,
    sources: Mapping[str, TensorSource],
    *,
    max_rank: int = 64,
    options: RunOptions | None = None,
) -> dict[str, Tensor]:
    """Merge and multiply out: canonical module name -> B·A in float64."""
    layout = plan(recipe, {name: source.header for name, source in sources.items()}, max_rank=max_rank)
    merged = run(layout, sources, options or RunOptions())
    return {module.name: module.B.double() @ module.A.double() for module in merged}


def relative(found: Tensor, expected: Tensor, scale: Tensor | None = None) -> float:
    """‖found - expected‖ / ‖scale or expected‖."""
    reference = expected if scale is None else scale
    return float((found - expected).norm() / reference.norm().clamp_min(1e-300))
