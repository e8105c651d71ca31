from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.archive.columns import to_line
from gateway.archive.files import ArchiveError, Files, table_of
from gateway.archive.layout import file_of
from gateway.archive.query import Query, window_of
from gateway.facts import new_request_id
from gateway.ledger.entries import Entry
from gateway.ledger.rows import Outcome, Row, RowState
from gateway.reports.drift import image_drift
from gateway.reports.report import GROUPS, summarise
from gateway.reports.utilisation import used
from policies.types import Site
from tests.gateway.ledger.kit import row

ZONES = ["UTC", "Asia/Shanghai", "Asia/Kathmandu", "America/St_Johns"]
DAY_MS = 86_400_000


def entries_of(rows: Sequence[Row]) -> list[Entry]:
    return [Entry(id=f"{number + 1}-0", row=one) for number, one in enumerate(rows)]


def put(folder: Path, entries: Sequence[Entry]) -> tuple[Files, str | None]:
    """An archive of one batch, and its cursor."""
    files = Files.open(folder)
    if not entries:
        return files, None
    upto = entries[-1].id
    files.write(file_of("2026-11-22", "cloud", None, upto), [to_line(one) for one in entries])
    return files, upto


ROWS = st.lists(
    st.builds(
        lambda number, **more: row(f"yz-{number}.0", **more),
        st.integers(0, 50),
        at_ms=st.integers(1_795_305_600_000 - DAY_MS, 1_795_305_600_000 + 2 * DAY_MS),
        tenant=st.sampled_from(["acme", "深圳", "o'neil", ""]),
        site=st.sampled_from(Site),
        target=st.sampled_from(["w1", "doubao"]),
        label=st.sampled_from(["", "public", "sensitive"]),
        reason=st.sampled_from(["local_fits", "pool_full"]),
        prompt_tokens=st.integers(0, 10**6),
        completion_tokens=st.integers(0, 10**6),
        image_tokens=st.integers(0, 10**6),
        image_tokens_expected=st.integers(0, 10**6),
        slot_ms=st.integers(0, 10**7),
        slots=st.integers(0, 64),
        marginal_nano=st.integers(0, 10**12),
        cost_nano=st.integers(-(10**12), 10**15),
        cloud_nano=st.none() | st.integers(0, 10**15),
        final=st.booleans(),
        state=st.sampled_from(list(RowState)),
    ),
    max_size=30,
)


@given(rows=ROWS, split=st.integers(0, 30), by=st.sampled_from(GROUPS), zone=st.sampled_from(ZONES))
async def test_the_sql_says_what_the_rows_say(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Row], split: int, by: str, zone: str
) -> None:
    """Half archived, half hot: the report is the one that is made of the rows themselves."""

    async def stream() -> AsyncIterator[Row]:
        for one in rows:
            yield one

    entries = entries_of(rows)
    files, cursor = put(tmp_path_factory.mktemp("archive"), entries[:split])
    with Query(files, cursor, entries[split:]) as query:
        found = query.report(by=by, zone=ZoneInfo(zone))
        assert query.sums() == (len(rows), sum(one.posted_nano for one in rows))
        assert query.used() == await used(stream())
        assert query.drift() == await image_drift(stream())
    assert found == await summarise(stream(), by=by, zone=ZoneInfo(zone))


def full(number: int, **more: Any) -> Row:
    """A row in which no field has its default."""
    known: dict[str, Any] = {
        "at_ms": 1_795_338_000_000 + number, "org": "org", "subject": "s", "key_id": "k",
        "served_model": "glm-4.6v", "label": "internal", "label_source": "default",
        "stream": True, "final": False, "prompt_tokens": 1, "cached_tokens": 2, "image_tokens": 3,
        "completion_tokens": 4, "reasoning_tokens": 5, "slot_ms": 6, "held_nano": 7,
        "claimed_nano": 8, "cloud_nano": 9, "card_version": "ark-2026-10", "tier": "flat",
        "state": RowState.UNRECONCILED, "outcome": Outcome.BROKEN, "finish_reason": "stop",
        "flags": ("a", "b"), "ttft_ms": 1.5, "total_ms": 2.5, "attempts": 3,
    }  # fmt: skip
    return row(f"yz-{number}.1", 10, **{**known, **more})


