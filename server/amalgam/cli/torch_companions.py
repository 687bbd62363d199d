"""Removes torch's companion libraries where they do not fit the installed torch.

vLLM brings torchvision, torchaudio and torchcodec along. Next to a CPU build of torch they may be builds for CUDA:
importing them then fails, and whatever looks for them fails with it, vLLM included. Nothing here needs them, so what
does not import is removed. ``python -m amalgam.cli.torch_companions`` does both.
"""

import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Final

COMPANIONS: Final = ("torchvision", "torchaudio", "torchcodec")
_PROBE: Final = """
import importlib, importlib.util, sys
if importlib.util.find_spec(sys.argv[1]) is not None:
    importlib.import_module(sys.argv[1])
print("fine")
"""

Runner = Callable[[Sequence[str]], int]
"""It runs a command and gives its exit status."""


def broken_companions(names: Sequence[str] = COMPANIONS) -> list[str]:
    """Those of ``names`` that are installed and do not import, each tried in a process of its own.

    A companion built for another torch can end the interpreter, not just raise; so none is imported here.
    """
    probes = {
        name: subprocess.Popen(  # noqa: S603 -- this interpreter and a fixed program
            [sys.executable, "-c", _PROBE, name], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        for name in names
    }
    return [name for name, probe in probes.items() if not _fine(probe)]


def _fine(probe: subprocess.Popen[bytes]) -> bool:
    """Whether the probe came to its end: its last word counts, since an import may exit with any status."""
    said, _ = probe.communicate()
    return probe.returncode == 0 and said.endswith(b"fine\n")


def run_command(command: Sequence[str]) -> int:
    """Run ``command`` with this process's output, and give its exit status."""
    return subprocess.run(command, check=False).returncode  # noqa: S603 -- fixed commands of this package


def remove_broken(names: Sequence[str], run: Runner | None = None) -> None:
    """Uninstall the packages ``names`` with pip; does nothing where there are none.

    Args:
        names: What `broken_companions` found.
        run: Runs the pip command; None: for real.

    Raises:
        SystemExit: pip failed; the status is pip's.
    """
    if not names:
        return
    command = [sys.executable, "-m", "pip", "uninstall", "--yes", "--quiet", "--disable-pip-version-check", *names]
    exit_code = (run or run_command)(command)
    if exit_code != 0:
        raise SystemExit(exit_code)


def main() -> None:
    """Find what is broken, say so, and remove it."""
    broken = broken_companions()
    if broken:
        print(f"removing {', '.join(broken)}: built for another torch, and not needed")
    remove_broken(broken)


if __name__ == "__main__":
    main()
