"""The page of `skills_kept.py`: correlations, hits and false alarms of thresholds, and the plot."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Final

from amalgam.domain.kept import SKILL_LOST, AnswerRead, InputKept, input_kept
from loadtests.plots import COLOURS

LOST: Final = 0.8
"""A merge that keeps fewer of an input's right answers has lost a fifth of a skill."""
FEWER: Final = (5, 10, 24)
"""So many of an input's prompts alone say how far a threshold can be relied on with them."""
ENOUGH: Final = 100
ENOUGH_FAMILIES: Final = 3
FEW: Final = (
    "These are fewer merges or families than it takes to choose between figures or to set a threshold: at least 100 "
    "merges of 3 families. Read them as a first look."
)
SIDE: Final = 300
LEFT: Final = 52
TOP: Final = 34


def _chance(reads: Sequence[AnswerRead]) -> float:
    """How probable the whole answers are for the merge, over how probable they are for the input; mean over answers."""
    return math.fsum(math.exp(min(one.nats - one.own_nats, 0.0)) for one in reads) / len(reads)


Figure = Callable[[InputKept, Sequence[AnswerRead], float], float]
FIGURES: Final[Mapping[str, Figure]] = {
    "answer until it departs": lambda kept, reads, gap: kept.alike,
    "agreement of tokens": lambda kept, reads, gap: kept.agreement,
    "whole answers": lambda kept, reads, gap: kept.answers,
    "likelihood of own answers": lambda kept, reads, gap: kept.likelihood,
    "probability of whole own answers": lambda kept, reads, gap: _chance(reads),
    "likelihood of references (sweeps)": lambda kept, reads, gap: math.exp(min(gap, 0.0)),
}
"""What may predict; more is better, 1 is all."""


@dataclass(frozen=True)
class Case:
    """One input of one merge."""

    family: str
    merge: str
    task: str
    right: float
    """Share of the own adapter's right answers that the merge gets."""
    figures: Mapping[str, float]


Warned = Sequence[Case]
"""What is warned of as one: an input, or all those of a merge."""


def cases(rows: Sequence[Mapping[str, Any]], probes: int | None = None) -> list[Case]:
    """Every input of every merge, but of adapters that are never right; by the first ``probes`` prompts, or by all."""
    found = []
    for row in rows:
        for task, one in row["tasks"].items():
            if one["own_right"] == 0:
                continue
            reads = [AnswerRead(*probe) for probe in one["probes"][:probes]]
            kept = input_kept(reads)
            figures = {name: figure(kept, reads, one["reference_gap"]) for name, figure in FIGURES.items()}
            found.append(Case(row["family"], row["expression"], task, one["right"] / one["own_right"], figures))
    return found


