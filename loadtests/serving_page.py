"""The page of `serving.py`'s report: plots and the table, self-contained.

python loadtests/serving_page.py results/serving.json > serving.html
"""

import json
import re
import statistics
import sys
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Final

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from loadtests.fairness import POPULARITIES  # noqa: E402
from loadtests.plots import Point, grouped_bars, lines  # noqa: E402

_SIDES: Final = {"ours": "Amalgam", "theirs": "vLLM's server"}
_SETTING: Final = re.compile(r"(\d+) registered, (\w+): (.+)")
_BARS: Final = (
    ("output_tokens_per_s", "Throughput", "tokens/s"),
    ("ttft_p50_ms", "First token, median", "ms"),
    ("ttft_p99_ms", "First token, p99", "ms"),
    ("itl_p50_ms", "Between tokens, median", "ms"),
    ("itl_p99_ms", "Between tokens, p99", "ms"),
    ("tpot_p50_ms", "Between tokens, a request's mean", "ms"),
    ("e2e_p50_ms", "Whole request, median", "ms"),
    ("e2e_p99_ms", "Whole request, p99", "ms"),
    ("Jain's index", "Fairness, Jain's index over adapters", "1 is even"),
    ("worst adapter's p99 TTFT over the median one's", "Worst first token over the median adapter's", "×"),
)
_STYLE: Final = """
body{font:15px/1.5 system-ui,sans-serif;color:#111827;max-width:1180px;margin:32px auto;padding:0 20px}
h1{font-size:22px;margin-bottom:4px}h2{font-size:17px;margin-top:34px}p{color:#374151}
code{background:#f3f4f6;padding:2px 5px;border-radius:4px}
table{border-collapse:collapse;margin:10px 0;font-size:13px}
td,th{padding:3px 10px;border-bottom:1px solid #e5e7eb;text-align:left}
.plots{display:flex;flex-wrap:wrap;gap:18px}svg{max-width:100%;height:auto}
text{font:11px system-ui,sans-serif;fill:#374151}text.t{font-size:13px;font-weight:600;fill:#111827}
text.e{text-anchor:end}text.m{text-anchor:middle}
"""

Points = dict[tuple[int, str, str], dict[str, Point]]
"""(registered adapters, popularity, metric) -> side -> point."""


def points_of(rows: Sequence[Mapping[str, Any]]) -> Points:
    """The rows that are of one setting."""
    found: Points = {}
    for row in rows:
        match = _SETTING.fullmatch(row["case"])
        if match:
            sides = {side: Point(statistics.median(row[side]), min(row[side]), max(row[side])) for side in _SIDES}
            found[int(match[1]), match[2], match[3]] = sides
    return found


def serving_page(report: Mapping[str, Any]) -> str:
    """HTML from what `write_report` wrote."""
    points = points_of(report["rows"])
    counts = sorted({count for count, _, _ in points})
    facts = "".join(f"<p>{escape(str(key))}: {escape(str(value))}</p>" for key, value in report["notes"].items())
    packages = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    body = [
        f"<h1>{escape(report['title'])}</h1>",
        f"<p>{escape(report['machine'])}; {escape(packages)}; {escape(report['date'])}; median of {report['rounds']}"
        " rounds, whiskers from the least to the greatest.</p>",
        facts,
        f"<p><code>{escape(report['command'])}</code></p>",
        "<h2>By number of registered adapters</h2>",
        f'<div class="plots">{"".join(_over_counts(points, counts))}</div>',
    ]
    for count in counts:
        body.append(f"<h2>{count:,} registered</h2>")
        body.append(f'<div class="plots">{"".join(_of_count(points, count))}</div>')
    body += ["<h2>Every row</h2>", _table(report["rows"])]
    title = escape(report["title"])
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head><body>{''.join(body)}</body></html>\n"
    )


def _over_counts(points: Points, counts: Sequence[int]) -> list[str]:
    plots = []
    for popularity in POPULARITIES:
        for metric, title, unit in (_BARS[0], _BARS[2]):
            per_side = {
                name: [points.get((count, popularity, metric), {}).get(side) for count in counts]
                for side, name in _SIDES.items()
            }
            if sum(point is not None for point in per_side["Amalgam"]) > 1:
                places = [f"{count:,}" for count in counts]
                plots.append(lines(f"{title}, {popularity}", unit, places, per_side))
    return plots or ["<p>One number of adapters was measured.</p>"]


def _of_count(points: Points, count: int) -> list[str]:
    plots = []
    groups = [name for name in POPULARITIES if (count, name, "output_tokens_per_s") in points]
    for metric, title, unit in _BARS:
        if not any((count, group, metric) in points for group in groups):
            continue
        per_side = {
            name: [points.get((count, group, metric), {}).get(side) for group in groups]
            for side, name in _SIDES.items()
        }
        plots.append(grouped_bars(title, unit, groups, per_side))
    return plots


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    lines_ = ["<table><tr><th>case</th><th>unit</th><th>Amalgam</th><th>vLLM's server</th><th>ratio</th><th></th></tr>"]
    for row in rows:
        cells = [row["case"], row["unit"], *(_spread(row[side]) for side in _SIDES), f"{row['ratio']:.3f}"]
        cells.append(str(row.get("target", "")))
        lines_.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    return "".join([*lines_, "</table>"])


def _spread(samples: Sequence[float]) -> str:
    if len(samples) == 1:
        return f"{samples[0]:.4g}"
    return f"{statistics.median(samples):.4g} ({min(samples):.4g}-{max(samples):.4g})"


if __name__ == "__main__":
    print(serving_page(json.loads(Path(sys.argv[1]).read_text())))
