"""Plots as SVG text: no script, no font, no file besides the page they stand on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

COLOURS: Final = ("#3b6fb6", "#c8553d", "#4f9d69", "#8a5fb0")
_GREY: Final = "#6b7280"
_PALE: Final = "#e5e7eb"
_LEFT: Final = 64
_TOP: Final = 30
_HEIGHT: Final = 190
_TICKS: Final = 4
_MIN_WIDTH: Final = 350
"""So that titles and legends fit."""


@dataclass(frozen=True, slots=True)
class Point:
    """A median and the least and greatest that were measured."""

    median: float
    low: float
    high: float


def nice_top(value: float) -> float:
    """The end of an axis of four even ticks: four times 1, 2, 2.5 or 5 times a power of ten, not below ``value``."""
    if value <= 0:
        return 1.0
    step = 10.0**-12
    while True:
        for factor in (1.0, 2.0, 2.5, 5.0):
            if step * factor * _TICKS >= value * (1 - 1e-9):
                return step * factor * _TICKS
        step *= 10


def grouped_bars(title: str, unit: str, groups: Sequence[str], series: Mapping[str, Sequence[Point | None]]) -> str:
    """Upright bars from zero, one group a name, one colour a series; a whisker from the least to the greatest.

    ``series``: for each its points in the order of ``groups``; None leaves a gap.
    """
    top = nice_top(max((point.high for its in series.values() for point in its if point), default=1.0))
    bar = 18
    group_width = len(series) * bar + 22
    width = max(_LEFT + len(groups) * group_width + 12, _MIN_WIDTH)
    parts = _frame(title, unit, top, width)
    for g, group in enumerate(groups):
        left = _LEFT + 11 + g * group_width
        for s, (name, points) in enumerate(series.items()):
            point = points[g]
            if point is None:
                continue
            x, y = left + s * bar, _y(point.median, top)
            hint = (
                f"<title>{escape(name)}, {escape(group)}: {point.median:.4g} ({point.low:.4g}-{point.high:.4g})</title>"
            )
            height = max(_TOP + _HEIGHT - y, 0.5)
            colour = COLOURS[s % len(COLOURS)]
            parts.append(
                f'<rect x="{x}" y="{y:.1f}" width="{bar - 3}" height="{height:.1f}" fill="{colour}">{hint}</rect>'
            )
            middle = x + (bar - 3) / 2
            parts.append(_line(middle, _y(point.low, top), middle, _y(point.high, top), "#111827"))
        parts.append(_text(left + len(series) * bar / 2, _TOP + _HEIGHT + 16, group, "m"))
    parts += _legend(list(series))
    return _svg(width, parts)


def lines(title: str, unit: str, places: Sequence[str], series: Mapping[str, Sequence[Point | None]]) -> str:
    """Lines over named places at even distances, with the spread behind them; None breaks a line."""
    top = nice_top(max((point.high for its in series.values() for point in its if point), default=1.0))
    step = 86
    width = max(_LEFT + step * len(places) + 12, _MIN_WIDTH)
    parts = _frame(title, unit, top, width)
    xs = [_LEFT + step * (number + 0.5) for number in range(len(places))]
    parts += [_text(x, _TOP + _HEIGHT + 16, place, "m") for x, place in zip(xs, places, strict=True)]
    for s, (name, points) in enumerate(series.items()):
        colour = COLOURS[s % len(COLOURS)]
        known = [(x, point) for x, point in zip(xs, points, strict=True) if point]
        path = " ".join(f"{x:.1f},{_y(point.median, top):.1f}" for x, point in known)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for x, point in known:
            hint = f"<title>{escape(name)}: {point.median:.4g} ({point.low:.4g}-{point.high:.4g})</title>"
            parts.append(_line(x, _y(point.low, top), x, _y(point.high, top), colour))
            parts.append(f'<circle cx="{x:.1f}" cy="{_y(point.median, top):.1f}" r="4" fill="{colour}">{hint}</circle>')
    parts += _legend(list(series))
    return _svg(width, parts)


def _y(value: float, top: float) -> float:
    return _TOP + _HEIGHT * (1 - value / top)


def _frame(title: str, unit: str, top: float, width: float) -> list[str]:
    parts = [_text(0, 14, f"{title}, {unit}", "t")]
    for tick in range(_TICKS + 1):
        value = top * tick / _TICKS
        parts.append(_line(_LEFT, _y(value, top), width - 8, _y(value, top), _GREY if tick == 0 else _PALE))
        parts.append(_text(_LEFT - 6, _y(value, top) + 4, f"{value:.4g}", "e"))
    return parts


def _legend(names: Sequence[str]) -> list[str]:
    parts, at = [], float(_LEFT)
    for number, name in enumerate(names):
        y = _TOP + _HEIGHT + 36
        parts.append(f'<rect x="{at}" y="{y - 9}" width="10" height="10" fill="{COLOURS[number % len(COLOURS)]}"/>')
        parts.append(_text(at + 14, y, name, "s"))
        at += 14 + 7.5 * len(name) + 18
    return parts


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}">{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'


def _svg(width: float, parts: Sequence[str]) -> str:
    height = _TOP + _HEIGHT + 46
    box = f'viewBox="0 0 {width:.0f} {height}" width="{width:.0f}" height="{height}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {box} role="img">{"".join(parts)}</svg>'
