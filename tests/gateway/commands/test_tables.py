from __future__ import annotations

import pytest

from gateway.commands.tables import table


def test_names_to_the_left_and_figures_to_the_right() -> None:
    assert table(["name", "n"], [["a", "1"], ["long one", "12"]]) == (
        "name       n\n"
        "--------  --\n"
        "a          1\n"
        "long one  12"
    )  # fmt: skip


def test_several_columns_of_names() -> None:
    lines = table(["a", "b", "c"], [["x", "yy", "1"]], left=2).splitlines()
    assert lines[0] == "a  b   c"
    assert lines[2] == "x  yy  1"


def test_a_chinese_character_is_two_columns_wide() -> None:
    lines = table(["名", "n"], [["东", "1"], ["ab", "2"], ["ｘ", "3"]]).splitlines()
    assert lines == ["名  n", "--  -", "东  1", "ab  2", "ｘ  3"]


def test_no_rows_are_a_head() -> None:
    assert table(["a", "b"], []) == "a  b\n-  -"


def test_no_line_ends_in_blanks() -> None:
    assert all(
        line == line.rstrip() for line in table(["a", "b"], [["x", ""], ["y", "z"]]).splitlines()
    )


def test_a_row_of_another_length_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="zip"):
        table(["a", "b"], [["x"]])
