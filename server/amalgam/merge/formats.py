"""Other low-rank adapters as plain factors: exact conversions to B·A, or a refusal.

AdaLoRA scales the rows of A, and VeRA those of B as well. An adapter that started as a part of the base weights (PiSSA,
OLoRA, CorDA) is the difference of what it is and what it was: rank 2r. A Hadamard product of two low-rank matrices
(LoHa) has rank r², a Kronecker product (LoKr) the product of its parts' ranks. All are written as one pair of factors
and cut later, with everything else.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from amalgam.domain.adapter import AdapterHeader, ModuleHeader
from amalgam.domain.name_patterns import NamePatterns
from amalgam.errors.internal import PatternRefused
from amalgam.errors.merging import MissingInput, UnsupportedFormat

_PREFIX: Final = "base_model.model."
_ADALORA_EPSILON: Final = 1e-5
"""PEFT adds it to the number of ranks it divides by."""

Parts = Mapping[str, Tensor]
"""It has the tensors of one module by their own names, such as ``hada_w1_a``."""


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


def convert(
    adapter: str,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    digest: str,
    shapes: Mapping[str, tuple[int, int]] | None = None,
) -> ConvertedAdapter:
    """Factors of an adapter that is not plain LoRA.

    Args:
        adapter: Its name, for errors.
        config: ``adapter_config.json``. tensors: Its tensors by their stored names.
        digest: Of its bytes.
        shapes: (out, in) of the base model's linear modules, for a kind whose files do not tell.

    Raises:
        UnsupportedFormat: a kind that no factors express, or a tensor that the kind does not have.
    """
    kind = str(config.get("peft_type", "unknown"))[:32]
    if kind == "VERA":
        tensors = _without_shared(adapter, tensors, shapes)
    if kind not in _KINDS:
        raise UnsupportedFormat(adapter, kind, "it is no product of low-rank factors")
    pairs, modules = {}, {}
    for module, parts in _by_module(adapter, kind, tensors).items():
        try:
            A, B, scaling = _KINDS[kind](parts, _config_of(adapter, kind, module, config))
        except KeyError as error:
            raise UnsupportedFormat(adapter, kind, f"{module} lacks the tensor {error}") from error
        pairs[module] = (A.contiguous(), B.contiguous())
        modules[module] = ModuleHeader(module, A.shape[0], A.shape[1], B.shape[0], scaling, "F32")
    return ConvertedAdapter(header_of(modules, config, tensors), digest, pairs)


def _config_of(adapter: str, kind: str, module: str, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config with the module's own rank and alpha in place of everybody's, for kinds that have patterns."""
    if kind not in _PATTERNED:
        return config
    own: dict[str, Any] = {}
    for field, pattern in (("r", "rank_pattern"), ("alpha", "alpha_pattern")):
        try:
            own[field] = NamePatterns[Any](config.get(pattern) or {}).get(module, config[field])
        except PatternRefused as refused:
            raise UnsupportedFormat(adapter, kind, f"its config {refused}") from None
    return {**config, **own}


def subtract_initial(
    adapter: str,
    trained: tuple[AdapterHeader, Mapping[str, Any], Mapping[str, Tensor], str],
    initial: Mapping[str, Tensor],
) -> ConvertedAdapter:
    """An adapter whose start was taken out of the base weights, as factors over the base as it was.

    Δ = s·(B·A - B₀·A₀) = s·[B, -B₀]·[A; A₀]: what PEFT's own conversion writes.

    Args:
        adapter: Its name, for errors.
        trained: Header, config, tensors and digest. initial: The tensors before training.

    Raises:
        UnsupportedFormat: the start lacks a module, or has it with another shape.
    """
    header, config, tensors, digest = trained
    kind = f"LoRA with init_lora_weights={str(config.get('init_lora_weights'))[:32]!r}"
    pairs, modules = {}, {}
    for name, module in header.modules.items():
        keys = [f"{_PREFIX}{name}.{factor}.weight" for factor in ("lora_A", "lora_B")]
        if any(key not in initial or initial[key].shape != tensors[key].shape for key in keys):
            raise UnsupportedFormat(adapter, kind, f"its folder 'initial' lacks {name} in the same shape")
        (A, B), (A0, B0) = ([source[key].float() for key in keys] for source in (tensors, initial))
        pairs[name] = torch.cat([A, A0], dim=0), torch.cat([B, -B0], dim=1)
        modules[name] = ModuleHeader(name, 2 * module.rank, A.shape[1], B.shape[0], module.scaling, "F32")
    return ConvertedAdapter(header_of(modules, config, tensors), digest, pairs)


def header_of(
    modules: Mapping[str, ModuleHeader], config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> AdapterHeader:
    """The header of a converted adapter, with the base model and the size of what it was."""
    base = config.get("base_model_name_or_path")
    size = sum(tensor.nbytes for tensor in tensors.values())
    task = config.get("task_type")
    return AdapterHeader(
        modules=modules,
        base_model=base if isinstance(base, str) else None,
        weight_bytes=size,
        task_type=task if isinstance(task, str) else None,
    )


def _without_shared(
    adapter: str, tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, int]] | None
) -> dict[str, Tensor]:
    """VeRA's tensors with each module's own part of the two shared projections beside its scales, as rows."""
    shared = [tensors.get(f"base_model.{name}") for name in ("vera_A", "vera_B")]
    if shared[0] is None or shared[1] is None:
        reason = "its projections are not in its file; they were drawn by chance, so save it with save_projection=True"
        raise UnsupportedFormat(adapter, "VERA", reason)
    if shapes is None:
        raise UnsupportedFormat(
            adapter, "VERA", "its file does not tell the sizes of its modules; name --base, a model"
        )
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        stem, _, part = name.rpartition(".")
        if part in ("vera_lambda_b", "vera_lambda_d") and tensor.dim() == 1:
            module = stem.removeprefix(_PREFIX)
            out_features, in_features = shapes.get(module, (0, 0))
            if out_features == 0 or (part == "vera_lambda_b" and tensor.shape[0] != out_features):
                raise UnsupportedFormat(adapter, "VERA", f"the base model has no such module as {module}")
            found[name] = tensor.unsqueeze(0)
            found[f"{stem}.vera_A"] = shared[0][:, :in_features]
            found[f"{stem}.vera_B"] = shared[1][:out_features]
        elif stem != "base_model":
            found[name] = tensor
    return found


def is_plain(config_text: str) -> bool:
    """Whether a config is of plain LoRA, or unreadable, which the check of plain LoRA then says."""
    try:
        config = json.loads(config_text)
    except (ValueError, RecursionError):
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


def _vera(parts: Parts, config: Mapping[str, Any]) -> tuple[Tensor, Tensor, float]:
    """Δ = diag(b)·B·diag(d)·A, with A and B shared by all modules."""
    return parts["vera_lambda_d"].mT * parts["vera_A"], parts["vera_lambda_b"].mT * parts["vera_B"], 1.0


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
    "VERA": _vera,
}

_PATTERNED: Final = frozenset({"LOHA", "LOKR"})

_PARTS: Final[Mapping[str, frozenset[str]]] = {
    "ADALORA": frozenset({"lora_A", "lora_B", "lora_E"}),
    "LOHA": frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}),
    "VERA": frozenset({"vera_A", "vera_B", "vera_lambda_b", "vera_lambda_d"}),
    "LOKR": frozenset({"lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b"}),
}
