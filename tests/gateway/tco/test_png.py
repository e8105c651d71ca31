from __future__ import annotations

import io
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from gateway.tco.png import NoFont, check_fonts, chosen, find_fonts, png, svg, wrapped
from tests.gateway.tco.kit import page

LATIN, CHINESE = Path("/f/DejaVuSans.ttf"), Path("/f/NotoSansCJK-Regular.ttc")


def test_the_page_as_a_picture() -> None:
    """Drawn with whatever fonts are here: what is tested is that something was drawn."""
    made = png(page(), fonts=[LATIN, CHINESE])
    with Image.open(io.BytesIO(made), formats=["PNG"]) as image:
        assert image.width == 2400
        assert image.height > 2000
        colours = image.convert("RGB").resize((60, 60)).getcolors(4096)
        assert colours is not None
        assert len(colours) > 20


def test_the_page_as_svg_says_everything() -> None:
    sheet = page("zh")
    root = ElementTree.fromstring(svg(sheet))  # noqa: S314 - made by us
    said = "".join(root.itertext())
    for words in (sheet.title, *(tile[1] for tile in sheet.tiles), sheet.tables[0].rows[1][7]):
        assert words in said


def test_without_a_font_it_says_which_package_has_one() -> None:
    with pytest.raises(NoFont, match="fonts-dejavu-core"):
        check_fonts("en", [])
    with pytest.raises(NoFont, match="fonts-noto-cjk"):
        check_fonts("zh-CN", [LATIN])
    check_fonts("en", [LATIN])
    check_fonts("zh-CN", [LATIN, CHINESE])


def test_few_fonts_are_loaded_where_the_good_ones_are_known() -> None:
    """All fonts of a desktop are hundreds of megabytes, and loading them takes seconds."""
    serif = Path("/f/NotoSerifCJK-Bold.ttc")
    assert chosen([serif, LATIN, CHINESE]) == [LATIN, CHINESE]
    assert chosen([serif]) == []


def test_fonts_are_files_of_fonts() -> None:
    assert all(path.suffix.lower() in (".ttf", ".otf", ".ttc") for path in find_fonts())


def test_lines_are_broken_between_words_and_anywhere_in_chinese() -> None:
    assert wrapped("one two three", 10, 50) == ["one two", "three"]
    assert wrapped("一二三四五", 10, 30) == ["一二三", "四五"]
    assert wrapped("", 10, 30) == []
    assert wrapped("unbreakable", 10, 5) == ["unbreakable"]
