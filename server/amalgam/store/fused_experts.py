"""Adapters of experts in one parameter, as PEFT writes them (``target_parameters``), as pairs expert by expert.

transformers keeps the experts of a layer in two parameters, ``gate_up_proj`` and ``down_proj`` of [experts, out, in].
PEFT adapts each with one pair: ``lora_A`` [experts·rank, in], an expert's rows together, and ``lora_B``
[out, rank·experts], an expert's columns ``experts`` apart. The parameters of one module are wrapped one in another, the
first one innermost: its factors are named ``experts.base_layer.lora_A``, those of the last one ``experts.lora_A``. Here
each expert's matrix is a module of its own, as in checkpoints: what is judged, merged, exported and served are pairs.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, count
from typing import Any, Final

from amalgam.domain.adapter import BaseModelSpec
from amalgam.errors.findings import Finding
from amalgam.store.file_rules import shown
from amalgam.store.peft_config import LoraRules, read_rules
from amalgam.store.peft_tensors import FACTORS
from amalgam.store.safetensors_header import TensorSpan
from amalgam.store.stored_tensors import StoredTensors
from amalgam.store.tensor_names import PREFIX
from amalgam.store.tensor_scan import ROUNDED_DTYPE, SCANNED_DTYPES

FIELD: Final = "target_parameters"
_FACTOR: Final = re.compile(r"(?P<module>.+?)(?P<depth>(?:\.base_layer)*)\.(?P<factor>lora_[AB])\.weight")
_WHOLE: Final = "weight"
"""It is the parameter of a linear module: its factors are those of the module."""
_MATRICES: Final[Mapping[str, tuple[tuple[str, ...], ...]]] = {
    "gate_up_proj": (("gate_proj", "up_proj"), ("w1", "w3"), ("gate_up_proj",)),
    "up_proj": (("up_proj",),),
    "down_proj": (("down_proj",), ("w2",)),
}
"""It maps a parameter to the matrices of an expert that lie in it, one below the other, by what checkpoints call them;
they are in the order in which transformers' classes have the parameters."""


@dataclass(frozen=True, slots=True)
class Cut:
    """One factor of one expert's matrix, and where in a factor of all experts it lies.

    Attributes:
        span: of the factor of all experts.
        expert: which one.
        experts: how many there are.
        by_columns: an expert's entries are columns ``experts`` apart; else rows that lie together.
        part: from which to which row of the expert's factor, or column where it is turned.
        is_turned: the expert's factor is the transpose of what is read.
    """

    span: TensorSpan
    expert: int
    experts: int
    by_columns: bool = False
    part: tuple[int, int] | None = None
    is_turned: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the factor."""
        rows, columns = self.span.shape
        rows, columns = (rows, columns // self.experts) if self.by_columns else (rows // self.experts, columns)
        if self.is_turned:
            rows, columns = columns, rows
        return (rows if self.part is None else self.part[1] - self.part[0], columns)


@dataclass(frozen=True, slots=True)
class Separated:
    """An adapter without parameters of several experts.

    Attributes:
        factors: ``lora_A`` and ``lora_B`` of every expert's matrix by canonical module name, a parameter's together.
        kept: all other tensors, by canonical name.
        config: ``adapter_config.json`` for them.
    """

    factors: Mapping[str, tuple[Cut, Cut]]
    kept: Mapping[str, TensorSpan]
    config: Mapping[str, Any]


@dataclass(slots=True)
class _Found:
    """What was collected so far."""

    factors: dict[str, tuple[Cut, Cut]] = field(default_factory=dict)
    kept: dict[str, TensorSpan] = field(default_factory=dict)
    rules: dict[str, tuple[int, float]] = field(default_factory=dict)
    """It has rank and alpha, by module."""
    findings: list[Finding] = field(default_factory=list)


def names_parameters(config: Mapping[str, Any]) -> bool:
    """Whether the adapter adapts parameters by their names."""
    return bool(config.get(FIELD))


def separate(
    config: Mapping[str, Any], stored: StoredTensors, base: BaseModelSpec | None
) -> Separated | tuple[Finding, ...]:
    """The adapter as pairs by module, or why it cannot be one.

    Args:
        config: As written; it names parameters.
        stored: Its tensors, by canonical names.
        base: Says how many experts there are and what their matrices are called; None where it is not at hand.
    """
    targets = config.get(FIELD)
    if not isinstance(targets, list) or not all(isinstance(name, str) for name in targets):
        return (_not_read("its target_parameters are no list of names. Save the adapter again with PEFT"),)
    if base is None:
        step = "which are known by the base model alone. Offline, name it with --base"
        return (_not_read(f"it adapts parameters of several experts (target_parameters), {step}"),)
    rules, findings = read_rules({**config, FIELD: None})
    if rules is None:
        return tuple(findings)
    found = _Found()
    for module, levels in _by_module(stored).items():
        _take(found, module, levels, (targets, rules, base, _spelled(stored, module, levels)))
    if found.findings:
        return tuple(found.findings)
    found.kept |= {name: span for name, span in stored.spans.items() if _factor(name) is None}
    return Separated(found.factors, found.kept, {**config, **_rewritten(found.rules)})


_Levels = dict[int, dict[str, TensorSpan]]
"""By how deep a factor lies below ``base_layer``, it maps a factor to where it lies."""


def _factor(name: str) -> re.Match[str] | None:
    return _FACTOR.fullmatch(name.removeprefix(PREFIX))


def _by_module(stored: StoredTensors) -> dict[str, _Levels]:
    found: dict[str, _Levels] = defaultdict(lambda: defaultdict(dict))
    for name, span in stored.spans.items():
        parts = _factor(name)
        if parts is not None:
            depth = parts["depth"].count(".base_layer")
            found[parts["module"]][depth][parts["factor"]] = span
    return found


def _spelled(stored: StoredTensors, module: str, levels: _Levels) -> str:
    """The module as the adapter's own config names it."""
    depth, factors = next(iter(levels.items()))
    end = f"{'.base_layer' * depth}.{next(iter(factors))}.weight"
    name = f"{PREFIX}{module}{end}"
    return stored.spelled.get(name, name).removeprefix(PREFIX).removesuffix(end)


