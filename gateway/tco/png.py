"""The sheet as one picture: the page drawn as SVG, made into PNG by resvg (the extra `archive`).

resvg draws text with the fonts of the machine. Without any there would be no words, and without a
Chinese one no Chinese; both are looked for first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any, Final

from gateway.archive.extra import load
from gateway.tco.charts import FAINT, FONT, GRID, INK
from gateway.tco.sheet import Sheet, Table

WIDE: Final = 1200
MARGIN: Final = 40
_FONT_PLACES: Final = (
    "/usr/share/fonts",
    "/usr/local/share/fonts",
    "~/.fonts",
    "~/.local/share/fonts",
)
_FONT_KINDS: Final = (".ttf", ".otf", ".ttc")
_GOOD: Final = re.compile(
    r"(NotoSansCJK-(Regular|Bold)|DejaVuSans(-Bold)?|NotoSansSC-(Regular|Bold)|"
    r"wqy-(zenhei|microhei))\.(ttf|ttc|otf)",
    re.IGNORECASE,
)
_CHINESE: Final = (
    "cjk",
    "notosanssc",
    "notoserifsc",
    "sourcehan",
    "wqy",
    "droidsansfallback",
    "uming",
)


class NoFont(Exception):
    """The words of the page could not be drawn. The text says which package has a font."""


def png(sheet: Sheet, fonts: Sequence[Path] | None = None) -> bytes:
    """The page as PNG. fonts: those to look among; None: the machine's. Raises NoFont,
    ExtraMissing."""
    here = list(find_fonts()) if fonts is None else list(fonts)
    check_fonts(sheet.lang, here)
    resvg: Any = load("resvg_py")
    few = [str(path) for path in chosen(here)]
    return bytes(
        resvg.svg_to_bytes(
            svg_string=svg(sheet),
            background="#ffffff",
            zoom=2,
            dpi=96.0,
            skip_system_fonts=bool(few),
            font_files=few or None,
        )
    )


def chosen(fonts: Sequence[Path]) -> list[Path]:
    """Of these fonts the ones that are good for the page; none of them: all have to be loaded."""
    return [path for path in fonts if _GOOD.fullmatch(path.name)]


def find_fonts() -> Iterator[Path]:
    """Font files where Linux keeps them."""
    for place in _FONT_PLACES:
        for path in Path(place).expanduser().rglob("*"):
            if path.suffix.lower() in _FONT_KINDS:
                yield path


def check_fonts(lang: str, fonts: Sequence[Path]) -> None:
    """Raises NoFont."""
    if not fonts:
        raise NoFont("this machine has no fonts to draw with: apt-get install fonts-dejavu-core")
    names = [path.name.lower().replace("-", "") for path in fonts]
    if lang.startswith("zh") and not any(word in name for name in names for word in _CHINESE):
        raise NoFont("no Chinese font was found here: apt-get install fonts-noto-cjk")


def svg(sheet: Sheet) -> str:
    """The page as one SVG: head, verdict, tiles, charts, the tables of servers, notes."""
    draw = _Drawing()
    draw.words(sheet.title, size=26, weight=600)
    draw.words(sheet.period, fill=FAINT)
    draw.words(sheet.made, fill=FAINT)
    draw.space(10)
    draw.verdict(sheet.verdict)
    draw.tiles(sheet.tiles)
    draw.charts(sheet.charts)
    for table in sheet.tables[:2]:
        draw.table(table)
    draw.words(sheet.notes_title, size=14, weight=600)
    for note in sheet.notes:
        draw.words("· " + note, size=12, fill=FAINT)
    draw.space(MARGIN - 10)
    return draw.done()


class _Drawing:
    """Things below each other."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._y = float(MARGIN)

    def space(self, tall: float) -> None:
        self._y += tall

    def words(self, text: str, *, size: int = 13, fill: str = INK, weight: int = 400) -> None:
        for line in wrapped(text, size, WIDE - 2 * MARGIN):
            self._y += size * 1.5
            self._put(MARGIN, self._y, line, size=size, fill=fill, weight=weight)

    def verdict(self, text: str) -> None:
        lines = wrapped(text, 17, WIDE - 2 * MARGIN - 40)
        tall = 26 * len(lines) + 18
        self._box(MARGIN, self._y, WIDE - 2 * MARGIN, tall, "#eef4f9")
        self._box(MARGIN, self._y, 4, tall, "#2f5d8a")
        for number, line in enumerate(lines):
            self._put(MARGIN + 18, self._y + 30 + 26 * number, line, size=17)
        self._y += tall + 16

    def tiles(self, tiles: Sequence[tuple[str, str, str]]) -> None:
        wide = (WIDE - 2 * MARGIN + 10) / len(tiles) - 10
        for number, (what, figure, beside) in enumerate(tiles):
            x = MARGIN + number * (wide + 10)
            self._parts.append(
                f'<rect x="{x:.1f}" y="{self._y:.1f}" width="{wide:.1f}" height="92" '
                f'fill="none" stroke="{GRID}"/>'
            )
            self._put(x + 10, self._y + 24, what, size=11, fill=FAINT)
            self._put(x + 10, self._y + 52, figure, size=19, weight=600)
            self._put(x + 10, self._y + 76, beside, size=11, fill=FAINT)
        self._y += 92 + 26

    def charts(self, charts: Sequence[str]) -> None:
        wide, tall = (WIDE - 2 * MARGIN - 36) / 2, 310.0
        for number, chart in enumerate(charts):
            x = MARGIN + (number % 2) * (wide + 36)
            y = self._y + (number // 2) * (tall + 24)
            placed = chart.replace("<svg ", f'<svg x="{x:.1f}" y="{y:.1f}" ', 1)
            self._parts.append(
                placed.replace('width="560" height="320"', f'width="{wide:.1f}" height="{tall}"', 1)
            )
        self._y += (tall + 24) * -(-len(charts) // 2)

    def table(self, table: Table) -> None:
        self.words(table.title, size=14, weight=600)
        self._y += 6
        first = 170.0
        room = (WIDE - 2 * MARGIN - first) / max(1, len(table.head) - 1)
        for number, row in enumerate([table.head, *table.rows]):
            self._y += 21
            fill = INK if number else FAINT
            for column, cell in enumerate(row):
                x = MARGIN if not column else MARGIN + first + room * column
                anchor = "end" if column else "start"
                self._put(x, self._y, cell, size=12, fill=fill, anchor=anchor)
            self._parts.append(
                f'<line x1="{MARGIN}" y1="{self._y + 6:.1f}" x2="{WIDE - MARGIN}" '
                f'y2="{self._y + 6:.1f}" stroke="{GRID}"/>'
            )
        self._y += 18

    def done(self) -> str:
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDE}" height="{self._y:.0f}" '
            f'viewBox="0 0 {WIDE} {self._y:.0f}" font-family="{FONT}">{"".join(self._parts)}</svg>'
        )

    def _box(self, x: float, y: float, wide: float, tall: float, colour: str) -> None:
        self._parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{wide:.1f}" height="{tall:.1f}" '
            f'fill="{colour}"/>'
        )

    def _put(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: int,
        fill: str = INK,
        weight: int = 400,
        anchor: str = "start",
    ) -> None:
        self._parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{fill}" '
            f'font-weight="{weight}" text-anchor="{anchor}">{escape(text)}</text>'
        )


def wrapped(text: str, size: int, wide: float) -> list[str]:
    """Text in lines that fit, by how wide letters are about: Chinese is square, others half that.
    Chinese may break anywhere, other words only between them."""
    lines, line, used = [], "", 0.0
    for piece in _pieces(text):
        width = sum(size * (1.0 if ord(letter) > 0x2E80 else 0.56) for letter in piece)
        if line and used + width > wide:
            lines.append(line.rstrip())
            line, used = "", 0.0
            piece = piece.lstrip()
        line += piece
        used += width
    return [*lines, line.rstrip()] if line else lines


def _pieces(text: str) -> Iterator[str]:
    word = ""
    for letter in text:
        if ord(letter) > 0x2E80:
            if word:
                yield word
            word = ""
            yield letter
        elif letter == " ":
            yield word + " "
            word = ""
        else:
            word += letter
    if word:
        yield word
