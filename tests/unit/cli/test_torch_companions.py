"""Companions of torch: kept where they import, removed where they do not, left alone where they are absent."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from amalgam.cli.torch_companions import broken_companions, remove_broken


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Installs a fake package of the given source for the interpreters that the test starts."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def install(name: str, source: str) -> str:
        package = tmp_path / name
        package.mkdir()
        (package / "__init__.py").write_text(source)
        return name

    return install


def test_one_that_raises_and_one_that_ends_the_interpreter_are_broken(installed: Any) -> None:
    works = installed("fake_audio", "value = 1")
    raises = installed("fake_vision", "raise RuntimeError('operator fake::nms does not exist')")
    dies = installed("fake_codec", "import os\nos.abort()")
    leaves = installed("fake_left", "raise SystemExit(3)")
    assert broken_companions([works, raises, dies, "fake_absent", leaves]) == [raises, dies, leaves]


def test_absent_ones_are_not_broken() -> None:
    assert broken_companions(["surely_not_installed_one", "surely_not_installed_two"]) == []


def test_what_is_broken_is_uninstalled_by_name_and_without_questions() -> None:
    commands: list[list[str]] = []

    def run(command: Sequence[str]) -> int:
        commands.append(list(command))
        return 0

    remove_broken(["torchvision", "torchcodec"], run=run)
    (command,) = commands
    assert command[:4] == [sys.executable, "-m", "pip", "uninstall"]
    assert "--yes" in command
    assert command[-2:] == ["torchvision", "torchcodec"]


def test_nothing_broken_means_no_command_at_all() -> None:
    remove_broken([], run=lambda _: pytest.fail("ran pip"))


def test_a_failure_of_pip_ends_with_its_status() -> None:
    with pytest.raises(SystemExit) as ended:
        remove_broken(["torchvision"], run=lambda _: 5)
    assert ended.value.code == 5
