"""Judges a PEFT adapter folder: finds every reason to refuse it at once, before an engine or tensor library sees it."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from amalgam.domain.adapter import AdapterHeader, BaseModelSpec, ModuleHeader
from amalgam.domain.delta_bound import DeltaBound
from amalgam.errors.adapters import InvalidAdapter
from amalgam.errors.findings import Finding
from amalgam.store.base_copies import BaseCopies
from amalgam.store.delta_check import check_deltas
from amalgam.store.file_rules import CARD_FILE, CONFIG_FILE, LINEAGE_FILE, MAGIC_BYTES, judge_names, names_in, refusal
from amalgam.store.fused_experts import Separated, names_parameters, separate
from amalgam.store.module_names import renaming_of
from amalgam.store.named_modules import check_named
from amalgam.store.peft_config import LoraRules, load_config, read_rules
from amalgam.store.peft_tensors import FACTORS, SortedTensors, check_modules, check_rounded, sort_tensors
from amalgam.store.safetensors_header import TensorSpan
from amalgam.store.stored_tensors import StoredTensors, judge_stored
from amalgam.store.tensor_names import PREFIX
from amalgam.store.tensor_scan import SCANNED_DTYPES, TensorScan, scan_tensors

KEPT_EXPRESSIONS: Final = 500
"""Both tables of patterns of any adapter may have so many entries; with more, they have no more than its modules need.
vLLM compares every module with every entry, as an expression, of which Python keeps 512 compiled: with tens of
thousands of entries one load takes minutes, and every other load waits."""
_SHOWN_PER_CODE: Final = 8
"""A fault of one module is mostly a fault of all; a report names this many of each kind and counts the rest."""


@dataclass(frozen=True, slots=True)
class PeftFolder:
    """What an adapter folder holds and what is to be said about it."""

    header: AdapterHeader | None
    """It has its sound modules; None where config or header cannot be read. Trust it only where there are no `errors`.
    """
    findings: tuple[Finding, ...]
    """Errors are first, in the order a person would mend them."""
    config: Mapping[str, Any]
    """It is ``adapter_config.json`` as written; empty where it cannot be read."""
    stored: StoredTensors = field(default_factory=StoredTensors)
    """It has every tensor, by its canonical name."""
    factors: Mapping[str, Mapping[str, TensorSpan]] = field(default_factory=dict)
    """By module, it maps a factor to where it lies."""
    copies: tuple[str, ...] = ()
    """The base model's own weight of these modules lies there too."""
    of_training: tuple[str, ...] = ()
    """It names tensors that only training had a use for."""
    rules: LoraRules | None = None
    """They are what the config says of ranks and scales; None where that is not clear."""

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings for which the adapter is refused."""
        return tuple(finding for finding in self.findings if finding.severity == "error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """The findings that are only worth saying."""
        return tuple(finding for finding in self.findings if finding.severity == "warning")

    def require(self, also: Sequence[Finding] = ()) -> AdapterHeader:
        """The header of an adapter without errors.

        Args:
            also: Findings from elsewhere that count the same, such as those of an upload.

        Raises:
            InvalidAdapter: there are errors; it carries all of them.
        """
        errors = (*(finding for finding in also if finding.severity == "error"), *self.errors)
        if errors or self.header is None:
            raise InvalidAdapter(errors)
        return self.header


def read_peft_folder(
    folder: Path,
    base: BaseModelSpec | None,
    *,
    scan_values: bool = True,
    left_out: Sequence[str] = (),
    base_folder: Path | None = None,
) -> PeftFolder:
    """Judge the adapter in ``folder`` by its config, its safetensors headers and its values.

    Blocks while it reads the weights once; memory stays small whatever their size.

    Args:
        base: What the modules must fit; None checks the adapter by itself only.
        scan_values: Whether to look for infinities, NaN, factors that are zero, and changes that are too large.
        left_out: Names that lay beside the adapter where it came from and were not brought along.
        base_folder: Of the base model, where ``base`` does not know it, to tell copies of its weights by.

    Raises:
        OSError: the folder cannot be read.
    """
    findings = list(_check_files(folder, left_out))
    config, config_findings = load_config(folder, left_out)
    stored, header_findings = judge_stored(folder, base.rename if base is not None else renaming_of(base_folder))
    if stored is None:
        rules, refused = (None, []) if config_findings else read_rules(config)
        return PeftFolder(None, _arranged([*findings, *config_findings, *refused, *header_findings]), config)

    if not config_findings and names_parameters(config):
        findings += _of_parameters(config, stored, base)
        return PeftFolder(None, _arranged([*findings, *header_findings]), config, stored)

    known = base_folder or (base.folder if base is not None else None)
    tensors = sort_tensors(stored.spans, BaseCopies(folder, known).is_copy)
    rules = None
    if not config_findings:
        rules, config_findings = read_rules(config, frozenset(tensors.copies) - frozenset(tensors.others))
        if rules is not None and stored.spelled:
            rules = replace(rules, spelled={_module(name): _module(old) for name, old in stored.spelled.items()})
    findings += [*config_findings, *header_findings]
    modules, module_findings = check_modules(tensors, rules, base)
    findings += [*_check_rank(rules, tensors, base), *_check_patterns(rules, tensors)]
    findings += [*tensors.findings, *module_findings, *check_rounded(tensors)]
    findings += check_named(config, list(modules), {} if rules is None else rules.spelled)
    if scan_values:
        bound = DeltaBound() if base is None else base.delta_bound
        scans = _scan(folder, tensors)
        findings += _check_values(scans, tensors, rules)
        findings += check_deltas(folder, tensors, scans, rules, bound)
    elif not tensors.pairs:
        findings.append(_no_effect("it holds no factors at all"))
    if len(modules) == len(tensors.pairs):
        findings += _check_base_name(rules, base)
    header = _header(rules, modules, tensors.pairs)
    spare = tuple(tensors.copies), tuple(tensors.of_training)
    return PeftFolder(header, _arranged(findings), config, stored, tensors.pairs, *spare, rules)


def _of_parameters(config: Mapping[str, Any], stored: StoredTensors, base: BaseModelSpec | None) -> Sequence[Finding]:
    """Why an adapter that names parameters cannot be read as it is."""
    found = separate(config, stored, base)
    return read_rules(config)[1] if isinstance(found, Separated) else found


def _module(name: str) -> str:
    """The module that a factor belongs to, by the factor's whole name."""
    return name.removeprefix(PREFIX).removesuffix(".weight").rpartition(".")[0]


