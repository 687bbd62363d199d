"""Write the exact version of everything that an installation holds, for pip's ``--constraint``.

    python deploy/constraints.py installed cpu    as in the environment that runs this file, which the tests ran in
    python deploy/constraints.py resolved gpu     as pip resolves pyproject.toml now; nothing is installed

`make setup`, `make serve`, `make test` and the Dockerfile install under `deploy/constraints-cpu.txt` or
`deploy/constraints-gpu.txt`. There are no hashes, because torch comes from an index of its own; for the same reason a
local part of a version (``+cpu``) is left out: ``torch==2.13.0`` allows the build of any index.
"""

import json
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT: Final = Path(__file__).resolve().parent.parent
ENGINES: Final = ("cpu", "gpu")
COMPANIONS: Final = ("torchvision", "torchaudio", "torchcodec")
"""Removed after an installation where they do not fit torch (`amalgam.cli.torch_companions`), so they may be absent."""
_HEAD: Final = """\
# Written by `python deploy/constraints.py {how} {engine}` on Python {python}: the exact version of everything that
# amalgam[{extras}] installs. `make constraints` renews both files.
"""


def extras_of(engine: str) -> tuple[str, ...]:
    """The extras whose packages are pinned."""
    return (engine, "postgres", "dev")


def file_of(engine: str) -> Path:
    """The constraints of an engine."""
    return ROOT / "deploy" / f"constraints-{engine}.txt"


def read(path: Path) -> dict[str, str]:
    """Canonical name -> version."""
    lines = [line.strip() for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]
    return {name: version for name, _, version in (line.partition("==") for line in lines)}


def requirements(engine: str) -> list[Requirement]:
    """What pyproject.toml asks for: the dependencies, and those of the extras."""
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = list(project["dependencies"])
    for extra in extras_of(engine):
        listed += project["optional-dependencies"][extra]
    return [Requirement(line) for line in listed]


def public(version: str) -> str:
    """The version without its local part."""
    return Version(version).public


def installed(wanted: list[Requirement], known: Mapping[str, str]) -> dict[str, str]:
    """Name -> version of ``wanted`` and of everything that it needs, as this environment holds it.

    Args:
        wanted: where to begin.
        known: versions of companions of torch, where they were removed.

    Raises:
        SystemExit: something that is needed is not installed.
    """
    found: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    queue = [(requirement, "") for requirement in wanted]
    while queue:
        requirement, extra = queue.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = str(canonicalize_name(requirement.name))
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            if name not in COMPANIONS:
                raise SystemExit(f"{name} is not installed here; run `make setup-dev` first.") from None
            if name in known:
                found[name] = known[name]
            continue
        found[name] = public(distribution.version)
        for inner in ("", *requirement.extras):
            if (name, inner) not in seen:
                seen.add((name, inner))
                queue += [(Requirement(line), inner) for line in distribution.requires or ()]
    return found


def resolved(engine: str) -> dict[str, str]:
    """Name -> version as pip would install it now."""
    project = f"{ROOT}[{','.join(extras_of(engine))}]"
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--report"]
        subprocess.run([*command, str(report), project], check=True)
        items = [item["metadata"] for item in json.loads(report.read_text())["install"]]
    found = {str(canonicalize_name(item["name"])): public(item["version"]) for item in items}
    del found["amalgam"]
    return found


def write(engine: str, how: str) -> None:
    """Write the file of an engine."""
    path = file_of(engine)
    known = read(path) if path.exists() else {}
    ways: Mapping[str, Callable[[], dict[str, str]]] = {
        "installed": lambda: installed(requirements(engine), known),
        "resolved": lambda: resolved(engine),
    }
    versions = ways[how]()
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    head = _HEAD.format(how=how, engine=engine, python=python, extras=",".join(extras_of(engine)))
    path.write_text(head + "".join(f"{name}=={versions[name]}\n" for name in sorted(versions)))
    print(f"{len(versions)} versions in {path.relative_to(ROOT)}")


def main() -> None:
    """Check the arguments, write the file."""
    if len(sys.argv) != 3 or sys.argv[1] not in ("installed", "resolved") or sys.argv[2] not in ENGINES:
        raise SystemExit(__doc__)
    write(sys.argv[2], sys.argv[1])


if __name__ == "__main__":
    main()
