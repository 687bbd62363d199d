"""Every two properties of a recipe together: a finite adapter as it was asked for, or a refusal with a code.

Inputs, weights and parameters lie at their edges: nothing, copies, opposites, disjoint modules, sizes that floating
point barely tells.
"""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from amalgam.errors import AmalgamError
from amalgam.merge.build import BuildOptions, build_adapter
from amalgam.merge.methods import METHODS
from tests.merge_factory import SHAPES, MemoryAdapter, make_adapter, make_recipe
from tests.support.covering import covering

MAX_RANK: Final = 64
Weights = Mapping[str, Any]


class MemorySink:
    """Keeps what it is given."""

    tensors: Mapping[str, tuple[Tensor, Tensor]]
    config: Mapping[str, Any]

    def write(
        self, tensors: Mapping[str, tuple[Tensor, Tensor]], config: Mapping[str, Any], lineage: Mapping[str, Any]
    ) -> None:
        self.tensors, self.config = tensors, config


def zeroed(adapter: MemoryAdapter, digest: str) -> MemoryAdapter:
    nothing = {name: (a, torch.zeros_like(b)) for name, (a, b) in adapter.tensors.items()}
    return replace(adapter, tensors=nothing, digest=digest * 64)


ONE: Final = make_adapter(1)
OPPOSITE: Final = replace(ONE, scaling={name: -scale for name, scale in ONE.scaling.items()}, digest="7" * 64)
INPUTS: Final[Mapping[str, tuple[MemoryAdapter, ...]]] = {
    "two": (ONE, make_adapter(2)),
    "three": (ONE, make_adapter(2, rank=7, rslora=True), make_adapter(3, dtype=torch.bfloat16)),
    "one": (ONE,),
    "one is nothing": (ONE, zeroed(ONE, "9")),
    "all are nothing": (zeroed(ONE, "9"), zeroed(ONE, "8")),
    "copies": (ONE, replace(ONE.regauged(3), digest="8" * 64)),
    "opposites": (ONE, OPPOSITE),
    "partly together": (make_adapter(1, drop=["lm_head"]), make_adapter(2, drop=["model.layers.0.mlp.up_proj"])),
    "disjoint": (make_adapter(1, drop=list(SHAPES)[:2]), make_adapter(2, drop=list(SHAPES)[2:])),
    "one is tiny": (make_adapter(1, size=1e-18), make_adapter(2)),
    "one is large": (make_adapter(1, size=1e6), make_adapter(2, dtype=torch.float16)),
    "unequal ranks": (make_adapter(1, rank=1), make_adapter(2, rank=20)),
}
NAMES: Final = ("a", "b", "c")
WEIGHTS: Final[Mapping[str, Sequence[Any]]] = {
    "ones": (1.0, 1.0, 1.0),
    "one negative": (-1.0, 0.5, 0.5),
    "zeros": (0.0, 0.0, 0.0),
    "their sum is zero": (-1.0, 1.0, 0.0),
    "over depth": ([1.0, 0.0], [0.0, 1.0], 1.0),
    "by filters": (1.0, [{"value": 1.0, "filter": "q_proj"}, {"value": 0.5}], 1.0),
    "a filter for nothing": ([{"value": 1.0, "filter": "nothing"}], 1.0, 1.0),
    "tiny": (1e-30, 1e-30, 1e-30),
    "large": (50.0, 50.0, 50.0),
}
PARAMETERS: Final[Mapping[str, Sequence[Any]]] = {
    "density": (None, 0.01, 1.0),
    "lambda": (None, -1.0, 0.0, 100.0),
    "election": (None, "total", "frequency"),
    "scope": (None, "tensor", "global"),
    "trim_after": (None, True),
    "trim_density": (None, 0.01, 1.0),
    "epsilon": (None, 0.0, 0.5),
    "gamma": (None, 0.0, 0.9),
    "t": (None, 0.0, 0.5, 1.0),
    "iterations": (None, 1, 1000),
    "tolerance": (None, 1e-12, 0.9),
}
STEPS: Final[Mapping[str, Sequence[Any]]] = {
    "inputs": tuple(INPUTS),
    "weights": tuple(WEIGHTS),
    "rank": ("auto", 1, MAX_RANK, {"energy": 0.5}),
    "dtype": ("float32", "bfloat16", "float16"),
    "uniform_rank": (False, True),
    "norm_balance": (False, True),
    "calibrate": (None, "pico"),
    "orthogonalize_against": ((), ("old",), ("a",)),
    "orthogonalize_rows": (False, True),
    "min_energy": (None, 0.99),
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Matrices as small as these are not worth a second one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def built(method: str, row: Mapping[str, Any], parameters: Mapping[str, Any]) -> MemorySink:
    sources = dict(zip(NAMES, INPUTS[row["inputs"]], strict=False)) | {"old": make_adapter(5)}
    weights: Weights = {name: WEIGHTS[row["weights"]][i] for i, name in enumerate(NAMES) if name in sources}
    rest = {name: value for name, value in row.items() if name in STEPS and name not in ("inputs", "weights")}
    recipe = make_recipe(method, weights, space=row["space"], parameters=parameters, **rest)
    sink = MemorySink()
    build_adapter(recipe, {name: sources[name] for name in recipe.adapters}, sink, BuildOptions(max_rank=MAX_RANK))
    return sink


@pytest.mark.parametrize("method", METHODS)
def test_pairs_are_built_or_refused_with_a_code(method: str) -> None:
    spec = METHODS[method]
    names = [field.alias or name for name, field in spec.parameters.model_fields.items()]
    table = {**STEPS, "space": (None, *spec.spaces), **{name: PARAMETERS[name] for name in names}}
    done, faults = 0, []
    for row in covering(table, random.Random(3)):
        parameters = {name: row[name] for name in names if row[name] is not None}
        try:
            sink = built(method, row, parameters)
        except AmalgamError as error:
            faults += [(row, error)] if error.status >= 500 else []
            continue
        except ValidationError:
            # Of parameters that exclude each other; the API tells it as any other wrong value.
            continue
        done += 1
        ranks = {a.shape[0] for a, _ in sink.tensors.values()}
        assert max(ranks) <= MAX_RANK, row
        assert len(ranks) == 1 or not row["uniform_rank"], row
        sizes = [float(b.double().norm() * a.double().norm()) for a, b in sink.tensors.values()]
        assert all(map(math.isfinite, sizes)), row
    assert not faults
    assert done


def test_what_is_left_of_a_copy_that_was_cleared_away_is_nothing() -> None:
    """Rounding, brought to the mean norm of the inputs, would be noise as large as an adapter."""
    copy = replace(ONE.regauged(4), digest="6" * 64)
    sources = {"a": ONE, "b": make_adapter(2), "copy": copy}
    recipe = make_recipe(
        "task_arithmetic", {"a": 1.0, "b": 1.0}, orthogonalize_against=("copy",), norm_balance=True, space="concat"
    )
    sink = MemorySink()
    build_adapter(recipe, sources, sink, BuildOptions(max_rank=MAX_RANK))
    for name, (a, b) in sink.tensors.items():
        merged = b.double() @ a.double()
        left, _, _ = torch.linalg.svd(copy.delta(name), full_matrices=False)
        kept = sources["b"].delta(name)
        kept = kept - left[:, :4] @ (left[:, :4].mT @ kept)
        # All that is there is the other input's, as a direction.
        cosine = float((merged * kept).sum() / (merged.norm() * kept.norm()))
        assert cosine > 1 - 1e-6, name
