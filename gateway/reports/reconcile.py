"""A day of the ledger against what Ark billed for it.

`reconcile_day` takes rows from anywhere (the ledger, or its archive) and the day's bill, and puts
both into the words of `policies.bill`. `corrections` turns what it found of open holds into rows.
Nothing here speaks to Ark: the bill comes in as `backends.ark.control` has read it, whose types are
only named here, because reading bills needs the vendor's SDK and serving does not.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from gateway.ledger.rows import Row, RowState
from policies.bill import (
    PERIOD_MS,
    Billed,
    Booked,
    Counted,
    Lane,
    Open,
    Options,
    Reconciled,
    Resolved,
    hour,
    period,
)
from policies.bill_prices import (
    Cards,
    band_named,
    cost_of,
    endpoint_models,
    place_name,
    undated,
)
from policies.price import PriceBook
from policies.reconcile import reconcile as match
from policies.types import NANO_PER_CNY, Site, Value

if TYPE_CHECKING:
    from backends.ark.control import Bill, BillRow, UsageRow

BEIJING = timezone(timedelta(hours=8))
DAY = timedelta(days=1)
# A row is looked up by its arrival and billed by its end. No attempt lasts longer than this by the
# shipped limits: ten minutes, and one for its books.
LASTS_MS = 660_000
UNSPLIT = "(not split)"  # the endpoint of what the split bill leaves out of an item
RECONCILED = "reconciled"  # the reason of a correction


class How(Value, frozen=True, kw_only=True):
    """book: the price cards.   endpoints: endpoint id (ep-...) -> the model whose prices it has.
    lasts_ms: longer than any attempt lasts.   until_ms: what ended later is not billed and counted
    yet; None: everything is."""

    book: PriceBook
    endpoints: Mapping[str, str] = {}
    lasts_ms: int = LASTS_MS
    until_ms: int | None = None


class Pulled(msgspec.Struct, kw_only=True):
    """What Ark says of a day. usage None: it was not asked for, or cannot be had."""

    bill: Bill
    splits: Bill
    usage: list[UsageRow] | None = None


class Day(Value, frozen=True, kw_only=True):
    """A reconciled day.

    unread:   rows of the books that name no card or no tier that is loaded; they are not in it
    others:   what the bill has for other products, in nano-CNY
    by_endpoint: whether the bill was split by endpoint
    rows:     of the open holds that were resolved, by hold id, for their corrections
    crossing: whether an open hold may have ended on another day
    to_ms:    where it was looked at to: the day's end, or an hour before which all is billed
    """

    day: date
    result: Reconciled
    unread: tuple[str, ...]
    others: Mapping[str, int]
    by_endpoint: bool
    counted: bool
    rows: Mapping[str, Row]
    crossing: bool
    to_ms: int

    @property
    def off_nano(self) -> int:
        """How far books and bill are apart, with nothing set off against anything: findings and
        what stays disputed, without their signs."""
        return sum(abs(found.nano) for found in self.result.findings) + abs(
            self.result.sums.disputed
        )

    @property
    def at_midnight(self) -> bool:
        """Whether a day beside this one may explain something: what does not match at an edge, or
        a hold that may have ended on the other side of it."""
        from_ms, to_ms = day_range_ms(self.day)
        edges = {from_ms, to_ms - PERIOD_MS}
        return self.crossing or any(each.period_ms in edges for each in self.result.findings)

    @property
    def agrees(self) -> bool:
        """Every item matches, every hold is resolved."""
        return not (self.result.findings or self.result.disputed or self.unread)


def day_range_ms(day: date) -> tuple[int, int]:
    """A day of Beijing as [from, to) in milliseconds since 1970."""
    start = datetime(day.year, day.month, day.day, tzinfo=BEIJING)
    return int(start.timestamp() * 1000), int((start + DAY).timestamp() * 1000)


async def reconcile_day(
    day: date,
    rows: Callable[[int, int], AsyncIterator[Row]],
    pull: Callable[[date], Awaitable[Pulled]],
    how: How,
) -> Day:
    """Compares a day of the books with its bill, and looks at the days beside it when something
    at midnight asks for that.

    rows: those that arrived in [from, to), milliseconds since 1970.   pull: what Ark says of a day
    """
    from_ms, to_ms = day_range_ms(day)
    one = {day: await pull(day)}
    found = await reconcile(day, rows(from_ms - how.lasts_ms, to_ms + PERIOD_MS), one, how)
    if not found.at_midnight:
        return found
    days = {each: await pull(each) for each in (day - DAY, day + DAY)} | one
    wide = rows(day_range_ms(day - DAY)[0] - how.lasts_ms, day_range_ms(day + DAY)[1])
    return await reconcile(day, wide, days, how)


async def reconcile(
    day: date,
    rows: AsyncIterator[Row],
    pulled: Mapping[date, Pulled],
    how: How,
) -> Day:
    """The same with what was pulled: the day itself, and perhaps those beside it."""
    from_ms = min(day_range_ms(each)[0] for each in pulled)
    to_ms = max(day_range_ms(each)[1] for each in pulled)
    by_endpoint = bool(pulled[day].splits.rows)
    counted = all(each.usage is not None for each in pulled.values())
    read = _Rows(how, by_endpoint=by_endpoint)
    async for row in rows:
        if from_ms - PERIOD_MS <= _ended_ms(row) < to_ms + PERIOD_MS:
            read.take(row)
    booked, holds, unread = read.done()
    items = [row for each in pulled.values() for row in _split(each.bill.rows, each.splits.rows)]
    usage = [row for each in pulled.values() for row in each.usage or ()]
    start_ms, end_ms = day_range_ms(day)
    if how.until_ms is not None:
        end_ms = min(end_ms, hour(how.until_ms))
    at = Options(from_ms=start_ms, to_ms=end_ms, counted=counted)
    result = match(
        booked,
        holds,
        [_billed(item, how.book, by_endpoint=by_endpoint) for item in items],
        _counted(usage, by_endpoint=by_endpoint),
        prices=Cards(how.book),
        options=at,
    )
    return Day(
        day=day,
        result=result,
        unread=tuple(unread),
        others={name: _nano(cny) for name, cny in sorted(pulled[day].bill.others.items())},
        by_endpoint=by_endpoint,
        counted=counted,
        rows={each.hold.hold_id: read.open[each.hold.hold_id] for each in result.resolved},
        crossing=any(_crosses(hold, at) for hold in holds),
        to_ms=end_ms,
    )


def _crosses(hold: Open, at: Options) -> bool:
    first, last = period(hold.from_ms - at.slack_ms), period(hold.to_ms + at.slack_ms)
    inside = at.covers(first) or at.covers(last)
    return inside and not (at.covers(first) and at.covers(last))


def corrections(day: Day) -> Iterator[Row]:
    """The row that each resolved hold is corrected by: what was used, and the difference."""
    for found in day.result.resolved:
        yield _correction(day.rows[found.hold.hold_id], found)


def _correction(row: Row, found: Resolved) -> Row:
    total_ms = row.total_ms
    if total_ms is None or period(row.at_ms + int(total_ms)) != found.period_ms:
        total_ms = found.period_ms + PERIOD_MS // 2 - row.at_ms  # so it is found there again
    fresh, cached, completion = found.tokens
    return replace(
        row,
        final=False,
        state=RowState.CORRECTION,
        reason=RECONCILED,
        flags=(f"by_{found.by}",),
        prompt_tokens=fresh + cached,
        cached_tokens=cached,
        completion_tokens=completion,
        posted_nano=found.difference_nano,
        held_nano=0,
        cloud_nano=found.difference_nano,
        tier=found.tier,
        total_ms=total_ms,
        drawn=(),
    )


class _Rows:
    """Rows of the books, sorted into what is known and what is open."""

    def __init__(self, how: How, *, by_endpoint: bool) -> None:
        self._how, self._by_endpoint = how, by_endpoint
        self._known: list[Row] = []
        self.open: dict[str, Row] = {}
        self._corrected: set[str] = set()

    def take(self, row: Row) -> None:
        if row.site is not Site.CLOUD:
            return
        if row.state == RowState.UNRECONCILED:
            self.open[row.hold_id] = row
            return
        if row.state == RowState.CORRECTION:
            self._corrected.add(row.hold_id)
        if row.prompt_tokens or row.completion_tokens:
            self._known.append(row)

    def done(self) -> tuple[list[Booked], list[Open], list[str]]:
        booked, unread = [], []
        for row in self._known:
            found = self._booked(row)
            if found is None:
                unread.append(row.hold_id)
            else:
                booked.append(found)
        holds = [self._open(row) for name, row in self.open.items() if name not in self._corrected]
        return booked, holds, unread

    def _booked(self, row: Row) -> Booked | None:
        lane = self._lane(row)
        card = self._how.book.version(row.card_version)
        band = band_named(card, lane.model, row.tier) if card is not None else None
        if band is None or card is None:
            return None
        fresh, cached, folded = row.prompt_tokens - row.cached_tokens, row.cached_tokens, 0
        if band.tier.cached_nano is None:  # no price of their own: billed among the others
            fresh, cached, folded = fresh + cached, 0, cached
        tokens = (fresh, cached, row.completion_tokens)
        return Booked(
            hold_id=row.hold_id,
            ended_ms=_ended_ms(row),
            lane=lane,
            tier=place_name(card, lane.model, band.where),
            tokens=tokens,
            nano=cost_of(band.tier, tokens),
            folded=folded,
        )

    def _open(self, row: Row) -> Open:
        known = row.total_ms is not None
        return Open(
            hold_id=row.hold_id,
            from_ms=_ended_ms(row) if known else row.at_ms,
            to_ms=_ended_ms(row) if known else row.at_ms + self._how.lasts_ms,
            lane=self._lane(row),
            posted_nano=row.posted_nano,
            card=row.card_version,
        )

    def _lane(self, row: Row) -> Lane:
        model = endpoint_models(self._how.endpoints, row.target, row.served_model)
        endpoint = row.target if row.target.startswith("ep-") else ""
        return Lane(undated(model), endpoint if self._by_endpoint else "")


def _ended_ms(row: Row) -> int:
    return row.at_ms + int(row.total_ms or 0)


def _split(bill: Iterable[BillRow], splits: Iterable[BillRow]) -> Iterator[BillRow]:
    """Items of the bill by endpoint, where it was split; what the split leaves out stays."""
    shares: dict[str, list[BillRow]] = {}
    for share in splits:
        shares.setdefault(share.id, []).append(share)
    for item in bill:
        parts = shares.get(item.id, [])
        yield from parts
        tokens = item.tokens - sum(part.tokens for part in parts)
        cny = item.list_cny - sum((part.list_cny for part in parts), Decimal(0))
        payable = item.payable_cny - sum((part.payable_cny for part in parts), Decimal(0))
        if not parts:
            yield item
        elif tokens or cny or payable:
            yield replace(item, tokens=tokens, list_cny=cny, payable_cny=payable, endpoint=UNSPLIT)


_KINDS = {"input": "input", "cached_input": "cached", "output": "output"}


def _billed(item: BillRow, book: PriceBook, *, by_endpoint: bool) -> Billed:
    at_ms = item.start_s * 1000
    return Billed(
        period_ms=at_ms,
        lane=Lane(item.model, item.endpoint if by_endpoint else ""),
        tier=place_name(
            book.at(at_ms), item.model, (item.service, item.input_over, item.output_over)
        ),
        kind=_KINDS[item.element],
        tokens=item.tokens,
        nano=_nano(item.list_cny),
        payable_nano=_nano(item.payable_cny),
    )


def _counted(usage: Iterable[UsageRow], *, by_endpoint: bool) -> Iterator[Counted]:
    sums: dict[tuple[int, Lane], list[int]] = {}
    for row in usage:
        key = (row.start_s * 1000, Lane(row.model, row.endpoint if by_endpoint else ""))
        into = sums.setdefault(key, [0, 0, 0, 0])
        fresh = row.input_tokens - row.cached_tokens
        for i, n in enumerate((fresh, row.cached_tokens, row.output_tokens, row.requests)):
            into[i] += n
    for (hour_ms, lane), (fresh, cached, out, requests) in sums.items():
        yield Counted(hour_ms=hour_ms, lane=lane, tokens=(fresh, cached, out), requests=requests)


def _nano(cny: Decimal) -> int:
    return int(cny * NANO_PER_CNY)
