"""What the merge engine is held to on two processor cores, each target beside its measurement; and the tables."""

from typing import Any

EXACT, TIES, KNOTS, CORE = "exact sum, recompressed", "ties on deltas", "ties in knots", "ties in core"
OVER_PEFT = {EXACT: 150.0, TIES: 25.0}
"""Times faster than PEFT, by the clock."""

OVER_EXACT = 2.0
"""Most that knots and core may take, in times of the exact sum."""

LARGE_S = 10.0
LARGE_EXTRA_BYTES = 1.5e9


def targets(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every target whose measurement is among the parts."""
    found: list[dict[str, Any]] = []
    for part in parts:
        rows, name = {row["job"]: row for row in part["rows"]}, part["name"]
        if name == "smollm2":
            for job, wanted in OVER_PEFT.items():
                ratio = rows[job]["ratio"]
                found.append(_target(f"{job}: at least {wanted:.0f} × PEFT", f"{ratio:.1f} ×", ratio >= wanted, part))
        if name in ("smollm2", "llama-full"):
            for job in (KNOTS, CORE):
                times = rows[job]["ours_seconds"] / rows[EXACT]["ours_seconds"]
                text = f"{job}: at most {OVER_EXACT:.0f} × the exact sum's time"
                found.append(_target(text, f"{times:.2f} ×", times <= OVER_EXACT, part))
        if name == "llama-full":
            seconds, peak = rows[EXACT]["ours_seconds"], rows[EXACT]["ours_peak_bytes"]
            bound = part["input_bytes"] + LARGE_EXTRA_BYTES
            found.append(_target(f"{EXACT}: at most {LARGE_S:.0f} s", f"{seconds:.2f} s", seconds <= LARGE_S, part))
            text = f"{EXACT}: peak at most inputs + 1.5 GB = {bound / 1e6:.0f} MB"
            found.append(_target(text, f"{peak / 1e6:.0f} MB", peak <= bound, part))
    return found


def _target(text: str, measured: str, is_met: bool, part: dict[str, Any]) -> dict[str, Any]:
    return {"target": text, "on": part["short"], "measured": measured, "met": is_met}


def as_markdown(result: dict[str, Any]) -> str:
    """The tables, for people."""
    facts = result["about"]
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    lines = [
        "# Merging: ours and PEFT's side by side",
        "",
        f"{facts['date']}, {facts['cpu']}, {facts['cores']} cores, {facts['threads']} threads a side, Python",
        f"{facts['python']}, {versions}, commit {facts['commit']}.",
        f"Medians of {result['rounds']} runs, or of as many as a row says, the sides alternating; in brackets the",
        "fastest and the slowest run. Ours reads the files within the time, PEFT has them loaded. Processor time is",
        "what the process itself used. Peak: memory of the first merge above what the process holds before it. Load",
        f"average at the start: {facts['load_average_at_start']:.1f}.",
        "",
        "## Targets",
        "",
        "| target | on | measured | |",
        "|---|---|---|---|",
        *(f"| {row['target']} | {row['on']} | {row['measured']} | {'met' if row['met'] else '**missed**'} |"
          for row in result["targets"]),
        "",
    ]  # fmt: skip
    for part in result["parts"]:
        lines += [f"## {part['title'][0].upper()}{part['title'][1:]}", ""]
        lines += ["| merge | ours | PEFT | ratio | processor time: ours | PEFT | ratio | peak: ours | PEFT |"]
        lines += ["|---|---|---|---|---|---|---|---|---|", *map(_line, part["rows"]), "", *_scaled(part)]
    return "\n".join([*lines, *result["notes"], ""])


def _scaled(part: dict[str, Any]) -> list[str]:
    """PEFT's dense merges of all modules, by arithmetic from the sample; only what a decomposition dominates."""
    rows = [row for row in part["rows"] if "peft_scaled_seconds" in row]
    if not rows:
        return []
    shown = ", ".join(f"{row['job']} {row['peft_scaled_seconds'] / 3600:.1f} h" for row in rows)
    how = f"Not measured but scaled by Σ m·n·min(m, n), × {part['scale']:.0f}"
    return [f"{how}: PEFT on all 224 modules would take {shown}.", ""]


def _line(row: dict[str, Any]) -> str:
    cells = [row["job"]]
    for clock, ratio in (("seconds", "ratio"), ("cpu_seconds", "cpu_ratio")):
        cells += [_spread(row, f"ours_{clock}"), _spread(row, f"peft_{clock}")]
        cells.append(f"{row[ratio]:.1f}×" if ratio in row else "–")
    cells += [f"{row[name] / 1e6:.0f} MB" if name in row else "–" for name in ("ours_peak_bytes", "peft_peak_bytes")]
    return f"| {' | '.join(cells)} |"


def _spread(row: dict[str, Any], name: str) -> str:
    if name not in row:
        return "–"
    runs = row[f"{name}_runs"]
    return f"{row[name]:.3f} s ({min(runs):.3f}–{max(runs):.3f}, {len(runs)} runs)"
