"""Torchvision beside a torch that it was not built for: its operators are declared, or it is taken away again."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from amalgam.cli import install_torchvision
from amalgam.cli.install_torchvision import declare_operators, install, requirement

BUILT_FOR_ANOTHER = """
import torch

def _has_ops():
    return False
"""
ASKS = """
from . import extension
import torch.library

@torch.library.register_fake("torchvision::nms")
def meta_nms(dets, scores, iou_threshold):
    return dets
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A torchvision without its library, for the interpreters that are started, and for this one to find."""
    folder = tmp_path / "torchvision"
    folder.mkdir()
    (folder / "extension.py").write_text(BUILT_FOR_ANOTHER)
    (folder / "__init__.py").write_text(ASKS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    return folder


@pytest.mark.parametrize(
    ("torch", "vision"),
    [("2.13.0+cpu", "torchvision==0.28.0"), ("2.13.1", "torchvision==0.28.1"), ("2.9", "torchvision==0.24.0")],
)
def test_the_release_is_that_of_the_installed_torch(torch: str, vision: str) -> None:
    assert requirement(torch) == vision


def test_what_was_built_for_another_torch_imports_once_its_operators_are_declared(package: Path) -> None:
    commands: list[list[str]] = []

    def run(command: Sequence[str]) -> int:
        commands.append(list(command))
        return 0

    program = [sys.executable, "-c", "import torchvision"]
    assert subprocess.run(program, capture_output=True, check=False).returncode != 0
    install(run)
    assert subprocess.run(program, capture_output=True, check=False).returncode == 0
    assert [command[3] for command in commands] == ["install"]
    assert "--no-deps" in commands[0]
    text = (package / "extension.py").read_text()
    install(run)
    assert (package / "extension.py").read_text() == text


def test_one_of_another_layout_is_left_alone(tmp_path: Path) -> None:
    assert not declare_operators(tmp_path)
    (tmp_path / "extension.py").write_text("value = 1\n")
    assert not declare_operators(tmp_path)
    assert (tmp_path / "extension.py").read_text() == "value = 1\n"


def test_what_does_not_import_even_so_is_taken_away_again(package: Path) -> None:
    (package / "__init__.py").write_text("raise RuntimeError('another reason')")
    commands: list[list[str]] = []

    def run(command: Sequence[str]) -> int:
        commands.append(list(command))
        return 0

    with pytest.raises(SystemExit, match="removed again"):
        install(run)
    assert [command[3] for command in commands] == ["install", "uninstall"]


def test_a_failure_of_pip_ends_with_its_status(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install_torchvision, "broken_companions", lambda _: pytest.fail("went on"))
    with pytest.raises(SystemExit) as ended:
        install(lambda _: 5)
    assert ended.value.code == 5
