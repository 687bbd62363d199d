"""The charts of a merge report, as SVG text: no script, no font, no file besides the page."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Final, NamedTuple

COLOURS: Final = ("#3b6fb6", "#c8553d", "#4f9d69", "#8a5fb0", "#c99a2e", "#4aa3a2", "#b0507f", "#6b7280")
_GREY: Final = "#6b7280"
_CELL: Final = 15
_LEGEND_LINE: Final = 18
_DASHES: Final = ("", "6 3", "2 2", "8 3 2 3")


def heat_map(
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    cells: Mapping[tuple[str, str], float],
    low: float,
    high: float,
) -> str:
    """One value per (row, column): blue towards ``low``, red towards ``high``, white half way; absent cells grey."""
    left, top = 92, 40
    legend = f"layers left to right; blue {low:+.2f}, white {(low + high) / 2:+.2f}, red {high:+.2f}"
    # No font is measured here: titles take up to 9 a letter, small text up to 6.
    width = max(left + _CELL * len(columns) + 10, 9 * len(title), left + 6 * len(legend))
    height = top + _CELL * len(rows) + 22
    parts = [_text(0, 14, title, "t")]
    for r, row in enumerate(rows):
        parts.append(_text(left - 6, top + r * _CELL + 11, row, "e"))
        for c, column in enumerate(columns):
            value = cells.get((row, column))
            fill = "#e5e7eb" if value is None else _diverging((value - low) / (high - low))
            shown = "not merged" if value is None else f"{value:+.4f}"
            hint = f"<title>{escape(row)}, layer {escape(column)}: {shown}</title>"
            parts.append(_rect(left + c * _CELL, top + r * _CELL, _CELL - 1, _CELL - 1, fill, hint))
    step = max(1, len(columns) // 10)
    parts += [_text(left + c * _CELL + 7, top - 4, name, "m") for c, name in enumerate(columns) if c % step == 0]
    parts.append(_text(left, height - 6, legend, "s"))
    return _svg(width, height, parts)


def bars(title: str, groups: Sequence[str], series: Mapping[str, Sequence[float]]) -> str:
    """Horizontal bars around zero, one group per name."""
    lines = len(series)
    reach = max([1.0, *(abs(value) for values in series.values() for value in values)])
    left, top, span, thick = 190, 30, 420, 16
    height = top + len(groups) * (lines * thick + 12) + 26
    zero = left + (span * 0.25 if any(value < 0 for values in series.values() for value in values) else 0)
    scale = (left + span - zero) / reach
    parts = [_text(0, 14, title, "t"), _line(zero, top - 4, zero, height - 26, _GREY)]
    for g, group in enumerate(groups):
        y = top + g * (lines * thick + 12)
        parts.append(_text(left - 8, y + lines * thick / 2 + 4, shortened(group), "e"))
        for s, values in enumerate(series.values()):
            x, width = (zero, values[g] * scale) if values[g] >= 0 else (zero + values[g] * scale, -values[g] * scale)
            x, width = max(x, left), min(width, zero - left if values[g] < 0 else width)
            parts.append(_rect(x, y + s * thick, max(width, 1), thick - 3, COLOURS[s], ""))
            at, kind = (x + width + 5, "s") if values[g] >= 0 else (x - 5, "e")
            parts.append(_text(at, y + s * thick + 11, f"{values[g]:+.3f}", kind))
    parts += _legend(list(series), left, height - 8, span).parts
    return _svg(left + span + 70, height, parts)


def curves(
    title: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    x_label: str,
    y_label: str,
    marks: Mapping[str, float],
) -> str:
    """Lines over one horizontal axis; ``marks`` are vertical lines."""
    left, top, width, height = 62, 28, 560, 220
    points = [point for line in series.values() for point in line]
    x_high = max([1.0, *(x for x, _ in points), *marks.values()])
    y_high = max([1e-12, *(y for _, y in points)])

    def place(x: float, y: float) -> str:
        return f"{left + x / x_high * width:.1f},{top + height - y / y_high * height:.1f}"

    parts = [_text(0, 14, title, "t"), _line(left, top, left, top + height, _GREY)]
    parts.append(_line(left, top + height, left + width, top + height, _GREY))
    for tick in range(5):
        y, x = y_high * tick / 4, float(round(x_high * tick / 4))
        parts.append(_text(left - 6, top + height - height * tick / 4 + 4, f"{y:.3g}", "e"))
        parts.append(_text(left + x / x_high * width, top + height + 16, f"{x:.3g}", "m"))
    for i, line in enumerate(series.values()):
        path = " ".join(place(x, y) for x, y in line)
        colour, dashes = _stroke(i)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8"{dashes}/>')
    for name, x in marks.items():
        at = left + x / x_high * width
        parts += [_line(at, top, at, top + height, "#111827", "4 3"), _text(at + 4, top + 12, name, "s")]
    parts.append(_text(left + width / 2, top + height + 32, f"{x_label}; upwards: {y_label}", "m"))
    rows = _legend(list(series), left, top + height + 50, width)
    parts += rows.parts
    return _svg(left + width + 90, rows.bottom + 10, parts)


class _Legend(NamedTuple):
    parts: list[str]
    bottom: float
    """Its last line stands here."""


def _legend(names: Sequence[str], x: float, y: float, width: float) -> _Legend:
    """Names beside their strokes, in as many lines as the width asks for."""
    parts, at = [], x
    for i, name in enumerate(names):
        taken = 22 + 7 * len(shortened(name)) + 16
        if at > x and at + taken > x + width:
            at, y = x, y + _LEGEND_LINE
        colour, dashes = _stroke(i)
        stroke = f'<line x1="{at:.1f}" y1="{y - 4:.1f}" x2="{at + 18:.1f}" y2="{y - 4:.1f}" stroke="{colour}"'
        parts += [f'{stroke} stroke-width="3"{dashes}/>', _text(at + 22, y, shortened(name), "s")]
        at += taken
    return _Legend(parts, y)


def _stroke(number: int) -> tuple[str, str]:
    """Colour and dashes of a series: when the colours are used up, they come again in dashes."""
    dashes = _DASHES[number // len(COLOURS) % len(_DASHES)]
    return COLOURS[number % len(COLOURS)], f' stroke-dasharray="{dashes}"' if dashes else ""


def _diverging(position: float) -> str:
    """Blue at 0, white at 0.5, red at 1."""
    position = min(1.0, max(0.0, position))
    end = (59, 111, 182) if position < 0.5 else (200, 85, 61)
    share = abs(position - 0.5) * 2
    red, green, blue = (round(255 + (channel - 255) * share) for channel in end)
    return f"#{red:02x}{green:02x}{blue:02x}"


def shortened(text: str, limit: int = 26) -> str:
    """A label with its number, and the end of its name where it is long."""
    number, blank, name = text.partition(" ")
    if blank and number.isdecimal() and len(text) > limit:
        return f"{number} …{name[-(limit - len(number) - 2) :]}"
    return text if len(text) <= limit else "…" + text[-(limit - 1) :]


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}">{escape(text)}</text>'


def _rect(x: float, y: float, width: float, height: float, fill: str, inner: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height}" fill="{fill}">{inner}</rect>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, dashes: str = "") -> str:
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"{dashed}/>'


def _svg(width: float, height: float, parts: Sequence[str]) -> str:
    box = f'viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {box} role="img">{"".join(parts)}</svg>'
