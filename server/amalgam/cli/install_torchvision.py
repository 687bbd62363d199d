"""Installs torchvision beside the installed torch: vLLM's classes for models that see import it.

    python -m amalgam.cli.install_torchvision

Builds for CUDA are what PyPI has. Beside a CPU build of torch the compiled library of such a build does not load, and
the import ends over two operators that it alone declares, which nothing here calls; its transforms are written in
torch. Declared without the library, they let it import. `amalgam.cli.torch_companions` keeps what imports.
"""

import importlib
import importlib.metadata
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from packaging.version import Version

from amalgam.cli.torch_companions import Runner, broken_companions, remove_broken, run_command

PACKAGE: Final = "torchvision"
_RELEASES_AHEAD: Final = 15
"""The releases torch 2.13 and torchvision 0.28 came out together, as did every pair before them."""
_MARK: Final = "# Declared by Amalgam, because the library above was built for another torch."
_DECLARED: Final = f"""

{_MARK}
if not _has_ops():
    _declared = torch.library.Library("torchvision", "FRAGMENT")
    for _name in ("nms", "qnms"):
        _declared.define(_name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""
_WHERE: Final = "extension.py"
"""This module of torchvision loads its library, before anything asks for its operators."""


def requirement(torch_version: str) -> str:
    """What pip is to install beside torch ``torch_version``, such as ``torchvision==0.28.0`` beside 2.13.0+cpu."""
    release = Version(torch_version).release
    return f"{PACKAGE}==0.{release[1] + _RELEASES_AHEAD}.{release[2] if len(release) > 2 else 0}"


def declare_operators(package: Path) -> bool:
    """Let the torchvision in ``package`` import without its library; False where it has another layout.

    Doing it again changes nothing.
    """
    path = package / _WHERE
    if not path.is_file() or "def _has_ops" not in (text := path.read_text(encoding="utf-8")):
        return False
    if _MARK not in text:
        path.write_text(text + _DECLARED, encoding="utf-8")
    return True


def install(run: Runner = run_command) -> None:
    """Install, make it import, or take it away again.

    Args:
        run: Runs pip.

    Raises:
        SystemExit: pip failed, or what it installed does not import.
    """
    wanted = requirement(importlib.metadata.version("torch"))
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--quiet", "--disable-pip-version-check", wanted]
    if exit_code := run(pip):
        raise SystemExit(exit_code)
    if not broken_companions([PACKAGE]):
        return
    importlib.invalidate_caches()
    spec = find_spec(PACKAGE)
    if spec is not None and spec.origin is not None and declare_operators(Path(spec.origin).parent):
        print(f"{wanted} was built for another torch; its operators are declared without its library")
        if not broken_companions([PACKAGE]):
            return
    remove_broken([PACKAGE], run)
    raise SystemExit(f"{wanted} does not import beside this torch, and was removed again.")


if __name__ == "__main__":
    install()
