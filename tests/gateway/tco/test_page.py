from __future__ import annotations

from html.parser import HTMLParser

import pytest
from msgspec.structs import replace

from gateway.tco.page import html
from tests.gateway.tco.kit import page

_EMPTY = {"meta"}


class Checked(HTMLParser):
    """Whether tags are closed in order, and every word and address on the page."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in _EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)  # <rect ... /> of a chart

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def checked(text: str) -> Checked:
    found = Checked()
    found.feed(text)
    assert found.open == []
    return found


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_the_page_holds_everything_and_loads_nothing(lang: str) -> None:
    sheet = page(lang)
    found = checked(html(sheet))
    assert found.tags.count("svg") == 4
    assert found.tags.count("table") == 4
    assert found.addresses == []
    assert "script" not in found.tags
    for said in (sheet.title, sheet.verdict, *sheet.notes, *(tile[1] for tile in sheet.tiles)):
        assert said in found.words


def test_names_from_the_ledger_cannot_be_markup() -> None:
    sheet = replace(page(), made='<script>alert(1)</script> card "x"')
    found = checked(html(sheet))
    assert "script" not in found.tags
    assert sheet.made in found.words