def _check_files(folder: Path, elsewhere: Sequence[str]) -> Iterator[Finding]:
    """What lies there, by name; and pickles under the names of texts that are stored."""
    yield from judge_names([*names_in(folder), *elsewhere])
    for name in (LINEAGE_FILE, CARD_FILE):
        path = folder / name
        if path.is_file():
            with path.open("rb") as file:
                finding = refusal(name, file.read(MAGIC_BYTES))
            if finding:
                yield finding


def _check_rank(rules: LoraRules | None, tensors: SortedTensors, base: BaseModelSpec | None) -> Iterator[Finding]:
    if base is None:
        return
    stored = [pair["lora_A"].shape[0] for pair in tensors.pairs.values() if "lora_A" in pair and pair["lora_A"].shape]
    rank = max([*stored, rules.largest_rank if rules is not None else 0])
    if rank > base.max_lora_rank:
        message = f"The adapter has rank {rank}; this server allows {base.max_lora_rank} (AMALGAM_MAX_LORA_RANK)."
        yield Finding(code="rank_too_large", message=message)


def _check_patterns(rules: LoraRules | None, tensors: SortedTensors) -> Iterator[Finding]:
    most = max(KEPT_EXPRESSIONS, 2 * len(tensors.pairs))
    if rules is not None and rules.pattern_entries > most:
        message = (
            f"{CONFIG_FILE} has {rules.pattern_entries} entries in rank_pattern and alpha_pattern; {most} are most. "
            "Name each module once, or give most of them one rank."
        )
        yield Finding(code="invalid_config", message=message)


