"""Reads ``adapter_config.json``: the rank and scale of every module, and what of PEFT cannot be served."""

import dataclasses
import json
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from amalgam.domain.name_patterns import NamePatterns
from amalgam.errors.findings import Finding
from amalgam.errors.internal import PatternRefused
from amalgam.store.file_rules import CONFIG_FILE, MAX_TEXT_BYTES, names_in, no_config, unsafe
from amalgam.store.mistaken_files import BEGINNING_BYTES, mistaken

_PLAIN_INITS: Final = frozenset({"gaussian", "eva", "orthogonal", "mica"})
"""Initialisations of these names leave the base weights as they are; the others subtract the start from them."""

_TASK: Final = re.compile(r"[A-Z][A-Z0-9_]{0,31}")
_VARIANTS: Final = ("use_qalora", "use_bdlora", "arrow_config", "kasa_config")
_DEFAULTS: Final[Mapping[str, Any]] = {"r": 8, "lora_alpha": 8, "target_modules": None}
"""PEFT takes these where a LoRA config does not name them; vLLM takes no config without them."""
TRAINING_FIELDS: Final = ("velora_config", "monteclora_config")
"""Variants with these fields differ from plain LoRA while they train, and not any more when they answer."""


@dataclass(frozen=True, slots=True)
class LoraRules:
    """What the config says of ranks and scales, in PEFT's meaning."""

    rank: int
    alpha: float
    rslora: bool
    rank_pattern: NamePatterns[int]
    alpha_pattern: NamePatterns[float]
    base_model: str | None
    task_type: str | None = None
    spelled: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """It maps a canonical module name to the one that the patterns know, where that is another."""

    def rank_of(self, module: str) -> int:
        """Rank of the module of that name."""
        return self.rank_pattern.get(self.spelled.get(module, module), self.rank)

    def alpha_of(self, module: str) -> float:
        """``lora_alpha`` of the module of that name."""
        return self.alpha_pattern.get(self.spelled.get(module, module), self.alpha)

    def scaling_of(self, module: str) -> float:
        """True scale of B·A of that module: alpha/r, or alpha/√r with rsLoRA."""
        rank = self.rank_of(module)
        return self.alpha_of(module) / (math.sqrt(rank) if self.rslora else rank)

    @property
    def largest_rank(self) -> int:
        """The largest rank declared anywhere, used or not: the engine refuses by it."""
        return max((self.rank, *self.rank_pattern.values()))

    @property
    def pattern_entries(self) -> int:
        """The entries of both tables, used or not: the engine compares each with every module."""
        return sum(1 for table in (self.rank_pattern, self.alpha_pattern) for _ in table.values())


def load_config(folder: Path, beside: Sequence[str] = ()) -> tuple[dict[str, Any], list[Finding]]:
    """The config, and what keeps it from being read; empty where it cannot be.

    It is as it was written, in any encoding of JSON, with PEFT's own values where LoRA's fields are left away.

    Args:
        folder: Of the adapter.
        beside: Names that lay beside it where it came from and were not brought along.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        return {}, [no_config([*names_in(folder), *beside])]
    if path.stat().st_size > MAX_TEXT_BYTES:
        message = f"{CONFIG_FILE} is larger than {MAX_TEXT_BYTES} bytes. It should be a page of settings."
        return {}, [Finding(code="file_too_large", message=message)]
    raw = path.read_bytes()
    try:
        config = json.loads(raw)
    except (ValueError, RecursionError):
        instead = mistaken(raw[:BEGINNING_BYTES])
        return {}, [_invalid("is not JSON") if instead is None else _unread(instead)]
    if not isinstance(config, dict):
        return {}, [_invalid("is not a JSON object")]
    return {**_DEFAULTS, **config} if config.get("peft_type") == "LORA" else config, []


def as_engines_read(config: Mapping[str, Any], raw: bytes) -> dict[str, Any] | None:
    """The config in the words that vLLM and PEFT read, where ``raw``, as it was written, is not in them already.

    Both read UTF-8 without a mark in front. vLLM needs every field of `_DEFAULTS`, and knows one word for no biases;
    to PEFT a table is never null, and an empty list of tokens is one that was trained.
    """
    changes: dict[str, Any] = {}
    if config.get("bias", "none") != "none":
        changes["bias"] = "none"
    if config.get("lora_bias"):
        changes["lora_bias"] = False
    changes |= {name: {} for name in ("rank_pattern", "alpha_pattern") if config.get(name, {}) is None}
    if config.get("trainable_token_indices") == []:
        changes["trainable_token_indices"] = None
    is_plain = _is_plain_text(raw) and config.keys() == json.loads(raw).keys()
    return None if is_plain and not changes else {**config, **changes}


def _is_plain_text(raw: bytes) -> bool:
    try:
        return not raw.decode().startswith("\ufeff") and b"\0" not in raw
    except UnicodeDecodeError:
        return False


def read_rules(config: Mapping[str, Any], whole_copies: Collection[str] = ()) -> tuple[LoraRules | None, list[Finding]]:
    """The rules in ``config`` and everything that is wrong with it; no rules where ranks or scales are not clear.

    Args:
        config: As written.
        whole_copies: Modules whose whole weight lies in the folder and is the base model's own; what names only those
            in ``modules_to_save`` trained nothing.
    """
    malformed = [_invalid(problem) for problem in _malformed(config)]
    findings = [*malformed, *_unsupported(_without_copies(config, whole_copies))]
    if malformed:
        return None, findings
    try:
        rank_pattern = NamePatterns[int](config.get("rank_pattern") or {})
        alpha_pattern = NamePatterns[float](config.get("alpha_pattern") or {})
    except PatternRefused as refused:
        return None, [_invalid(str(refused)), *findings]
    rules = LoraRules(
        rank=config["r"],
        alpha=config["lora_alpha"],
        rslora=bool(config.get("use_rslora")),
        rank_pattern=rank_pattern,
        alpha_pattern=alpha_pattern,
        base_model=config.get("base_model_name_or_path") or None,
        task_type=task_type_of(config),
    )
    return rules, findings


def task_type_of(config: Mapping[str, Any]) -> str | None:
    """What the config says the adapter was trained for, where it is one of PEFT's names."""
    task = config.get("task_type")
    return task if isinstance(task, str) and _TASK.fullmatch(task) else None


