"""References inside of a JSON schema: they must lead somewhere, and not back to where they began by themselves.

A tree may refer to itself below one of its properties. A schema that *is* itself describes nothing, and the engine's
compiler finds that out too late to say so.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final
from urllib.parse import unquote

_SAME_VALUE: Final = ("allOf", "anyOf", "oneOf")


def reference_fault(schema: Mapping[str, Any]) -> str | None:
    """What is wrong with the references of ``schema``, which is bounded already; None where nothing is."""
    checked: set[int] = set()
    for start in _nodes(schema):
        path: list[int] = []
        below: list[Iterator[Any]] = [iter((start,))]
        while below:
            node = next(below[-1], None)
            if node is None:
                below.pop()
                if path:
                    checked.add(path.pop())
                continue
            if not isinstance(node, dict) or id(node) in checked:
                continue
            if id(node) in path:
                return "has a $ref that leads back to itself"
            aliases = _aliases(schema, node)
            if aliases is None:
                return "has a $ref that leads nowhere"
            path.append(id(node))
            below.append(iter(aliases))
    return None


def _nodes(schema: Any) -> Iterator[dict[str, Any]]:
    left = [schema]
    while left:
        node = left.pop()
        if isinstance(node, dict):
            yield node
            left.extend(node.values())
        elif isinstance(node, list):
            left.extend(node)


def _aliases(schema: Mapping[str, Any], node: Mapping[str, Any]) -> list[Any] | None:
    """The schemas that describe the same value as ``node``; None where a reference leads nowhere."""
    found: list[Any] = []
    for key in _SAME_VALUE:
        branches = node.get(key)
        found += branches if isinstance(branches, list) else []
    reference = node.get("$ref")
    if isinstance(reference, str):
        target = _resolve(schema, reference)
        if target is None:
            return None
        found.append(target)
    return found


def _resolve(schema: Any, reference: str) -> Any:
    """The part that ``#/a/b`` names, or None."""
    if reference == "#":
        return schema
    here = schema
    for part in reference.removeprefix("#/").split("/"):
        key = unquote(part).replace("~1", "/").replace("~0", "~")
        if isinstance(here, dict):
            here = here.get(key)
        elif isinstance(here, list) and key.isascii() and key.isdigit() and len(key) < 6 and int(key) < len(here):
            here = here[int(key)]
        else:
            return None
    return here
