"""The quality table as a page: right answers, what each merge keeps of its parts, and what the sweeps found."""

from collections.abc import Mapping, Sequence
from typing import Any

from loadtests.quality_contenders import ADAPTERS

TARGET = 0.95
"""Of its own adapter's right answers, on the task that is kept worst."""


def own_right(scores: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Task -> right answers of its own adapter."""
    return {row["model"]: row["right"][row["model"]] for row in scores if row["setting"] == "adapter alone"}


def retention(row: Mapping[str, Any], own: Mapping[str, int]) -> dict[str, float]:
    """Task -> share of the own adapter's right answers that the row keeps."""
    return {task: row["right"][task] / own[task] for task in ADAPTERS}


def best(rows: Mapping[str, Any]) -> Mapping[str, Any]:
    """The merge whose worst task keeps most, then whose tasks keep most together."""
    own = own_right(rows["scores"])
    merges = [row for row in rows["scores"] if row["method"]]
    return max(merges, key=lambda row: (min(retention(row, own).values()), sum(retention(row, own).values())))


def quality_page(report: Mapping[str, Any]) -> str:
    """Markdown."""
    packages = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    scores = report["scores"]
    lines = [
        "# What merging keeps",
        "",
        f"{report['machine']}; {packages}; {report['date']}.",
        f"{scores[0]['items']} held-out questions a task (split `test`, seed {report['seed']}), greedy, at most 96 "
        "tokens, asked through the server. sql: the query returns what the reference does on two databases; code: the "
        "function returns what it should on every case; json: the value is equal.",
        "",
        f"`{report['command']}`",
        "",
        *_score_table(scores),
        "",
        *_verdict(report),
        *_sweep_table(report["sweeps"]),
        *_latency_table(report.get("latency", {})),
    ]
    return "\n".join(lines) + "\n"


def _score_table(scores: Sequence[Mapping[str, Any]]) -> list[str]:
    own = own_right(scores)
    lines = ["| method | setting | sql | code | json | worst kept | mean kept |", "|---|---|---|---|---|---|---|"]
    merges = sorted(
        (row for row in scores if row["method"]), key=lambda row: min(retention(row, own).values()), reverse=True
    )
    for row in [*(row for row in scores if not row["method"]), *merges]:
        what = f"`{row['method']}`" if row["method"] else f"`{row['model']}`"
        setting = row["setting"]
        if setting.startswith("best of"):
            setting += f": `{row['model'].replace('@1', '')}`"
        kept = retention(row, own)
        ends = [f"{min(kept.values()):.0%}", f"{sum(kept.values()) / len(kept):.0%}"] if row["method"] else ["", ""]
        lines.append("| " + " | ".join([what, setting, *(str(row["right"][task]) for task in ADAPTERS), *ends]) + " |")
    return lines


def _verdict(report: Mapping[str, Any]) -> list[str]:
    own = own_right(report["scores"])
    row = best(report)
    worst = min(retention(row, own).values())
    said = "met" if worst >= TARGET else "missed"
    return [
        f"Best: {row['method']}, {row['setting']}: its worst task keeps {worst:.1%} (target {TARGET:.0%}: {said}).",
        "",
    ]


def _sweep_table(sweeps: Sequence[Mapping[str, Any]]) -> list[str]:
    if not sweeps:
        return []
    lines = [
        "## Sweeps",
        "",
        f"On {sweeps[0]['items']} questions a task of the split `dev`, by the log-likelihood of the references: the "
        "likelihood a token over that of the own adapter.",
        "",
        "| search | candidates | best | sql | code | json |",
        "|---|---|---|---|---|---|",
    ]
    for row in sweeps:
        kept = [f"{row['retention'][task]:.3f}" for task in ADAPTERS]
        cells = [row["search"], str(row["candidates"]), f"`{row['best'].replace('@1', '')}`", *kept]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def _latency_table(latency: Mapping[str, Any]) -> list[str]:
    if not latency:
        return []
    lines = [
        "## The best one as an adapter and as a checkpoint",
        "",
        f"`{latency['model']}` on Amalgam, and its export on vLLM's own server, alternating, median of "
        f"{latency['rounds']} rounds.",
        "",
        "| load | figure | adapter | checkpoint | ratio |",
        "|---|---|---|---|---|",
    ]
    for row in latency["rows"]:
        ratio = row["adapter"] / row["checkpoint"]
        figures = f"{row['adapter']:.4g} | {row['checkpoint']:.4g} | {ratio:.3f}"
        lines.append(f"| {row['load']} | {row['figure']} | {figures} |")
    return lines
