from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.archive.layout import (
    File,
    between,
    current,
    day_of,
    file_of,
    parse,
    parse_id,
    superseded,
)

IDS = st.tuples(st.integers(0, 10**13), st.integers(0, 10**6))


def file(after: int, upto: int, day: str = "2026-11-22", site: str = "cloud") -> File:
    return file_of(day, site, f"{after}-0" if after else None, f"{upto}-0")


@given(after=IDS, upto=IDS)
def test_a_name_says_which_rows_a_file_holds(after: tuple[int, int], upto: tuple[int, int]) -> None:
    made = File(folder="day=2026-11-22/site=local", day="2026-11-22", after=after, upto=upto)
    assert parse(made.path) == made
    assert parse_id(made.after_id) == after
    assert parse_id(made.upto_id) == upto


@pytest.mark.parametrize(
    "path",
    [
        "_books.json",
        "day=2026-11-22/site=cloud/0000000000000-000000_0000000000009-000000.parquet.part",
        "day=2026-11-22/site=cloud/notes.parquet",
        "x/day=2026-11-22/site=cloud/0000000000000-000000_0000000000009-000000.parquet",
    ],
)
def test_other_things_are_no_data_files(path: str) -> None:
    assert parse(path) is None


def test_only_committed_files_count() -> None:
    files = [file(0, 5), file(5, 9)]
    assert current(files, None) == []
    assert current(files, "5-0") == [files[0]]
    assert current(files, "9-0") == files


def test_a_merged_file_counts_instead_of_its_parts_in_its_folder_only() -> None:
    parts, merged, elsewhere = [file(0, 5), file(5, 9)], file(0, 9), file(0, 5, site="local")
    assert current([*parts, elsewhere, merged], "9-0") == [merged, elsewhere]
    assert superseded([*parts, elsewhere, merged], "9-0") == parts
    assert superseded([file(9, 12)], "9-0") == []  # of a batch that is under way


@given(cuts=st.lists(st.integers(1, 100), min_size=2, unique=True), seed=st.integers(0, 99))
def test_every_row_counts_once_at_every_moment_of_merging(cuts: list[int], seed: int) -> None:
    """Small files are deleted one by one, in any order, after the large one is there."""
    edges = [0, *sorted(cuts)]
    small = [file(a, b) for a, b in itertools.pairwise(edges)]
    whole, cursor = file(0, edges[-1]), f"{edges[-1]}-0"
    left = [*small, whole]
    random.Random(seed).shuffle(left)
    while True:
        ranges = [(one.after[0], one.upto[0]) for one in current(left, cursor)]
        counted = [n for a, b in ranges for n in range(a + 1, b + 1)]
        assert sorted(counted) == list(range(1, edges[-1] + 1))
        if left == [whole]:
            return
        left.remove(next(one for one in left if one != whole))


def test_days_are_utc_and_bound_what_is_opened() -> None:
    assert day_of(1_795_391_999_999) == "2026-11-22"
    assert day_of(1_795_392_000_000) == "2026-11-23"
    days = [file(0, 5, day=f"2026-11-{n}") for n in (21, 22, 23)]
    assert between(days, None, None) == days
    assert between(days, 1_795_391_999_999, 1_795_392_000_000) == days[1:2]
    assert between(days, 1_795_392_000_000, None) == days[2:]
    assert between(days, None, 1_795_305_600_000) == days[:1]
