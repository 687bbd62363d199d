"""Judges a PEFT adapter folder: finds every reason to refuse it at once, before an engine or tensor library sees it."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from amalgam.domain.adapter import AdapterHeader, BaseModelSpec, ModuleHeader
from amalgam.errors.adapters import InvalidAdapter, InvalidSafetensors
from amalgam.errors.findings import Finding
from amalgam.store.file_rules import MAGIC_BYTES, WEIGHTS_FILE, looks_pickled, refusal, unsafe
from amalgam.store.peft_config import LoraRules, load_config, read_rules
from amalgam.store.peft_tensors import FACTORS, SortedTensors, check_modules, sort_tensors
from amalgam.store.safetensors_header import TensorSpan, read_header
from amalgam.store.tensor_scan import SCANNED_DTYPES, scan_tensors

_SHOWN_PER_CODE: Final = 8
"""A fault of one module is mostly a fault of all; a report names this many of each kind and counts the rest."""


@dataclass(frozen=True, slots=True)
class PeftFolder:
    """What an adapter folder holds and what is to be said about it."""

    header: AdapterHeader | None
    """Its sound modules; None where config or header cannot be read. Trust it only where there are no `errors`."""
    findings: tuple[Finding, ...]
    """Errors first, in the order a person would mend them."""
    config: Mapping[str, Any]
    """``adapter_config.json`` as written; empty where it cannot be read."""

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


def read_peft_folder(folder: Path, base: BaseModelSpec | None, *, scan_values: bool = True) -> PeftFolder:
    """Judge the adapter in ``folder`` by its config, its safetensors header and its values.

    Blocks while it reads the weights file once; memory stays small whatever its size.

    Args:
        base: What the modules must fit; None checks the adapter by itself only.
        scan_values: Whether to look for infinities, NaN and factors that are zero.

    Raises:
        OSError: the folder cannot be read.
    """
    findings = list(_check_files(folder))
    config, config_findings = load_config(folder)
    rules: LoraRules | None = None
    if not config_findings:
        rules, config_findings = read_rules(config)
    spans, header_findings = _read_spans(folder)
    findings += [*config_findings, *header_findings]
    if spans is None:
        return PeftFolder(None, _arranged(findings), config)

    tensors = sort_tensors(spans, base)
    modules, module_findings = check_modules(tensors, rules, base)
    findings += [*_check_rank(rules, tensors, base), *tensors.findings, *module_findings]
    if scan_values:
        findings += _check_values(folder / WEIGHTS_FILE, tensors, rules)
    elif not tensors.pairs:
        findings.append(_no_effect("it holds no factors at all"))
    if len(modules) == len(tensors.pairs):
        findings += _check_base_name(rules, base)
    return PeftFolder(_header(rules, modules, spans), _arranged(findings), config)


def _check_files(folder: Path) -> Iterator[Finding]:
    """Pickles and code, anywhere in the folder."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                finding = refusal(path.relative_to(folder).as_posix(), file.read(MAGIC_BYTES))
            if finding:
                yield finding
        elif path.exists() and not path.is_dir():
            yield unsafe(path.name, "is no regular file. Remove it")


def _read_spans(folder: Path) -> tuple[dict[str, TensorSpan] | None, list[Finding]]:
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        message = f"{WEIGHTS_FILE} is missing. Save the adapter with save_pretrained(safe_serialization=True)."
        return None, [Finding(code="missing_file", message=message)]
    try:
        return read_header(path), []
    except InvalidSafetensors as error:
        with path.open("rb") as file:
            if looks_pickled(file.read(MAGIC_BYTES)):
                return None, [unsafe(WEIGHTS_FILE, "is a pickle under another name. Save the adapter as safetensors")]
        return None, [Finding(code=error.code, message=error.message)]


def _check_rank(rules: LoraRules | None, tensors: SortedTensors, base: BaseModelSpec | None) -> Iterator[Finding]:
    if base is None:
        return
    stored = [pair["lora_A"].shape[0] for pair in tensors.pairs.values() if "lora_A" in pair and pair["lora_A"].shape]
    rank = max([*stored, rules.largest_rank if rules is not None else 0])
    if rank > base.max_lora_rank:
        message = f"The adapter has rank {rank}; this server allows {base.max_lora_rank} (AMALGAM_MAX_LORA_RANK)."
        yield Finding(code="rank_too_large", message=message)


def _check_values(path: Path, tensors: SortedTensors, rules: LoraRules | None) -> Iterator[Finding]:
    """Infinities and NaN by module; and whether anything is left of the adapter when all is multiplied out."""
    factors = {(m, f): s for m, pair in tensors.pairs.items() for f, s in pair.items() if s.dtype in SCANNED_DTYPES}
    scans = scan_tensors(path, factors)
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
    rules: LoraRules | None, modules: dict[str, ModuleHeader], spans: Mapping[str, TensorSpan]
) -> AdapterHeader | None:
    if rules is None:
        return None
    weight_bytes = sum(span.end - span.start for span in spans.values())
    return AdapterHeader(modules=modules, base_model=rules.base_model, weight_bytes=weight_bytes)


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
