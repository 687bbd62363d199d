"""Which modules an adapter's config names, in PEFT's meaning, beside those that its file has factors of.

PEFT puts factors on the modules that ``target_modules``, ``exclude_modules`` and ``layers_to_transform`` name, and
passes over what else the file has. vLLM applies every factor of the file, and so does this server; where the two
differ, it is said, and what is stored names every module that has factors.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import re2

from amalgam.errors.findings import Finding
from amalgam.store.file_rules import shown

NOT_NAMED: Final = "modules_not_named"
"""The finding has this code."""
_ALL_LINEAR: Final = "all-linear"
_LONGEST_EXPRESSION: Final = 4096
_LARGEST_MACHINE: Final = 1 << 22
"""Bytes of memory that an expression may take; one that takes more is not asked."""
_PLAIN_NAME: Final = re.compile(r"\w+")

_Names = Callable[[str], bool]
"""It says of a module whether it is named."""


def check_named(config: Mapping[str, Any], modules: Sequence[str], spelled: Mapping[str, str]) -> Iterator[Finding]:
    """A warning where ``config`` leaves out some of ``modules``; what cannot be told is taken for named.

    Args:
        config: as written.
        modules: those that have factors.
        spelled: module -> the name that the config knows, where that is another.
    """
    targets, excluded = config.get("target_modules"), _names(config.get("exclude_modules"))
    named = None if targets == _ALL_LINEAR else _names(targets)
    # To PEFT an expression says all by itself.
    in_layers = _layers(config) if isinstance(targets, list) else None
    left_out = []
    for module in modules:
        known = spelled.get(module, module)
        is_named = (named is None or named(known)) and (in_layers is None or in_layers(known))
        if not is_named or (excluded is not None and excluded(known)):
            left_out.append(module)
    if left_out:
        count = "1 module has" if len(left_out) == 1 else f"{len(left_out)} modules have"
        message = (
            f"{count} factors, such as {shown(left_out[0])}, that target_modules, exclude_modules or "
            "layers_to_transform of its config leaves out. They are applied here, and PEFT leaves them out: "
            "mend the config, or take them out."
        )
        yield Finding(code=NOT_NAMED, severity="warning", message=message)


def _names(said: Any) -> _Names | None:
    """What a list or an expression names; None where nothing is said, or RE2 cannot ask the expression."""
    if not said:
        return None
    if isinstance(said, list):
        ends = tuple(f".{name}" for name in said if isinstance(name, str))
        return lambda module: f".{module}".endswith(ends)
    if not isinstance(said, str) or len(said) > _LONGEST_EXPRESSION:
        return None
    options = re2.Options()
    options.log_errors = False
    options.max_mem = _LARGEST_MACHINE
    try:
        expression = re2.compile(said, options)
    except (re2.error, UnicodeEncodeError):
        return None
    return lambda module: expression.fullmatch(module) is not None


def _layers(config: Mapping[str, Any]) -> _Names | None:
    """The layers that the config chooses; None where it chooses none, or calls them by an expression."""
    chosen, patterns = config.get("layers_to_transform"), config.get("layers_pattern") or []
    layers = [chosen] if type(chosen) is int else chosen
    patterns = [patterns] if isinstance(patterns, str) else patterns
    if not layers or not isinstance(layers, list) or not isinstance(patterns, list):
        return None
    if not all(isinstance(pattern, str) and _PLAIN_NAME.fullmatch(pattern) for pattern in patterns):
        return None
    return lambda module: _layer_of(module, patterns) in layers


def _layer_of(module: str, patterns: Sequence[str]) -> int | None:
    """The first number behind one of ``patterns``, or else behind any part but the first; None where there is none."""
    parts = module.split(".")
    numbered = [place for place, part in enumerate(parts[1:-1], 1) if part.isascii() and part.isdecimal()]
    if not patterns:
        return next((int(parts[place]) for place in numbered if place > 1), None)
    found = ((pattern, place) for pattern in patterns for place in numbered)
    return next((int(parts[place]) for pattern, place in found if parts[place - 1] == pattern), None)