def test_every_field_of_a_row_comes_back(tmp_path: Path) -> None:
    one = full(1)
    files, cursor = put(tmp_path, entries_of([one, full(2)]))
    with Query(files, cursor) as query:
        assert list(query.rows()) == [one, full(2)]
        assert query.find("yz-2") == [full(2)]
        assert query.find("nobody") == []


def test_an_old_file_reads_with_the_columns_of_now(tmp_path: Path) -> None:
    """A file of an earlier version has fewer columns; one of a later version has more."""
    first_line, second_line = (to_line(one) for one in entries_of([full(1), full(2)]))
    older = table_of([first_line]).drop_columns(
        ["tier", "claimed_nano", "flags", "label", "reasoning_tokens", "slots", "marginal_nano"]
    )
    newer = table_of([second_line]).append_column("carbon_g", pa.array([3], pa.int64()))
    for number, old in enumerate((older, newer)):
        file = file_of("2026-11-22", "cloud", f"{number}-0", f"{number + 1}-0")
        path = tmp_path / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(old, path)
    with Query(Files.open(tmp_path), "2-0") as query:
        first, second = query.rows()
        assert (first.tier, first.claimed_nano, first.flags, first.label) == ("", None, (), "")
        assert second == full(2)
        assert [line.group for line in query.report(by="label", zone=ZoneInfo("UTC")).lines] == [
            "internal",
            "none",
        ]


def test_use_and_drift_of_an_old_file(tmp_path: Path) -> None:
    """It knows of no slots, no power and no rule for pictures: one slot, and nothing."""
    lines = [to_line(one) for one in entries_of([full(1, site=Site.LOCAL), full(2)])]
    older = table_of(lines).drop_columns(["slots", "marginal_nano", "image_tokens_expected"])
    path = tmp_path / file_of("2026-11-22", "local", None, "2-0").path
    path.parent.mkdir(parents=True)
    pq.write_table(older, path)
    with Query(Files.open(tmp_path), "2-0") as query:
        (use,) = query.used().uses
        assert (use.answers, use.busy_us, use.carried_nano, use.marginal_nano) == (1, 6_000, 10, 0)
        assert query.drift() == []


def test_time_and_tenant_bound_what_is_seen(tmp_path: Path) -> None:
    rows = [full(n, at_ms=1000 * n, tenant="o'neil" if n % 2 else "b") for n in range(6)]
    files, cursor = put(tmp_path, entries_of(rows))
    hot = [Entry(id="9-0", row=full(9, at_ms=2500, tenant="o'neil"))]
    with Query(files, cursor, hot, since_ms=1000, until_ms=5000, tenant="o'neil") as query:
        assert query.files == 0  # its folder says another day, so it is not opened
        assert [one.at_ms for one in query.rows()] == [2500]
    with Query(files, cursor, hot, tenant="o'neil") as query:
        assert [one.at_ms for one in query.rows()] == [1000, 2500, 3000, 5000]


def test_questions_in_sql(tmp_path: Path) -> None:
    files, cursor = put(tmp_path, entries_of([full(1), full(2)]))
    with Query(files, cursor) as query:
        assert query.ask("SELECT count(*) AS n FROM rows") == (["n"], [(2,)])
        with pytest.raises(ArchiveError, match="nowhere"):
            query.ask("SELECT * FROM nowhere")
        with pytest.raises(ArchiveError, match=r"(?i)disabled|permission"):
            query.ask("SELECT * FROM read_csv('/etc/passwd')")


def test_no_archive_and_nothing_hot() -> None:
    with Query(None, None) as query:
        assert query.sums() == (0, 0)
        assert list(query.rows()) == []


def test_an_id_says_when_its_request_came() -> None:
    since, until = window_of(new_request_id())
    assert since is not None
    assert until is not None
    assert until - since == 2 * DAY_MS
    assert window_of("yz-1") == (None, None)
    assert window_of("x" * 35) == (None, None)
    assert window_of("yz-" + "z" * 32) == (None, None)