def _without_copies(config: Mapping[str, Any], copies: Collection[str]) -> Mapping[str, Any]:
    saved = config.get("modules_to_save")
    if not copies or not isinstance(saved, list) or not _are_strings(saved):
        return config
    # An entry names a module in full, or by its end.
    left = [name for name in saved if not any(module == name or module.endswith(f".{name}") for module in copies)]
    return {**config, "modules_to_save": left}


def _malformed(config: Mapping[str, Any]) -> Iterator[str]:
    """What makes ranks, scales or the format itself unclear."""
    if config.get("peft_type") != "LORA":
        yield f"has peft_type {_brief(config.get('peft_type'))}; only 'LORA' can be served"
    if not _is_rank(config.get("r")):
        yield f"has r = {_brief(config.get('r'))}, which is not a positive integer"
    if not _is_number(config.get("lora_alpha")):
        yield f"has lora_alpha = {_brief(config.get('lora_alpha'))}, which is not a finite number"
    yield from _malformed_pattern(config, "rank_pattern", _is_rank)
    yield from _malformed_pattern(config, "alpha_pattern", _is_number)
    # The tensors say which modules are adapted; the engine still wants the field.
    targets = config.get("target_modules", 0)
    if not (targets is None or isinstance(targets, str) or _are_strings(targets)):
        yield "has no target_modules, or one that is neither a list of names nor an expression"
    if not isinstance(config.get("base_model_name_or_path") or "", str):
        yield "has a base_model_name_or_path that is not text"


def _malformed_pattern(config: Mapping[str, Any], field: str, fits: Callable[[Any], bool]) -> Iterator[str]:
    pattern = config.get(field) or {}
    if not isinstance(pattern, dict):
        yield f"has a {field} that is not a table by module name"
    elif not all(fits(value) for value in pattern.values()):
        yield f"has a {field} with a value that is no {'rank' if field == 'rank_pattern' else 'finite number'}"


def _unsupported(config: Mapping[str, Any]) -> Iterator[Finding]:
    """What PEFT can do and the engine cannot."""
    if config.get("auto_map"):
        yield unsafe(CONFIG_FILE, "names code to import (auto_map), which is never done. Remove the field")
    if config.get("use_dora"):
        yield _refused(
            "unsupported_dora",
            "use_dora",
            "Convert it offline, with 'amalgam merge build FOLDER -o OUT --base MODEL', or train without it",
        )
    for field in ("bias", "lora_bias"):
        if config.get(field) not in (None, False, "none"):
            yield _refused("unsupported_bias", field, "Train the adapter with bias='none' and lora_bias=False")
    for field in ("modules_to_save", "trainable_token_indices", "target_parameters"):
        if config.get(field):
            yield _refused("unsupported_modules", field, "Train the adapter on linear modules only")
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower() not in _PLAIN_INITS:
        yield _refused(
            "unsupported_init",
            f"init_lora_weights={_brief(init)}",
            "It changed the base weights; save with path_initial_model_for_weight_conversion to get a plain adapter, "
            "or merge it offline with the adapter as it was before training in its folder 'initial'",
        )
    if config.get("alora_invocation_tokens"):
        yield _refused("unsupported_alora", "alora_invocation_tokens", "Train a plain LoRA adapter")
    if config.get("layer_replication"):
        yield _refused("unsupported_layer_replication", "layer_replication", "Train on the base model as it is")
    for field in _VARIANTS:
        if config.get(field):
            yield _refused("unsupported_variant", field, "Train a plain LoRA adapter")


def _refused(code: str, what: str, step: str) -> Finding:
    return Finding(code=code, message=f"The adapter uses {what}, which cannot be served. {step}.")


def _invalid(problem: str) -> Finding:
    return _unread(f"{problem}. Save the adapter again with PEFT")


def _unread(sentences: str) -> Finding:
    return Finding(code="invalid_config", message=f"{CONFIG_FILE} {sentences}.")


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 64 else text[:64] + "…"


def _is_rank(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_number(value: Any) -> bool:
    # Integers beyond a float's range would overflow when the scale is computed.
    return type(value) in (int, float) and abs(value) < 1e30


def _are_strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
