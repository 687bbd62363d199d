"""Tests and benchmarks use what others may use, so that the inside of a class or module can change without them."""

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("amalgam", "amalgam_demo")
BY_NAME = {"getattr", "setattr", "hasattr", "delattr", "patch", "object"}
"""Calls that take the name of an attribute as a text."""


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def stored_in(tree: ast.AST) -> Iterator[str]:
    """Names that a module defines, and attributes that its classes set on themselves."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


@functools.cache
def ours() -> frozenset[str]:
    """Every private name of the packages; what has another one belongs to a library."""
    trees = (ast.parse(path.read_text()) for name in PACKAGES for path in (ROOT / "server" / name).rglob("*.py"))
    return frozenset(name for tree in trees for name in stored_in(tree) if is_private(name))


def asked_by_name(node: ast.Call) -> Iterator[str]:
    """Last parts of the texts that a call takes for an attribute."""
    function = node.func
    name = function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")
    for given in node.args[:2] if name in BY_NAME else ():
        if isinstance(given, ast.Constant) and isinstance(given.value, str):
            yield given.value.rsplit(".", 1)[-1]


def private_uses(source: str) -> list[str]:
    """Private names of the packages that a file asks something else than itself for, or imports."""
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Attribute) and not (
            isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
        ):
            names = [node.attr] if node.attr in ours() else []
        elif isinstance(node, ast.Call):
            names = [name for name in asked_by_name(node) if name in ours()]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PACKAGES:
            names = [alias.name for alias in node.names if is_private(alias.name)]
        found += [f"{getattr(node, 'lineno', 0)} {name}" for name in names]
    return found


def test_tests_and_benchmarks_use_no_private_name() -> None:
    paths = sorted(path for folder in ("tests", "loadtests") for path in (ROOT / folder).rglob("*.py"))
    assert len(paths) > 400
    assert len(ours()) > 1000
    texts = {path.relative_to(ROOT).as_posix(): path.read_text() for path in paths if "node_modules" not in path.parts}
    assert sum(len(re.findall(r"^from amalgam", text, re.MULTILINE)) for text in texts.values()) > 1000
    assert [f"{path}:{use}" for path, text in texts.items() for use in private_uses(text)] == []


@pytest.mark.parametrize(
    "source",
    [
        "catalog._snapshot = None",
        "assert len(catalog._registry) == 2",
        "monkeypatch.setattr(catalog, '_snapshot', None)",
        "monkeypatch.setattr('amalgam.services.catalog._snapshot', None)",
        "getattr(catalog, '_snapshot')",
        "super()._look_up()",
        "from amalgam.services.catalog import _anything",
    ],
)
def test_a_private_use_is_seen(source: str) -> None:
    assert len(private_uses(source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "self._snapshot = None",
        "catalog.snapshot",
        "pair._replace(a=1)",
        "x.__class__",
        "from amalgam.app import create_app",
    ],
)
def test_another_use_is_none(source: str) -> None:
    assert private_uses(source) == []
