"""Sorts the tensors of a PEFT file into pairs of factors by module, and says what does not belong."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from amalgam.domain.adapter import BaseModelSpec, ModuleHeader
from amalgam.errors.findings import Finding
from amalgam.store.file_rules import shown
from amalgam.store.peft_config import LoraRules
from amalgam.store.safetensors_header import TensorSpan
from amalgam.store.tensor_names import PREFIX
from amalgam.store.tensor_scan import ROUNDED_DTYPE, SCANNED_DTYPES

FACTORS: Final = ("lora_A", "lora_B")

_EMBEDDINGS: Final = frozenset({"embed_tokens", "wte", "wpe", "word_embeddings", "embed_in", "tok_embeddings"})
"""Modules whose names have one of these as last part are looked up and not multiplied."""
_LONGEST_NAME: Final = 512
"""It bounds the name of a module; longer ones exist in no model and would fill logs and answers."""
_COPIED_SUFFIXES: Final = (".base_layer.weight", ".modules_to_save.weight", ".weight")
"""PEFT writes a module's whole weight so beside factors, or where it was kept whole."""

_OF_TRAINING: Final = ("lora_velora_embed", "lora_monteclora_sampler")
"""Under these names VeLoRA and MonteCLoRA keep what they use while they train; trained, both are plain LoRA."""

_NOT_GATHERED: Final = (0,)
"""A parameter of ZeRO-3 has this shape while its entries are spread over processes."""

IsCopy = Callable[[str, TensorSpan], bool | None]
"""It takes a module and where a whole weight of it lies, and tells whether it equals the base model's; None where
nobody can tell."""


@dataclass(slots=True)
class SortedTensors:
    """The tensors of one file by what they are."""

    pairs: dict[str, dict[str, TensorSpan]] = field(default_factory=lambda: defaultdict(dict))
    """By canonical module name, it maps a factor to its span."""
    findings: list[Finding] = field(default_factory=list)
    copies: list[str] = field(default_factory=list)
    """The whole weight of these modules lies there too and equals the base model's, so that it can go."""
    others: list[str] = field(default_factory=list)
    """The whole weight of these modules lies there and is, for all that is known, another."""
    of_training: list[str] = field(default_factory=list)
    """It names tensors that only training had a use for, so that they can go."""


def sort_tensors(spans: Mapping[str, TensorSpan], is_copy: IsCopy) -> SortedTensors:
    """Find the factors among ``spans``, by canonical names; every other tensor is a finding."""
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
        elif not set(_OF_TRAINING).isdisjoint(inner.split(".")):
            found.of_training.append(name)
        elif (finding := _stray(name, inner)) is not None:
            found.findings.append(finding)
        else:
            _weigh(found, name, _whole_module(inner), is_copy(_whole_module(inner), span))
    if found.copies:
        found.findings.append(_copied(found.copies))
    if found.of_training:
        what = f"{len(found.of_training)} tensors, such as {shown(found.of_training[0])}, are used in training only"
        message = f"{what} and were left out."
        found.findings.append(Finding(code="training_tensors_ignored", severity="warning", message=message))
    return found


def _stray(name: str, inner: str) -> Finding | None:
    """What a tensor is that is no factor of a linear module; None where it is a whole weight."""
    if "lora_magnitude_vector" in inner:
        return _finding("unsupported_dora", f"{shown(name)} is a magnitude of DoRA, which cannot be served")
    if inner.endswith(".bias"):
        return _finding("unsupported_bias", f"{shown(name)} is a trained bias, which cannot be served")
    if "lora_embedding_" in inner:
        return _finding("unsupported_modules", f"{shown(name)} adapts an embedding, which cannot be served")
    if inner.endswith(".weight") and "lora_" not in inner and _whole_module(inner):
        return None
    return _finding("unknown_tensors", f"{shown(name)} is not a factor that a LoRA adapter has")


def _whole_module(inner: str) -> str:
    """The module that a whole weight belongs to."""
    return inner.removesuffix(next(suffix for suffix in _COPIED_SUFFIXES if inner.endswith(suffix)))


def _weigh(found: SortedTensors, name: str, module: str, same: bool | None) -> None:
    """Note a whole weight as a copy of the base model's, or refuse it."""
    if same:
        found.copies.append(module)
        return
    found.others.append(module)
    if same is None:
        what = (
            "is a whole weight, which is only left out where the base model is available and has the same. Save with "
        )
        what += "save_embedding_layers=False; offline, name the base model with --base"
    else:
        what = "is a fully trained weight and not the base model's, which cannot be served"
    found.findings.append(_finding("unsupported_modules", f"{shown(name)} {what}"))


