"""Charts as SVG text: the same drawing stands in the HTML page and in the PNG.

Lines, stacked bars and diverging bars, each with a title, labelled axes, units and a legend. Values
are whole units of whatever the axis says; where a pixel lies is a matter of floats, money is not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import msgspec

FONT = (
    "'Noto Sans CJK SC','Noto Sans SC','Source Han Sans SC','PingFang SC','Microsoft YaHei',"
    "'WenQuanYi Zen Hei','DejaVu Sans',Arial,sans-serif"
)
INK, FAINT, GRID = "#1f2933", "#64748b", "#e2e8f0"
CLOUD, FIXED, POWER, OVERFLOW, GOOD = "#c2553f", "#2f5d8a", "#d9a441", "#e3a08f", "#3d7a57"
SERIES = (CLOUD, "#2f5d8a", "#3d7a57", "#7a5aa6", "#8a6d3b")
WIDTH, HEIGHT = 560, 320
LEFT, RIGHT, TOP, BOTTOM = 78, 18, 58, 50


class Bar(msgspec.Struct, frozen=True):
    """One bar: its name, (value, colour) from the bottom up, and what it comes to, in words: the
    parts are rounded each, and their sum need not be the rounded whole."""

    name: str
    parts: tuple[tuple[int, str], ...]
    total: str
    note: str = ""


class Line(msgspec.Struct, frozen=True):
    """One line through points (x, y)."""

    name: str
    colour: str
    points: tuple[tuple[int, int], ...]


class Mark(msgspec.Struct, frozen=True):
    """A vertical line at x with a word on it."""

    x: int
    name: str


def stacked(title: str, unit: str, bars: Sequence[Bar], legend: Sequence[tuple[str, str]]) -> str:
    """Bars side by side, each built of parts. legend: (word, colour)."""
    totals = [sum(value for value, _ in bar.parts) for bar in bars]
    top, scale = _axis(max([*totals, 1]))
    room = (WIDTH - LEFT - RIGHT) / max(1, len(bars))
    drawn = [_head(title, unit), _legend(legend), _y_axis(top, scale)]
    for number, bar in enumerate(bars):
        x, y = LEFT + room * number + room * 0.2, float(HEIGHT - BOTTOM)
        for value, colour in bar.parts:
            tall = value / top * (HEIGHT - TOP - BOTTOM)
            y -= tall
            drawn.append(_box(x, y, room * 0.6, tall, colour))
        middle = LEFT + room * (number + 0.5)
        drawn.append(_text(middle, y - 6, bar.total, anchor="middle", weight="600"))
        drawn.append(_text(middle, HEIGHT - BOTTOM + 17, bar.name, anchor="middle"))
        drawn.append(_text(middle, HEIGHT - BOTTOM + 33, bar.note, anchor="middle", fill=FAINT))
    return _svg(title, drawn)


def lines(
    title: str,
    unit: str,
    x_unit: str,
    drawn_lines: Sequence[Line],
    marks: Sequence[Mark] = (),
) -> str:
    """Lines over a common x axis that begins at nothing."""
    x_most = max([x for line in drawn_lines for x, _ in line.points] + [1])
    x_top, x_scale = _axis(x_most, steps=6, snug=True)
    top, scale = _axis(max([y for line in drawn_lines for _, y in line.points] + [1]))

    def at(x: int, y: int) -> tuple[float, float]:
        wide, tall = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
        return LEFT + x / x_top * wide, HEIGHT - BOTTOM - y / top * tall

    drawn = [_head(title, unit), _y_axis(top, scale)]
    drawn.append(_legend([(line.name, line.colour) for line in drawn_lines]))
    for value in range(0, x_top + 1, x_scale):
        x, _ = at(value, 0)
        drawn.append(_text(x, HEIGHT - BOTTOM + 17, short(value), anchor="middle", fill=FAINT))
    drawn.append(_text(WIDTH - RIGHT, HEIGHT - 12, x_unit, anchor="end", fill=FAINT))
    for number, mark in enumerate(mark for mark in marks if mark.x <= x_top):
        x, _ = at(mark.x, 0)
        drawn.append(
            f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{HEIGHT - BOTTOM}" '
            f'stroke="{FAINT}" stroke-dasharray="4 3"/>'
        )
        right = x > WIDTH * 0.6
        drawn.append(
            _text(
                x + (-5 if right else 5), TOP + 12 + 15 * number, mark.name,
                anchor="end" if right else "start", fill=INK,
            )
        )  # fmt: skip
    for line in drawn_lines:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in line.points))
        drawn.append(
            f'<polyline points="{path}" fill="none" stroke="{line.colour}" stroke-width="2.4" '
            'stroke-linejoin="round"/>'
        )
    return _svg(title, drawn)


def diverging(
    title: str, unit: str, base: int, pairs: Sequence[tuple[str, int, int]], names: tuple[str, str]
) -> str:
    """What each assumption does to a figure: (name, with less of it, with more of it), around its
    value `base`. names: what less and more mean."""
    values = [base, *(value for _, a, b in pairs for value in (a, b))]
    low, high = min(values), max(values)
    pad = max(1, (high - low) // 8)
    low, high = low - pad, high + pad
    left = 150

    def at(value: int) -> float:
        return left + (value - low) / (high - low) * (WIDTH - left - RIGHT - 30)

    room = (HEIGHT - TOP - 34) / max(1, len(pairs))
    drawn = [_head(title, unit), _legend([(names[0], POWER), (names[1], FIXED)])]
    for number, (name, less, more) in enumerate(pairs):
        y = TOP + 8 + room * number
        drawn.append(_text(left - 10, y + room * 0.5, name, anchor="end"))
        for value, colour, shift in ((less, POWER, 0.12), (more, FIXED, 0.46)):
            start, end = sorted((at(base), at(value)))
            drawn.append(_box(start, y + room * shift, max(end - start, 1.0), room * 0.3, colour))
            outside = at(value) >= at(base)
            drawn.append(
                _text(
                    at(value) + (4 if outside else -4), y + room * (shift + 0.25), grouped(value),
                    anchor="start" if outside else "end", fill=FAINT, size=10,
                )
            )  # fmt: skip
    drawn.append(
        f'<line x1="{at(base):.1f}" y1="{TOP}" x2="{at(base):.1f}" y2="{HEIGHT - 26}" '
        f'stroke="{INK}"/>'
    )
    drawn.append(_text(at(base), HEIGHT - 10, grouped(base), anchor="middle", weight="600"))
    return _svg(title, drawn)


def grouped(value: int) -> str:
    """1234567 as 1,234,567."""
    return f"{value:,}"


def short(value: int) -> str:
    """A round figure of an axis: 1,500,000 as 1.5M, 20,000 as 20k."""
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return str(value)


def _axis(most: int, *, steps: int = 5, snug: bool = False) -> tuple[int, int]:
    """A round end at or above `most`, and the distance of its grid lines."""
    raw = max(1, math.ceil(most / steps))
    size = 10 ** (len(str(raw)) - 1)
    step = next(step * size for step in (1, 2, 5, 10) if step * size >= raw)
    top = -(-most // step) * step
    return (top if snug else max(top, step)), step


def _y_axis(top: int, step: int) -> str:
    drawn = []
    for value in range(0, top + 1, step):
        y = HEIGHT - BOTTOM - value / top * (HEIGHT - TOP - BOTTOM)
        drawn.append(
            f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="{GRID}"/>'
        )
        drawn.append(_text(LEFT - 8, y + 4, short(value), anchor="end", fill=FAINT))
    return "".join(drawn)


def _head(title: str, unit: str) -> str:
    return _text(0, 16, title, size=15, weight="600") + _text(
        WIDTH, 16, unit, anchor="end", fill=FAINT
    )


def _legend(items: Sequence[tuple[str, str]]) -> str:
    drawn, x = [], 0.0
    for word, colour in items:
        drawn.append(_box(x, 28, 11, 11, colour) + _text(x + 16, 38, word, fill=FAINT))
        x += 34 + sum(12.5 if ord(letter) > 0x2E80 else 6.9 for letter in word)
    return "".join(drawn)


def _box(x: float, y: float, wide: float, tall: float, colour: str) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{wide:.1f}" height="{max(tall, 0):.1f}" '
        f'fill="{colour}"/>'
    )


def _text(
    x: float,
    y: float,
    words: str,
    *,
    anchor: str = "start",
    fill: str = INK,
    size: int = 12,
    weight: str = "400",
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{fill}" '
        f'font-size="{size}" font-weight="{weight}">{escape(words)}</text>'
    )


def _svg(title: str, drawn: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" height="{HEIGHT}" role="img" aria-label="{escape(title, quote=True)}" '
        f'font-family="{FONT}">{"".join(drawn)}</svg>'
    )
