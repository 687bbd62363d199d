"""How much an object keeps, for tests that nothing stays behind of those who left."""

import gc
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, Final

_ELSEWHERE: Final = (type, ModuleType, FunctionType, BuiltinFunctionType, MethodType)
"""What an object only refers to: code, and whatever the clocks and callbacks that it was given belong to."""


def objects_within(kept: object) -> int:
    """How many objects can be reached from ``kept``, itself included, without going through code."""
    seen: dict[int, Any] = {}
    ahead: list[Any] = [kept]
    while ahead:
        found = ahead.pop()
        if id(found) in seen or isinstance(found, _ELSEWHERE):
            continue
        seen[id(found)] = found
        ahead += gc.get_referents(found)
    return len(seen)
