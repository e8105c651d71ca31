from __future__ import annotations

from xml.etree import ElementTree

import pytest

from gateway.tco.charts import Bar, Line, Mark, diverging, grouped, lines, short, stacked

SVG = "{http://www.w3.org/2000/svg}"


def parsed(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)  # noqa: S314 - made by us, a moment ago


def words(svg: str) -> list[str]:
    return [node.text or "" for node in parsed(svg).iter(f"{SVG}text")]


def heights(svg: str, colour: str) -> list[float]:
    return [
        float(node.get("height", 0))
        for node in parsed(svg).iter(f"{SVG}rect")
        if node.get("fill") == colour and node.get("height") != "11.0"  # not the legend's
    ]


def test_bars_are_as_tall_as_their_values() -> None:
    made = stacked(
        "Cost", "CNY",
        [Bar("a", ((100, "#111"), (50, "#222")), "150"), Bar("b", ((0, "#111"),), "0")],
        [("one", "#111"), ("two", "#222")],
    )  # fmt: skip
    first, second = heights(made, "#111")[0], heights(made, "#222")[0]
    assert first == pytest.approx(2 * second, rel=0.01)
    assert heights(made, "#111")[1] == 0
    assert {"Cost", "CNY", "150", "a", "b", "one", "two"} <= set(words(made))


def test_lines_cross_where_their_values_do() -> None:
    flat, steep = ((0, 50), (100, 50)), ((0, 0), (100, 100))
    made = lines("t", "CNY", "n", [Line("f", "#111", flat), Line("s", "#222", steep)],
                 [Mark(50, "even"), Mark(10**6, "far away")])  # fmt: skip
    drawn = [node.get("points", "").split() for node in parsed(made).iter(f"{SVG}polyline")]
    (left, level), (right, _) = [tuple(map(float, point.split(","))) for point in drawn[0]]
    (_, low), (_, high) = [tuple(map(float, point.split(","))) for point in drawn[1]]
    assert (low + high) / 2 == pytest.approx(level, abs=0.2)
    mark = next(n for n in parsed(made).iter(f"{SVG}line") if n.get("stroke-dasharray"))
    assert float(mark.get("x1", 0)) == pytest.approx((left + right) / 2, abs=0.2)
    assert "even" in words(made)
    assert "far away" not in words(made)  # beyond the axis


def test_bars_to_both_sides_start_at_the_base() -> None:
    made = diverging("t", "CNY", 100, [("power", 50, 200)], ("less", "more"))
    assert {"power", "50", "200", "100", "less", "more"} <= set(words(made))
    assert diverging("t", "CNY", 0, [("nothing", 0, 0)], ("a", "b"))  # no range: no division by it


def test_names_of_people_are_text_and_not_markup() -> None:
    made = stacked("<script>&", "CNY", [Bar('"><b>', ((1, "#111"),), "1")], [])
    assert "<script>&" in words(made)
    assert '"><b>' in words(made)


def test_nothing_at_all_can_be_drawn() -> None:
    assert parsed(stacked("t", "u", [], []))
    assert parsed(lines("t", "u", "x", []))


@pytest.mark.parametrize(
    ("value", "said"), [(0, "0"), (950, "950"), (20_000, "20k"), (1_500_000, "1.5M"), (10**9, "1G")]
)
def test_figures_of_an_axis(value: int, said: str) -> None:
    assert short(value) == said


def test_figures_are_grouped() -> None:
    assert grouped(1_234_567) == "1,234,567"
