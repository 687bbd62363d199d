"""What the tensors of an adapter are called, whoever wrote them: one name for one factor.

PEFT writes ``base_model.model.<module>.lora_A.weight``. A state dict that was saved in other ways carries more: the
adapter's name behind the factor, what compiling and sharding wrapped around modules, the prefix twice.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

PREFIX: Final = "base_model.model."
"""PEFT puts it before the base model's own module names."""

_WRAPPERS: Final = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_fpw_module", "_checkpoint_wrapped_module"})
"""These parts of a name are put in by torch.compile, FSDP and activation checkpointing; no model has a module of that
name."""
_NAMED: Final = re.compile(
    r"(?P<stem>.*\.(?:lora_(?:A|B|E|embedding_A|embedding_B|magnitude_vector)|hada_\w+|lokr_\w+|vera_lambda_[bd]"
    r"|modules_to_save))\.(?P<adapter>(?!weight$|bias$)[^.]+)(?P<end>\.weight|\.bias)?"
)


@dataclass(frozen=True, slots=True)
class CanonicalName:
    """A tensor's name without what its way of saving added."""

    name: str
    adapter: str | None = None
    """It is the adapter's own name, where the key held one."""
    wrapped: bool = False
    """It tells whether wrappers or a second prefix were taken off."""


def canonical_name(name: str) -> CanonicalName:
    """``name`` as PEFT's own ``save_pretrained`` writes it; names without PEFT's prefix stay without it."""
    plain = name.endswith((".lora_A.weight", ".lora_B.weight")) and "._" not in name
    if plain and name.startswith(PREFIX) and not name.startswith(PREFIX + PREFIX):
        return CanonicalName(name)
    inner = ".".join(part for part in name.split(".") if part not in _WRAPPERS)
    if not inner.startswith(PREFIX) and (start := inner.find("." + PREFIX)) >= 0:
        # DataParallel puts "module." before everything, and a class around the model the name of its attribute.
        inner = inner[start + 1 :]
    while inner.startswith(PREFIX + PREFIX):
        inner = inner.removeprefix(PREFIX)
    wrapped = inner != name
    found = _NAMED.fullmatch(inner)
    if found is None:
        return CanonicalName(inner, wrapped=wrapped)
    return CanonicalName(found["stem"] + (found["end"] or ""), found["adapter"], wrapped)


def described(names: Iterable[tuple[str, CanonicalName]]) -> str | None:
    """One sentence about the keys that were read under other names, with an example; None where there are none.

    Args:
        names: Stored name and canonical name of every tensor.
    """
    changed = [(stored, found) for stored, found in names if stored != found.name]
    if not changed:
        return None
    stored = changed[0][0]
    what = []
    if any(one.adapter is not None for _, one in changed):
        what.append("an adapter's name")
    if any(one.wrapped for _, one in changed):
        what.append("wrappers or a second prefix")
    short = stored if len(stored) <= 128 else stored[:128] + "…"
    return (
        f"{len(changed)} keys carry {' and '.join(what)}, such as {short!r}; they are read without. "
        "save_pretrained writes plain names."
    )
