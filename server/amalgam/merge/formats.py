"""Other low-rank adapters as plain factors: exact conversions to B·A, or a refusal.

AdaLoRA scales the rows of A. A Hadamard product of two low-rank matrices (LoHa) has rank r², a Kronecker product (LoKr)
the product of its parts' ranks; both are written as one pair of factors and cut later, with everything else.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from amalgam.domain.adapter import AdapterHeader, ModuleHeader
from amalgam.errors.merging import MissingInput, UnsupportedFormat

_PREFIX: Final = "base_model.model."
_ADALORA_EPSILON: Final = 1e-5
"""What PEFT adds to the number of ranks it divides by."""

Parts = Mapping[str, Tensor]
"""The tensors of one module by their own names, such as ``hada_w1_a``."""


@dataclass(frozen=True, slots=True)
class ConvertedAdapter:
    """An adapter of another kind as a source of plain factors, float32."""

    header: AdapterHeader
    digest: str
    pairs: Mapping[str, tuple[Tensor, Tensor]]

    def factors(self, module: str) -> tuple[Tensor, Tensor]:
        """(A [rank, in], B [out, rank]); MissingInput where there is no such module."""
        if module not in self.pairs:
            raise MissingInput(module)
        return self.pairs[module]


def convert(adapter: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor], digest: str) -> ConvertedAdapter:
    """Factors of an adapter that is not plain LoRA.

    Args:
        adapter: Its name, for errors.
        config: ``adapter_config.json``. tensors: Its tensors by their stored names.
        digest: Of its bytes.

    Raises:
        UnsupportedFormat: a kind that no factors express, or a tensor that the kind does not have.
    """
    kind = str(config.get("peft_type", "unknown"))[:32]
    if kind not in _KINDS:
        raise UnsupportedFormat(adapter, kind, "it is no product of low-rank factors")
    pairs, modules = {}, {}
    for module, parts in _by_module(adapter, kind, tensors).items():
        try:
            A, B, scaling = _KINDS[kind](parts, config)
        except KeyError as error:
            raise UnsupportedFormat(adapter, kind, f"{module} lacks the tensor {error}") from error
        pairs[module] = (A.contiguous(), B.contiguous())
        modules[module] = ModuleHeader(module, A.shape[0], A.shape[1], B.shape[0], scaling, "F32")
    base = config.get("base_model_name_or_path")
    size = sum(tensor.nbytes for tensor in tensors.values())
    header = AdapterHeader(modules=modules, base_model=base if isinstance(base, str) else None, weight_bytes=size)
    return ConvertedAdapter(header, digest, pairs)


def is_plain(config_text: str) -> bool:
    """Whether a config is of plain LoRA, or unreadable, which the check of plain LoRA then says."""
    try:
        config = json.loads(config_text)
    except ValueError:
        return True
    return not isinstance(config, dict) or config.get("peft_type", "LORA") == "LORA"


def _by_module(adapter: str, kind: str, tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        module, _, part = name.removeprefix(_PREFIX).removesuffix(".weight").rpartition(".")
        if part not in _PARTS[kind]:
            raise UnsupportedFormat(adapter, kind, f"the tensor {part[:64]!r} has no place in it")
        if tensor.dim() != 2:
            raise UnsupportedFormat(adapter, kind, f"{part} of {module} is no matrix, so the module is not linear")
        found.setdefault(module, {})[part] = tensor.float()
    return found


def _adalora(parts: Parts, config: Mapping[str, Any]) -> tuple[Tensor, Tensor, float]:
    """Δ = α/(ranks + 1e-5) · B·diag(E)·A."""
    ranks = int(config["init_r"])
    alpha = float(config["lora_alpha"])
    scaling = (alpha if alpha > 0 else float(ranks)) / (ranks + _ADALORA_EPSILON)
    return parts["lora_E"] * parts["lora_A"], parts["lora_B"], scaling


def _loha(parts: Parts, config: Mapping[str, Any]) -> tuple[Tensor, Tensor, float]:
    """Δ = α/r · (w1_a·w1_b) ∘ (w2_a·w2_b), the row-wise and column-wise Khatri-Rao products."""
    left, right = parts["hada_w1_a"], parts["hada_w2_a"]
    up, down = parts["hada_w1_b"], parts["hada_w2_b"]
    B = (left.unsqueeze(2) * right.unsqueeze(1)).flatten(1)
    A = (up.unsqueeze(1) * down.unsqueeze(0)).flatten(0, 1)
    return A, B, float(config["alpha"]) / left.shape[1]


def _lokr(parts: Parts, config: Mapping[str, Any]) -> tuple[Tensor, Tensor, float]:
    """Δ = α/r · w1 ⊗ w2, either of which may be given as a product."""
    first, second = _pair(parts, "lokr_w1"), _pair(parts, "lokr_w2")
    B, A = torch.kron(first[0], second[0]), torch.kron(first[1], second[1])
    return A, B, float(config["alpha"]) / int(config["r"])


def _pair(parts: Parts, name: str) -> tuple[Tensor, Tensor]:
    """A matrix as a product: its own parts, or itself beside an identity on its shorter side."""
    if name not in parts:
        return parts[f"{name}_a"], parts[f"{name}_b"]
    whole = parts[name]
    rows, columns = whole.shape
    return (torch.eye(rows), whole) if rows <= columns else (whole, torch.eye(columns))


_KINDS: Final[Mapping[str, Callable[[Parts, Mapping[str, Any]], tuple[Tensor, Tensor, float]]]] = {
    "ADALORA": _adalora,
    "LOHA": _loha,
    "LOKR": _lokr,
}

_PARTS: Final[Mapping[str, frozenset[str]]] = {
    "ADALORA": frozenset({"lora_A", "lora_B", "lora_E"}),
    "LOHA": frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}),
    "LOKR": frozenset({"lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b"}),
}
