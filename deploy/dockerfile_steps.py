"""Reads a Dockerfile of the simple kind: stages, instructions, variables. Unknown instructions are an error."""

import json
import re
import string
from dataclasses import dataclass, field
from pathlib import Path

KNOWN = frozenset(
    {"RUN", "COPY", "ENV", "ARG", "WORKDIR", "USER", "VOLUME", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "CMD"}
)
BASE_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}


@dataclass(frozen=True)
class Step:
    """One instruction and what stands behind it, continuation lines joined."""

    keyword: str
    value: str


@dataclass
class Stage:
    """One FROM and its steps."""

    name: str
    base: str
    steps: list[Step] = field(default_factory=list)

    def needs(self) -> list[str]:
        """Stages that must be there first."""
        copied = [found[1] for step in self.steps if (found := re.search(r"--from=(\S+)", step.value))]
        return [self.base, *copied]


def read_stages(path: Path) -> dict[str, Stage]:
    """The stages by name, in order.

    Raises:
        ValueError: an instruction that is not `KNOWN`, or a FROM without a name.
    """
    stages: dict[str, Stage] = {}
    for keyword, value in _instructions(path.read_text()):
        if keyword == "FROM":
            found = re.fullmatch(r"(\S+) AS (\S+)", value)
            if found is None:
                raise ValueError(f"FROM {value}: every stage needs a name")
            stages[found[2]] = Stage(found[2], found[1])
        elif keyword not in KNOWN or not stages:
            raise ValueError(f"{keyword} {value}: this instruction is not understood")
        else:
            list(stages.values())[-1].steps.append(Step(keyword, value))
    return stages


def _instructions(text: str) -> list[tuple[str, str]]:
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(keyword, value.strip()) for keyword, _, value in (line.partition(" ") for line in joined.splitlines())]


def order_for(stages: dict[str, Stage], target: str) -> list[Stage]:
    """The stages that ``target`` is made of, each after what it needs."""
    ordered: list[Stage] = []

    def visit(name: str) -> None:
        if name not in stages or any(stage.name == name for stage in ordered):
            return
        for other in stages[name].needs():
            visit(other)
        ordered.append(stages[name])

    visit(target)
    return ordered


def assignments(value: str, environment: dict[str, str]) -> dict[str, str]:
    """``A=1 B=$A/x`` of an ENV, with ``environment`` put in."""
    pairs = (part.partition("=") for part in value.split())
    return {name: string.Template(text).substitute(environment) for name, _, text in pairs}


def exec_form(value: str) -> list[str]:
    """The words of ``["a", "b"]``."""
    return [str(word) for word in json.loads(value)]


def health_command(value: str) -> list[str]:
    """The words of a HEALTHCHECK's command in exec form."""
    return exec_form(value.partition("CMD ")[2])


def allowed(source: str, dockerignore: str) -> bool:
    """Whether a .dockerignore that excludes everything and then names what may enter lets ``source`` in."""
    named = [line[1:] for line in dockerignore.splitlines() if line.startswith("!")]
    return any(source == name or source.startswith(f"{name}/") for name in named)
