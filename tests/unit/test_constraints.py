"""deploy/constraints-*.txt hold one version of everything, and this environment holds exactly those."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

DEPLOY = Path(__file__).parents[2] / "deploy"


@pytest.fixture(scope="module")
def constraints() -> ModuleType:
    spec = importlib.util.spec_from_file_location("constraints", DEPLOY / "constraints.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_this_environment_is_the_one_that_is_pinned(constraints: ModuleType) -> None:
    pinned = constraints.read(constraints.file_of("cpu"))
    here = constraints.installed(constraints.requirements("cpu"), pinned)
    other = {name: (version, pinned.get(name)) for name, version in here.items() if pinned.get(name) != version}
    assert other == {}, "install again with `make setup-dev`; after a change of pyproject.toml run `make constraints`"


@pytest.mark.parametrize("engine", ["cpu", "gpu"])
def test_every_requirement_is_pinned_within_what_it_allows(constraints: ModuleType, engine: str) -> None:
    pinned = constraints.read(constraints.file_of(engine))
    wrong = {
        str(wanted): pinned.get(canonicalize_name(wanted.name))
        for wanted in constraints.requirements(engine)
        if canonicalize_name(wanted.name) not in pinned
        or not wanted.specifier.contains(pinned[canonicalize_name(wanted.name)])
    }
    assert wrong == {}


@pytest.mark.parametrize("engine", ["cpu", "gpu"])
def test_lines_are_exact_sorted_and_of_any_index(constraints: ModuleType, engine: str) -> None:
    lines = [line for line in constraints.file_of(engine).read_text().splitlines() if not line.startswith("#")]
    names = [line.partition("==")[0] for line in lines]
    assert names == sorted(set(names))
    for line in lines:
        requirement = Requirement(line)
        assert [one.operator for one in requirement.specifier] == ["=="], line
        assert "+" not in line, "a local part names the index it came from"
        assert requirement.name == canonicalize_name(requirement.name)


def test_a_version_that_moved_is_noticed(constraints: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "constraints.txt"
    path.write_text(constraints.file_of("cpu").read_text().replace("pytest==", "pytest==0."))
    moved = constraints.read(path)
    here = constraints.installed(constraints.requirements("cpu"), moved)
    assert [name for name, version in here.items() if moved[name] != version] == ["pytest"]


def test_companions_of_torch_may_be_absent_and_keep_their_version(constraints: ModuleType) -> None:
    pinned = constraints.read(constraints.file_of("cpu"))
    assert set(constraints.COMPANIONS) <= pinned.keys()
    here = constraints.installed(constraints.requirements("cpu"), pinned)
    assert {name: here[name] for name in constraints.COMPANIONS} == {
        name: pinned[name] for name in constraints.COMPANIONS
    }


def test_what_is_missing_is_named(constraints: ModuleType) -> None:
    with pytest.raises(SystemExit, match=r"nosuchpackage is not installed here"):
        constraints.installed([Requirement("nosuchpackage>=1")], {})