def correlation(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Pearson's; 0 where one does not vary."""
    x_mean, y_mean = math.fsum(xs) / len(xs), math.fsum(ys) / len(ys)
    spread = [math.fsum((v - m) ** 2 for v in vs) for vs, m in ((xs, x_mean), (ys, y_mean))]
    both = math.fsum((x - x_mean) * (y - y_mean) for x, y in zip(xs, ys, strict=True))
    return both / math.sqrt(spread[0] * spread[1]) if min(spread) > 0 else 0.0


def ranked(values: Sequence[float]) -> list[float]:
    """Places in order, equal values share theirs: Pearson's of these is Spearman's."""
    order = sorted(values)
    first = {value: order.index(value) for value in order}
    count = {value: order.count(value) for value in first}
    return [first[value] + (count[value] - 1) / 2 for value in values]


def singly(found: Sequence[Case]) -> list[Warned]:
    """Every input is warned of by itself."""
    return [[case] for case in found]


def together(found: Sequence[Case]) -> list[Warned]:
    """The inputs of a merge together: who merges is warned where one of them is."""
    merges: dict[tuple[str, str], list[Case]] = {}
    for case in found:
        merges.setdefault((case.family, case.merge), []).append(case)
    return list(merges.values())


def alarms(found: Sequence[Warned], figure: str, threshold: float) -> tuple[float, float]:
    """Share of what lost a skill and is warned of; share of what did not and is warned of too."""
    told: dict[bool, list[bool]] = {True: [], False: []}
    for cases_of_one in found:
        lost = any(case.right < LOST for case in cases_of_one)
        told[lost].append(any(case.figures[figure] < threshold for case in cases_of_one))
    hits, false = (sum(told[kind]) / len(told[kind]) if told[kind] else math.nan for kind in (True, False))
    return hits, false


def best_threshold(found: Sequence[Warned], figure: str) -> float:
    """Where hits less false alarms are most."""
    levels = sorted({round(case.figures[figure], 3) for one in found for case in one})

    def gain(level: float) -> float:
        hits, false = (0.0 if math.isnan(value) else value for value in alarms(found, figure, level))
        return hits - false

    return max(levels, key=gain)


def skills_page(report: Mapping[str, Any]) -> tuple[str, str]:
    """Markdown, and the plot."""
    rows = report["rows"]
    found = cases(rows)
    merges = together(found)
    families = list(dict.fromkeys(row["family"] for row in rows))
    packages = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    counts = ", ".join(f"{name} {sum(row['family'] == name for row in rows)}" for name in families)
    lost = sum(case.right < LOST for case in found)
    lines = [
        "# What predicts that a merge keeps a skill",
        "",
        f"{report['machine']}; {packages}; {report['date']}.",
        f"{len(rows)} merges of adapters ({counts}), {len(found)} inputs in all; of {lost} of them a fifth "
        f"or more of the right answers is lost. Figures on {report['probes']} unlabelled prompts an input, right "
        f"answers on {report['items']} other questions a task, and on {report['many']} of an input whose likelihood is "
        f"between {report['near'][0]} and {report['near'][1]}.",
        "",
        f"`{report['command']}`",
        "",
        *([FEW, ""] if len(rows) < ENOUGH or len(families) < ENOUGH_FAMILIES else []),
        *_correlations(found, families),
        "",
        *_thresholds("By merges: one is warned of where the figure of an input is below the threshold", merges),
        *_thresholds("By inputs: each is warned of by itself", singly(found)),
        *(_transferred("By merges", merges, families) if len(families) > 1 else []),
        *_by_prompts(rows),
        *_own(rows, families),
        "",
    ]
    return "\n".join(lines), scatter(found, "whole answers", "likelihood of own answers")


def _correlations(found: Sequence[Case], families: Sequence[str]) -> list[str]:
    lines = [
        "Correlation with the share of right answers kept, Pearson / Spearman, over inputs:",
        "",
        "| figure | all | " + " | ".join(families) + " |",
        "|---|" + "---|" * (len(families) + 1),
    ]
    for figure in FIGURES:
        cells = []
        for name in ("", *families):
            part = [case for case in found if not name or case.family == name]
            xs, ys = [case.figures[figure] for case in part], [case.right for case in part]
            cells.append(f"{correlation(xs, ys):.2f} / {correlation(ranked(xs), ranked(ys)):.2f}")
        lines.append(f"| {figure} | " + " | ".join(cells) + " |")
    return lines


def _thresholds(what: str, found: Sequence[Warned]) -> list[str]:
    lost = sum(any(case.right < LOST for case in one) for one in found)
    lines = [
        f"{what}. Hits: of the {lost} that lost a fifth or more of the right answers (of one input); false alarms: of "
        f"the other {len(found) - lost}.",
        "",
        f"| figure | at 0.5: hits | false alarms | at {SKILL_LOST}: hits | false alarms | best | hits | false alarms |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for figure in FIGURES:
        at = best_threshold(found, figure)
        pairs = [alarms(found, figure, level) for level in (0.5, SKILL_LOST, at)]
        cells = [f"{_percent(hits)} | {_percent(false)}" for hits, false in pairs]
        lines.append(f"| {figure} | {cells[0]} | {cells[1]} | {at:.3f} | {cells[2]} |")
    return [*lines, ""]


def _by_prompts(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        f"Likelihood of own answers below {SKILL_LOST}, of which `skill_lost` warns, by as many of the prompts:",
        "",
        "| prompts of an input | by merges: hits | false alarms | by inputs: hits | false alarms |",
        "|---|---|---|---|---|",
    ]
    for count in FEWER:
        found = cases(rows, count)
        pairs = [alarms(units, "likelihood of own answers", SKILL_LOST) for units in (together(found), singly(found))]
        cells = " | ".join(f"{_percent(hits)} | {_percent(false)}" for hits, false in pairs)
        lines.append(f"| the first {count} | {cells} |")
    return [*lines, ""]


def _transferred(what: str, found: Sequence[Warned], families: Sequence[str]) -> list[str]:
    lines = [
        f"{what}, with the threshold that is best for the other families: threshold, hits, false alarms.",
        "",
        "| figure | " + " | ".join(families) + " |",
        "|---|" + "---|" * len(families),
    ]
    for figure in FIGURES:
        cells = []
        for name in families:
            others, mine = ([one for one in found if (one[0].family == name) is its] for its in (False, True))
            at = best_threshold(others, figure)
            hits, false = alarms(mine, figure, at)
            cells.append(f"{at:.3f}: {_percent(hits)}, {_percent(false)}")
        lines.append(f"| {figure} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _percent(value: float) -> str:
    """A share, or a dash where there was nothing to take it of."""
    return "–" if math.isnan(value) else f"{value:.0%}"


def _own(rows: Sequence[Mapping[str, Any]], families: Sequence[str]) -> list[str]:
    lines = ["| family | task | own adapter right | worst and best merge, of that |", "|---|---|---|---|"]
    for name in families:
        part = [row for row in rows if row["family"] == name]
        for task in part[0]["tasks"]:
            ones = [row["tasks"][task] for row in part]
            longest = max(ones, key=lambda one: one["items"])
            shares = [one["right"] / one["own_right"] for one in ones if one["own_right"]]
            lines.append(
                f"| {name} | {task} | {longest['own_right']} of {longest['items']} | "
                f"{min(shares, default=0):.0%}, {max(shares, default=0):.0%} |"
            )
    return lines


def scatter(found: Sequence[Case], *figures: str) -> str:
    """SVG: for each figure a square, right answers kept over the figure, one colour a family."""
    families = list(dict.fromkeys(case.family for case in found))
    width, height = len(figures) * (SIDE + LEFT + 16), TOP + SIDE + 58
    parts = []
    for number, figure in enumerate(figures):
        left = LEFT + number * (SIDE + LEFT + 16)
        parts.append(_text(left, 16, f"right answers kept, over {figure}"))
        for tick in range(6):
            at = tick / 5
            x, y = left + at * SIDE, TOP + SIDE * (1 - at)
            parts.append(f'<path d="M{left} {y}h{SIDE}M{x} {TOP}v{SIDE}" stroke="#e5e7eb"/>')
            parts.append(_text(x - 8, TOP + SIDE + 16, f"{at:.1f}") + _text(left - 26, y + 4, f"{at:.1f}"))
        for case in found:
            x = left + min(max(case.figures[figure], 0.0), 1.0) * SIDE
            y = TOP + SIDE * (1 - min(case.right, 1.0))
            colour = COLOURS[families.index(case.family) % len(COLOURS)]
            hint = f"<title>{escape(case.task)} in {escape(case.merge)}</title>"
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}" fill-opacity=".6">{hint}</circle>')
    for number, name in enumerate(families):
        x, y = LEFT + number * 90, TOP + SIDE + 40
        parts.append(f'<circle cx="{x}" cy="{y - 4}" r="4" fill="{COLOURS[number % len(COLOURS)]}"/>')
        parts.append(_text(x + 10, y, name))
    style = "<style>text{font:11px system-ui,sans-serif;fill:#374151}</style>"
    box = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    ground = f'<rect width="{width}" height="{height}" fill="#ffffff"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {box} role="img">{style}{ground}{"".join(parts)}</svg>'


def _text(x: float, y: float, text: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'