def _take(
    found: _Found, module: str, levels: _Levels, known: tuple[Sequence[str], LoraRules, BaseModelSpec, str]
) -> None:
    """Add the pairs of ``module``, or what is wrong with them."""
    targets, rules, base, spelled = known
    parameters = tuple(_MATRICES) if _holds_experts(module, base) else (_WHOLE,)
    named = [name for name in parameters if _is_named(f"{spelled}.{name}", targets)]
    if len(levels) == 1 and 0 in levels and named in ([], [_WHOLE]):
        ruled = f"{spelled}.{_WHOLE}" if named else spelled
        found.kept |= {f"{PREFIX}{module}.{factor}.weight": span for factor, span in levels[0].items()}
        found.rules[module] = (rules.rank_of(ruled), rules.alpha_of(ruled))
        return
    if sorted(levels) != list(range(len(named))) or named == [_WHOLE]:
        what = f"{shown(module)} has factors of {len(levels)} parameters, and target_parameters name {len(named)} of it"
        found.findings.append(_not_read(f"{what} that are known here", module))
        return
    # The first parameter lies innermost.
    for name, depth in zip(named, reversed(range(len(named))), strict=True):
        ruled = f"{spelled}.{name}"
        rank = rules.rank_of(ruled)
        pairs = _expert_pairs(module, name, levels[depth], rank, base)
        if isinstance(pairs, Finding):
            found.findings.append(pairs)
            return
        found.factors |= pairs
        found.rules |= dict.fromkeys(pairs, (rank, rules.alpha_of(ruled)))


def _holds_experts(module: str, base: BaseModelSpec) -> bool:
    """Whether it has parameters of several experts: a target may be no more than the end of a parameter's name."""
    if module.rpartition(".")[2] == "experts":
        return True
    return any(f"{module}.0.{names[0]}" in base.linear_shapes for known in _MATRICES.values() for names in known)


def _is_named(parameter: str, targets: Sequence[str]) -> bool:
    return any(parameter == target or parameter.endswith(f".{target}") for target in targets)


