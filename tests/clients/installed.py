"""Where the clients of other languages and environments are installed: once, in a folder that git ignores."""

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

CLIENTS = Path(__file__).parent
CACHE = CLIENTS.parents[1] / ".cache" / "clients"
OLDEST_NODE = 20
INSTALL_LIMIT_S = 540
UNREACHABLE = ("ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ETIMEDOUT", "NameResolutionError", "NewConnectionError")
"""What npm and pip say where there is no way to a registry."""


def node_is_missing() -> str:
    """Why the JavaScript clients cannot run here; empty where they can."""
    node = shutil.which("node")
    if node is None or shutil.which("npm") is None:
        return "node and npm are not installed here; the JavaScript clients need them"
    found = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if int(found.lstrip("v").partition(".")[0]) < OLDEST_NODE:
        return f"node is {found} here; the JavaScript clients need {OLDEST_NODE} or newer"
    return ""


def javascript() -> Path:
    """A folder with the packages of package-lock.json and the tests as they are now."""
    source = CLIENTS / "js"
    command = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
    folder = _once(
        "js", [source / "package.json", source / "package-lock.json"], lambda place: _run("npm ci", command, place)
    )
    for path in source.glob("*.mjs"):
        shutil.copy(path, folder)
    return folder


def python() -> Path:
    """The interpreter of an environment with the packages of requirements.txt."""
    source = CLIENTS / "python" / "requirements.txt"

    def make(place: Path) -> None:
        _run("venv", [sys.executable, "-m", "venv", "venv"], place)
        pip = ["venv/bin/python", "-m", "pip", "install", "-q", "--disable-pip-version-check", "-r", source.name]
        _run("pip install", pip, place)

    return _once("python", [source], make) / "venv" / "bin" / "python"


def _once(name: str, sources: list[Path], make: Callable[[Path], None]) -> Path:
    """The folder for these very sources, made where it is not there or was left half made."""
    content = b"\0".join(path.read_bytes() for path in sources)
    folder = CACHE / f"{name}-{hashlib.sha256(content).hexdigest()[:12]}"
    ready = folder / "ready"
    if not ready.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for path in sources:
            shutil.copy(path, folder)
        make(folder)
        ready.touch()
    return folder


def _run(title: str, command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=INSTALL_LIMIT_S, check=False)
    if done.returncode == 0:
        return
    said = done.stdout[-2000:] + done.stderr[-2000:]
    if any(word in said for word in UNREACHABLE):
        pytest.skip(f"the clients are not installed, and {title} cannot reach a registry from here")
    pytest.fail(f"{title} failed:\n{said}")
