"""Processes below another one, found by their titles: a process that gives itself one has no environment to be read."""

from pathlib import Path


def family_of(pid: int) -> set[int]:
    """It and all its descendants."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(entry.parent.name)] = int(fields[1])
    family = {pid}
    while grown := {one for one, parent in parents.items() if parent in family} - family:
        family |= grown
    return family


def titled(pid: int, title: str) -> list[int]:
    """Those of the family of ``pid`` in whose command or title ``title`` is, in order."""
    return sorted(one for one in family_of(pid) if title in _command(one))


def _command(pid: int) -> str:
    try:
        return (Path("/proc") / str(pid) / "cmdline").read_text(errors="replace")
    except OSError:
        return ""