def _copied(modules: Sequence[str]) -> Finding:
    listed = ", ".join(shown(module) for module in modules[:4]) + (" and others" if len(modules) > 4 else "")
    message = f"The base model's own weights of {listed} were stored beside the adapter and left out. "
    message += "Save with save_embedding_layers=False to leave them away."
    return Finding(code="base_weights_ignored", severity="warning", message=message)


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
                dtype=read_dtype(down.dtype, up.dtype),
            )
    return modules, findings


def read_dtype(one: str, other: str) -> str:
    """The type that a pair of factors is read in: it holds every value of both, but that float64 is rounded to float32.

    bfloat16 and float16 meet in float32.
    """
    return one if one == other and one != ROUNDED_DTYPE else "F32"


def check_rounded(tensors: SortedTensors) -> Iterator[Finding]:
    """Says once that factors are rounded, as PEFT itself rounds them when it reads such a file."""
    rounded = [module for module, pair in tensors.pairs.items() if any(s.dtype == ROUNDED_DTYPE for s in pair.values())]
    if rounded:
        message = (
            f"The factors of {len(rounded)} modules, such as {shown(rounded[0])}, are stored as {ROUNDED_DTYPE} and "
            "were rounded to F32, as PEFT does when it reads them."
        )
        yield Finding(code="values_rounded", severity="warning", message=message)


def _problems(
    module: str, pair: Mapping[str, TensorSpan], rules: LoraRules | None, base: BaseModelSpec | None
) -> Iterator[Finding]:
    if module.rpartition(".")[2] in _EMBEDDINGS:
        yield _finding("unsupported_modules", f"{shown(module)} is an embedding, which cannot be adapted here", module)
    elif base is not None and module not in base.linear_shapes and _is_output(module):
        what = f"shares its weight with the embedding of {base.served_name}, and an export has one tensor for both"
        yield _finding("unknown_modules", f"{shown(module)} {what}. Train without it", module)
    elif base is not None and module not in base.linear_shapes:
        yield _finding("unknown_modules", f"{base.served_name} has no linear module {shown(module)}", module)
    elif base is not None and not base.adapts_experts and base.routes(module):
        what = "is an expert or routes to experts, which the CPU engine cannot adapt. Train on the attention alone"
        yield _finding("unsupported_modules", f"{shown(module)} {what}, or serve it on a GPU", module)
    elif base is not None and module in base.fused:
        what = (
            "is a matrix of experts that lie in one tensor of the base model, of which adapters are merged and exported"
        )
        yield _finding("unsupported_modules", f"{shown(module)} {what} offline and not served", module)
    elif base is not None and not base.adapts_towers and base.reads_media(module):
        what = (
            "is a part of what reads pictures or sounds, which this engine does not adapt. Train on the language model"
        )
        yield _finding("unsupported_modules", f"{shown(module)} {what}", module)
    elif base is not None and module in base.untaken:
        what = "is a module that vLLM's class for this model puts no LoRA on. Train without it"
        yield _finding("unsupported_modules", f"{shown(module)} {what}", module)
    for dtype in sorted({span.dtype for span in pair.values()} - SCANNED_DTYPES):
        yield _finding(
            "unsupported_dtype",
            f"{shown(module)} is stored as {dtype}; {', '.join(sorted(SCANNED_DTYPES))} are read. Save it as one of "
            "them, with save_file({name: tensor.float() for name, tensor in tensors.items()}, path)",
            module,
        )
    missing = [factor for factor in FACTORS if factor not in pair]
    if missing:
        yield _finding("incomplete_pair", f"{shown(module)} has no {missing[0]}", module)
        return
    down, up = pair["lora_A"], pair["lora_B"]
    yield from _shape_problems(module, down.shape, up.shape, rules, base)


def _is_output(module: str) -> bool:
    """Whether a module is the output layer, by what most families call it."""
    return module.rpartition(".")[2] == "lm_head"


def _shape_problems(
    module: str, down: tuple[int, ...], up: tuple[int, ...], rules: LoraRules | None, base: BaseModelSpec | None
) -> Iterator[Finding]:
    """``down`` is to be [rank, in], ``up`` [out, rank], with the rank of the rules and the base model's in and out."""
    if _NOT_GATHERED in (down, up):
        what = f"lora_A {list(down)} and lora_B {list(up)}: empty, as DeepSpeed's ZeRO-3 leaves what it did not gather"
        step = "Save it with stage3_gather_16bit_weights_on_model_save, or gather it and use save_pretrained"
        yield _mismatch(module, f"{what}. {step}")
        return
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