def _scan(folder: Path, tensors: SortedTensors) -> dict[tuple[str, str], TensorScan]:
    factors = {(m, f): s for m, pair in tensors.pairs.items() for f, s in pair.items() if s.dtype in SCANNED_DTYPES}
    scans: dict[tuple[str, str], TensorScan] = {}
    for name in sorted({span.file for span in factors.values()}):
        scans |= scan_tensors(folder / name, {key: span for key, span in factors.items() if span.file == name})
    return scans


def _check_values(
    scans: Mapping[tuple[str, str], TensorScan], tensors: SortedTensors, rules: LoraRules | None
) -> Iterator[Finding]:
    """Infinities and NaN by module; and whether anything is left of the adapter when all is multiplied out."""
    effective = False
    for module, pair in tensors.pairs.items():
        found = [scans[module, factor] for factor in pair if (module, factor) in scans]
        if not all(scan.finite for scan in found):
            message = f"{module!r} holds infinities or NaN. Train the adapter again; its loss has most likely diverged."
            yield Finding(code="non_finite", message=message, module=module)
        # What cannot be scanned, or lacks a factor, has its own finding and gets the benefit of the doubt here.
        scaled = rules is None or rules.scaling_of(module) != 0
        effective |= scaled and not (len(pair) == len(FACTORS) and any(scan.zero for scan in found))
    if not tensors.pairs:
        yield _no_effect("it holds no factors at all")
    elif not effective:
        yield _no_effect("in every module a factor or the scale is zero")


def _no_effect(why: str) -> Finding:
    message = f"The adapter would change nothing: {why}. Check that it was trained and saved."
    return Finding(code="no_effect", message=message)


def _check_base_name(rules: LoraRules | None, base: BaseModelSpec | None) -> Iterator[Finding]:
    """A name is a weak sign: the shapes have been compared, so another name is only worth a warning."""
    if rules is None or base is None or rules.base_model is None:
        return
    named, served = _loose(rules.base_model), _loose(base.served_name)
    if not (named and served and (named in served or served in named)):
        message = (
            f"The adapter was trained on {rules.base_model[:128]!r} and this server serves {base.served_name!r}; "
            "the shapes agree, so check that it is the same model."
        )
        yield Finding(code="base_unverified", severity="warning", message=message)


def _loose(name: str) -> str:
    """A model's name without its folder, case and punctuation."""
    return re.sub(r"[^a-z0-9]", "", name.rstrip("/").rpartition("/")[2].lower())


def _header(
    rules: LoraRules | None, modules: dict[str, ModuleHeader], pairs: Mapping[str, Mapping[str, TensorSpan]]
) -> AdapterHeader | None:
    if rules is None:
        return None
    weight_bytes = sum(span.end - span.start for pair in pairs.values() for span in pair.values())
    return AdapterHeader(
        modules=modules, base_model=rules.base_model, weight_bytes=weight_bytes, task_type=rules.task_type
    )


def _arranged(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Errors before warnings, each kind cut to `_SHOWN_PER_CODE` and a count."""
    by_code: dict[tuple[str, str], list[Finding]] = defaultdict(list)
    for finding in findings:
        by_code[finding.severity, finding.code].append(finding)
    arranged: list[Finding] = []
    for (_, code), group in sorted(by_code.items(), key=lambda item: item[0][0]):
        arranged += group[:_SHOWN_PER_CODE]
        rest = len(group) - _SHOWN_PER_CODE
        if rest > 0:
            message = f"And {rest} more of the same kind."
            arranged.append(Finding(code=code, severity=group[0].severity, message=message))
    return tuple(arranged)
