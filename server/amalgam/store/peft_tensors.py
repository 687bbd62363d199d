"""Sorts the tensors of a PEFT file into pairs of factors by module, and says what does not belong."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from amalgam.domain.adapter import BaseModelSpec, ModuleHeader
from amalgam.errors.findings import Finding
from amalgam.store.file_rules import shown
from amalgam.store.peft_config import LoraRules
from amalgam.store.safetensors_header import TensorSpan
from amalgam.store.tensor_scan import SCANNED_DTYPES

PREFIX: Final = "base_model.model."
"""What PEFT puts before the base model's own module names."""

FACTORS: Final = ("lora_A", "lora_B")

_EMBEDDINGS: Final = frozenset({"embed_tokens", "wte", "wpe", "word_embeddings", "embed_in", "tok_embeddings"})
"""Modules that are looked up and not multiplied, by the last part of their name."""
_LONGEST_NAME: Final = 512
"""Of a module; longer ones exist in no model and would fill logs and answers."""
_COPIED_SUFFIX: Final = ".base_layer.weight"


@dataclass(slots=True)
class SortedTensors:
    """The tensors of one file by what they are."""

    pairs: dict[str, dict[str, TensorSpan]] = field(default_factory=lambda: defaultdict(dict))
    """Canonical module name -> factor -> span."""
    findings: list[Finding] = field(default_factory=list)


def sort_tensors(spans: Mapping[str, TensorSpan], base: BaseModelSpec | None) -> SortedTensors:
    """Find the factors among ``spans``; every other tensor is a finding."""
    found = SortedTensors()
    for name, span in spans.items():
        inner = name.removeprefix(PREFIX)
        module, _, factor = inner.removesuffix(".weight").rpartition(".")
        if inner.endswith(".weight") and factor in FACTORS and 0 < len(module) <= _LONGEST_NAME:
            if factor in found.pairs[module]:
                found.findings.append(
                    _finding("unknown_tensors", f"{shown(name)} names {module} a second time", module)
                )
            found.pairs[module][factor] = span
        else:
            found.findings.append(_stray(name, inner, span, base))
    return found


def _stray(name: str, inner: str, span: TensorSpan, base: BaseModelSpec | None) -> Finding:
    """What a tensor is that is no factor of a linear module."""
    if "lora_magnitude_vector" in inner:
        return _finding("unsupported_dora", f"{shown(name)} is a magnitude of DoRA, which cannot be served")
    if inner.endswith(".bias"):
        return _finding("unsupported_bias", f"{shown(name)} is a trained bias, which cannot be served")
    if "lora_embedding_" in inner:
        return _finding("unsupported_modules", f"{shown(name)} adapts an embedding, which cannot be served")
    if inner.endswith(_COPIED_SUFFIX) and _is_copy(inner.removesuffix(_COPIED_SUFFIX), span, base):
        message = f"{shown(name)} is a copy of base weights and is not used. Save with save_embedding_layers=False."
        return Finding(code="base_weights_ignored", severity="warning", message=message)
    if inner.endswith(".weight") and "lora_" not in inner:
        return _finding("unsupported_modules", f"{shown(name)} is a fully trained weight, which cannot be served")
    return _finding("unknown_tensors", f"{shown(name)} is not a factor that a LoRA adapter has")


def _is_copy(module: str, span: TensorSpan, base: BaseModelSpec | None) -> bool:
    # PEFT saves the embeddings again where they were resized; of the base model's size they are the base model's.
    last = module.rpartition(".")[2]
    if last not in ("embed_tokens", "lm_head"):
        return False
    if base is None:
        return False
    ends = ("embed_tokens", "lm_head")
    return span.shape in {shape for name, shape in base.linear_shapes.items() if name.endswith(ends)}


def check_modules(
    tensors: SortedTensors, rules: LoraRules | None, base: BaseModelSpec | None
) -> tuple[dict[str, ModuleHeader], list[Finding]]:
    """The modules whose factors fit together, the rules and the base model; and what is wrong with the others."""
    modules: dict[str, ModuleHeader] = {}
    findings: list[Finding] = []
    for module, pair in tensors.pairs.items():
        problems = list(_problems(module, pair, rules, base))
        findings += problems
        if not problems and rules is not None:
            down, up = pair["lora_A"], pair["lora_B"]
            modules[module] = ModuleHeader(
                name=module,
                rank=down.shape[0],
                in_features=down.shape[1],
                out_features=up.shape[0],
                scaling=rules.scaling_of(module),
                dtype=down.dtype,
            )
    return modules, findings


def _problems(
    module: str, pair: Mapping[str, TensorSpan], rules: LoraRules | None, base: BaseModelSpec | None
) -> Iterator[Finding]:
    if module.rpartition(".")[2] in _EMBEDDINGS:
        yield _finding("unsupported_modules", f"{shown(module)} is an embedding, which cannot be adapted here", module)
    elif base is not None and module not in base.linear_shapes:
        yield _finding("unknown_modules", f"{base.served_name} has no linear module {shown(module)}", module)
    for dtype in sorted({span.dtype for span in pair.values()} - SCANNED_DTYPES):
        yield _finding(
            "unsupported_dtype", f"{shown(module)} is stored as {dtype}; BF16, F16 and F32 are served", module
        )
    missing = [factor for factor in FACTORS if factor not in pair]
    if missing:
        yield _finding("incomplete_pair", f"{shown(module)} has no {missing[0]}", module)
        return
    down, up = pair["lora_A"], pair["lora_B"]
    if down.dtype != up.dtype:
        message = f"{shown(module)} has its factors in two types, {down.dtype} and {up.dtype}"
        yield _finding("unsupported_dtype", message, module)
    yield from _shape_problems(module, down.shape, up.shape, rules, base)


def _shape_problems(
    module: str, down: tuple[int, ...], up: tuple[int, ...], rules: LoraRules | None, base: BaseModelSpec | None
) -> Iterator[Finding]:
    """``down`` is to be [rank, in], ``up`` [out, rank], with the rank of the rules and the base model's in and out."""
    if len(down) != 2 or len(up) != 2 or down[0] != up[1] or 0 in down + up:
        yield _mismatch(module, f"lora_A {list(down)} and lora_B {list(up)}, which do not multiply")
        return
    if rules is not None and rules.rank_of(module) != down[0]:
        yield _mismatch(module, f"rank {down[0]}, but its config says {rules.rank_of(module)}")
    expected = base.linear_shapes.get(module) if base is not None else None
    if expected is not None and (up[0], down[1]) != expected:
        yield _mismatch(module, f"a delta of {[up[0], down[1]]}, but the base model's weight is {list(expected)}")


def _mismatch(module: str, what: str) -> Finding:
    return _finding("shape_mismatch", f"{shown(module)} has {what}", module)


def _finding(code: str, what: str, module: str | None = None) -> Finding:
    return Finding(code=code, message=f"{what}.", module=module)
