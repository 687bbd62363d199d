"""An adapter whose factors are in memory, whatever file they came from, and what its writers share."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Final

import torch
from torch import Tensor

from amalgam.domain.adapter import AdapterHeader, ModuleHeader
from amalgam.errors.merging import MissingInput, UnsupportedFormat
from amalgam.store.tensor_files import AdapterTensors

DTYPE_NAMES: Final = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}
"""Factors may have these types, by the names of safetensors."""


class LoadedTensors:
    """Factors in memory as a source of a merge, in the stored dtype."""

    def __init__(self, header: AdapterHeader, digest: str, pairs: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        self.header = header
        self.digest = digest
        self._pairs = pairs

    def factors(self, module: str) -> tuple[Tensor, Tensor]:
        """(A [rank, in], B [out, rank]) of ``module``. Raises MissingInput where there is no such module."""
        if module not in self._pairs:
            raise MissingInput(module)
        return self._pairs[module]


Readable = AdapterTensors | LoadedTensors
"""A writer takes either."""

TEXT_MODEL: Final = "CAUSAL_LM"
"""It is PEFT's word for a model that goes on with a text, which is all that mlx-lm and llama.cpp train adapters for."""


def header_of(
    pairs: Mapping[str, tuple[Tensor, Tensor]],
    scaling_of: Callable[[str], float],
    base_model: str | None = None,
    task_type: str | None = None,
) -> AdapterHeader:
    """The header of factors in memory.

    Args:
        pairs: Canonical module name -> (A [rank, in], B [out, rank]), of a type in `DTYPE_NAMES`.
        scaling_of: True scale of a module by its name.
        base_model: Name of the model they were trained on, where it is known.
        task_type: What kind of model that is, in PEFT's word, where the format is of one kind alone.
    """
    modules = {
        name: ModuleHeader(name, A.shape[0], A.shape[1], B.shape[0], scaling_of(name), DTYPE_NAMES[A.dtype])
        for name, (A, B) in pairs.items()
    }
    weight_bytes = sum(a.nbytes + b.nbytes for a, b in pairs.values())
    return AdapterHeader(modules, base_model, weight_bytes, task_type=task_type)


def written(tensors: Mapping[str, tuple[Tensor, Tensor]], base_model: str | None) -> LoadedTensors:
    """A merge's result, scale 1 everywhere, for a writer."""
    pairs = {name: (a.detach().cpu(), b.detach().cpu()) for name, (a, b) in tensors.items()}
    names = " ".join(sorted(pairs))
    return LoadedTensors(header_of(pairs, lambda _: 1.0, base_model), hashlib.sha256(names.encode()).hexdigest(), pairs)


def matched(
    adapter: str, kind: str, found: Mapping[str, Mapping[str, Tensor]], names: tuple[str, str]
) -> dict[str, tuple[Tensor, Tensor]]:
    """The two factors of every module.

    Args:
        adapter: Its name, for errors. kind: Of file, for errors.
        found: Module -> factor -> tensor. names: Of the factors A [rank, in] and B [out, rank].

    Raises:
        UnsupportedFormat: there are none, or a module has no two factors that multiply.
    """
    if not found:
        raise UnsupportedFormat(adapter, kind, "it holds no factors")
    pairs = {}
    for module, parts in found.items():
        A, B = (parts.get(name) for name in names)
        if A is None or B is None or A.dim() != 2 or B.dim() != 2 or A.shape[0] != B.shape[1] or not A.shape[0]:
            raise UnsupportedFormat(adapter, kind, f"{module[:128]} has no two factors that multiply")
        pairs[module] = A, B
    return pairs


def padded(source: Readable) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(name, A, B) of every module by name, in float32 at the largest rank, the scale in B: scale 1 everywhere.

    For readers that know one rank and one scale.
    """
    header = source.header
    for name, module in sorted(header.modules.items()):
        A, B = source.factors(name)
        more = header.rank - module.rank
        a = torch.nn.functional.pad(A.float(), (0, 0, 0, more))
        yield name, a, torch.nn.functional.pad(B.float() * module.scaling, (0, more))