def _expert_pairs(
    module: str, parameter: str, pair: Mapping[str, TensorSpan], rank: int, base: BaseModelSpec
) -> dict[str, tuple[Cut, Cut]] | Finding:
    """The pairs of every matrix of every expert that lies in ``parameter`` of ``module``."""
    shapes = base.linear_shapes
    known = next((names for names in _MATRICES[parameter] if f"{module}.0.{names[0]}" in shapes), None)
    if known is None:
        return _not_read(f"{base.served_name} has no experts in {shown(module)} whose matrices are known", module)
    experts = next(number for number in count() if f"{module}.{number}.{known[0]}" not in shapes)
    sizes = [shapes[f"{module}.0.{name}"] for name in known]
    rows, columns = sum(out for out, _ in sizes), sizes[0][1]
    missing = [factor for factor in FACTORS if factor not in pair]
    if missing:
        return _finding("incomplete_pair", f"{parameter} of {shown(module)} has no {missing[0]}", module)
    down, up = pair["lora_A"], pair["lora_B"]
    if unknown := {down.dtype, up.dtype} - (SCANNED_DTYPES - {ROUNDED_DTYPE}):
        what = f"{parameter} of {shown(module)} is stored as {min(unknown)}; BF16, F16 and F32 are served"
        return _finding("unsupported_dtype", what, module)
    stacked = rank * experts
    is_turned = (rows, columns) != (columns, rows) and (down.shape, up.shape) == ((stacked, rows), (columns, stacked))
    if not is_turned and (down.shape, up.shape) != ((stacked, columns), (rows, stacked)):
        what = f"{parameter} of {shown(module)} has lora_A {list(down.shape)} and lora_B {list(up.shape)}, but "
        what += (
            f"{experts} experts of [{rows}, {columns}] at rank {rank} make {[stacked, columns]} and {[rows, stacked]}"
        )
        return _finding("shape_mismatch", what, module)
    ends = list(accumulate(out for out, _ in sizes))
    parts = list(zip(known, [0, *ends[:-1]], ends, strict=True))
    return {
        f"{module}.{number}.{name}": _cuts(down, up, (number, experts), part=(begin, end), is_turned=is_turned)
        for number in range(experts)
        for name, begin, end in parts
    }


def _cuts(
    down: TensorSpan, up: TensorSpan, which: tuple[int, int], *, part: tuple[int, int], is_turned: bool
) -> tuple[Cut, Cut]:
    """``lora_A`` and ``lora_B`` of an expert's matrix.

    PEFT before 0.18 took a parameter of [experts, out, in] for one of [experts, in, out]. What it wrote is A [·, out]
    and B [in, ·], with Δ = (B·A)ᵀ = Aᵀ·Bᵀ, so that the factors change places.
    """
    if is_turned:
        return Cut(up, *which, by_columns=True, is_turned=True), Cut(down, *which, part=part, is_turned=True)
    return Cut(down, *which), Cut(up, *which, by_columns=True, part=part)


def _rewritten(rules: Mapping[str, tuple[int, float]]) -> dict[str, Any]:
    """The fields of the config that name parameters, by modules; as short as it goes, because experts are many."""
    common = max(set(rules.values()), key=lambda one: (list(rules.values()).count(one), one))
    by_end: dict[str, set[tuple[int, float]]] = defaultdict(set)
    for module, rule in rules.items():
        by_end[module.rpartition(".")[2]].add(rule)
    exceptions = dict(_exceptions(rules, by_end, common))
    return {
        FIELD: None,
        "target_modules": sorted(by_end),
        "r": common[0],
        "lora_alpha": common[1],
        "rank_pattern": {name: rank for name, (rank, _) in exceptions.items() if rank != common[0]},
        "alpha_pattern": {name: alpha for name, (_, alpha) in exceptions.items() if alpha != common[1]},
    }


def _exceptions(
    rules: Mapping[str, tuple[int, float]],
    by_end: Mapping[str, set[tuple[int, float]]],
    common: tuple[int, float],
) -> Iterator[tuple[str, tuple[int, float]]]:
    """Names of modules, or what they end in where that says it of all of them."""
    for end, found in by_end.items():
        if len(found) == 1:
            yield end, next(iter(found))
    for module, rule in rules.items():
        if len(by_end[module.rpartition(".")[2]]) > 1 and rule != common:
            yield module, rule


def _not_read(what: str, module: str | None = None) -> Finding:
    return _finding("unsupported_modules", f"The adapter cannot be read: {what}", module)


def _finding(code: str, what: str, module: str | None) -> Finding:
    return Finding(code=code, message=f"{what}.", module=module)
