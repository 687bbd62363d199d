"""Puts the rows of `patch_table` in place: the only code that assigns to vLLM's modules, classes and objects.

vLLM calls our plugins in each of its processes, so this module imports nothing of vLLM, and a replacement is imported
when it is put in place.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import Any, Final

from amalgam.engine.cpu.patch import Patch, Stage
from amalgam.engine.cpu.patch_table import PATCHES

_MARK: Final = "__replaces__"


def apply(stage: Stage, on: Any | None = None) -> None:
    """Replace the stage's symbols in this process; what was replaced before stays as it is.

    Args:
        on: the class that has them, where it is not the one that the table names, as a platform's subclass.
    """
    for patch in PATCHES:
        if patch.stage == stage:
            _apply(patch, on)


def _apply(patch: Patch, on: Any | None) -> None:
    owner = _owner(patch) if on is None else on
    original = getattr(owner, patch.name)
    if getattr(original, _MARK, None) == patch.symbol:
        return
    module, _, maker = patch.replacement.partition(":")
    made = getattr(import_module(module), maker)(original)
    # Of a class method what is found again is the function in it.
    setattr(getattr(made, "__func__", made), _MARK, patch.symbol)
    setattr(owner, patch.name, made)


def put(symbol: str, value: Any, on: Any | None = None) -> None:
    """Assign to a symbol of the stage ``objects``, whatever it is.

    Args:
        symbol: as in the table.
        on: the object that is changed; None: where vLLM defines the symbol.

    Raises:
        KeyError: the table does not have the symbol, or in another stage.
    """
    patch = _ON_OBJECTS[symbol]
    setattr(_owner(patch) if on is None else on, patch.name, value)


def _owner(patch: Patch) -> Any:
    """The module or class that has the symbol."""
    module, _, path = patch.symbol.partition(":")
    owner: Any = import_module(module)
    for part in path.split(".")[:-1]:
        owner = getattr(owner, part)
    return owner


_ON_OBJECTS: Final[Mapping[str, Patch]] = {patch.symbol: patch for patch in PATCHES if patch.stage == "objects"}
