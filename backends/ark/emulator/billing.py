"""The emulated bill: what was charged, in periods of five minutes, as it appears some time later.

    add      one paid answer, as it ended
    details  ListBillDetail: a row for each period, model, band and kind of tokens
    splits   ListSplitBillDetail: each of those, divided among the endpoints
    usage    GetInferenceUsage: tokens by hour, model and endpoint
    months   ListBill: what a month costs, truncated to the cent

Money of a row has six decimals, rounded half up; a month is truncated to two (docs of the billing
centre, 2025-12). How rows are rounded is not published. Everything is by the clock of Beijing.

A bill may be wrong. `BillFaults` drops rows, changes them or adds others, each row by its own draw
from the seed, so the bill stays the same however often it is read; `injected` says what was done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from decimal import ROUND_DOWN, ROUND_HALF_UP, Decimal
from hashlib import blake2b

import msgspec

from backends.ark.emulator import pricing
from backends.ark.emulator.books import Charged
from backends.ark.emulator.settings import BillFaults, Billing
from backends.ark.models import base_name

BEIJING = timezone(timedelta(hours=8))
# More than two months of five minutes. The oldest are forgotten, so that an emulator that runs for
# long does not grow.
PERIODS_MAX = 18_000
_SIX = Decimal("0.000001")
_TWO = Decimal("0.01")


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """What is added up: everything that a row of the bill has in common."""

    start_s: int  # of the period
    width_s: int
    band: pricing.Band
    element: str


class Detail(msgspec.Struct, kw_only=True):
    """A row of the bill. tokens: by endpoint; money in CNY, six decimals."""

    id: str
    item: Item
    tokens: dict[str, int]
    amount: Decimal

    @property
    def count(self) -> int:
        return sum(self.tokens.values())


class Injected(msgspec.Struct, frozen=True, kw_only=True):
    """One fault of the bill: `kind` is missing, changed, doubled or foreign."""

    kind: str
    id: str  # of the row that it concerns
    start_s: int
    model: str
    service: str
    input_over: str  # thousand tokens
    output_over: str
    element: str


class Used(msgspec.Struct, kw_only=True):
    """Tokens of one hour, model and endpoint."""

    start_s: int
    model: str
    endpoint: str
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    requests: int = 0


class Bill:
    """Everything that one account owes."""

    def __init__(self, settings: Billing, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._clock = clock
        self._periods: dict[int, dict[Item, dict[str, int]]] = {}  # by their start
        self._read: tuple[tuple[float, float, int, int], list[Detail]] | None = None
        self._count = 0
        self._used: dict[tuple[int, str, str], Used] = {}

    def add(self, row: Charged) -> None:
        """One paid answer. It belongs to the period in which it ended."""
        model = base_name(row.model)
        endpoint = row.endpoint or preset_endpoint(model)
        service = "fast" if row.service_tier == "fast" else "online"
        width_s = self._settings.period_s
        start_s = int(row.ended_s // width_s) * width_s
        for line in pricing.lines(
            model,
            service,
            self._hours(row.ended_s),
            prompt=row.prompt_tokens,
            cached=row.cached_tokens,
            completion=row.completion_tokens,
        ):
            item = Item(start_s=start_s, width_s=width_s, band=line.band, element=line.element)
            tokens = self._periods.setdefault(start_s, {}).setdefault(item, {})
            tokens[endpoint] = tokens.get(endpoint, 0) + line.tokens
        self._count += 1
        if len(self._periods) > PERIODS_MAX:
            oldest_s = min(self._periods)
            del self._periods[oldest_s]
            for key in [key for key in self._used if key[0] < oldest_s - 3600]:
                del self._used[key]
        hour_s = int(row.ended_s // 3600) * 3600
        used = self._used.setdefault(
            (hour_s, model, endpoint), Used(start_s=hour_s, model=model, endpoint=endpoint)
        )
        used.input_tokens += row.prompt_tokens
        used.cached_tokens += row.cached_tokens
        used.output_tokens += row.completion_tokens
        used.requests += 1

    def details(self, since_s: float, until_s: float) -> list[Detail]:
        """Rows of periods that begin in the range and have been billed by now, in order."""
        seen_s = int(self._clock() - self._settings.delay_s - self._settings.period_s)
        asked = (since_s, until_s, seen_s // self._settings.period_s, self._count)
        if self._read is None or self._read[0] != asked:  # the pages of one list are one reading
            starts = [s for s in self._periods if since_s <= s < until_s and s <= seen_s]
            rows = [row for start in starts for row in self._rows(start)]
            found = [bad for row in rows for bad in self._spoilt(row)]
            self._read = (asked, sorted(found, key=lambda row: (row.item.start_s, row.id)))
        return self._read[1]

    def splits(self, since_s: float, until_s: float) -> list[tuple[Detail, str, int, Decimal]]:
        """Each row of the bill by endpoint: (row, endpoint, tokens, money). They come later."""
        seen_s = self._clock() - self._settings.split_delay_s - self._settings.period_s
        return [
            (row, *share)
            for row in self.details(since_s, until_s)
            if row.item.start_s <= seen_s
            for share in _shares(row)
        ]

    def usage(self, since_s: float, until_s: float) -> list[Used]:
        """Hours that begin in the range; of the current one what is known by now."""
        seen_s = self._clock() - self._settings.usage_delay_s
        rows = [row for (at, _, _), row in self._used.items() if since_s <= at < until_s]
        found = [row for row in rows if row.start_s <= seen_s]
        return sorted(found, key=lambda row: (row.start_s, row.model, row.endpoint))

    def months(self, since_s: float, until_s: float) -> dict[str, Decimal]:
        """What a time costs by product, truncated to the cent."""
        totals: dict[str, Decimal] = {}
        for row in self.details(since_s, until_s):
            product = product_of(row.item.band.model)
            totals[product] = totals.get(product, Decimal(0)) + row.amount
        return {name: total.quantize(_TWO, ROUND_DOWN) for name, total in totals.items()}

    def injected(self) -> list[Injected]:
        """Every fault of the whole bill as it stands."""
        rows = [row for start in self._periods for row in self._rows(start)]
        found = [(row, self._fault(row)) for row in rows]
        return [
            Injected(
                kind=kind,
                id=row.id,
                start_s=row.item.start_s,
                model=row.item.band.model,
                service=row.item.band.service,
                input_over=str(row.item.band.input_over),
                output_over=str(row.item.band.output_over),
                element=row.item.element,
            )
            for row, kind in found
            if kind
        ]

    def _hours(self, at_s: float) -> str:
        now = datetime.fromtimestamp(at_s, UTC).astimezone(BEIJING).strftime("%H:%M")
        start, _, end = self._settings.off_peak.partition("-")
        if start <= end:
            return "off" if start <= now < end else "peak"
        return "off" if now >= start or now < end else "peak"

    def _rows(self, start_s: int) -> list[Detail]:
        """Of one period, as they should be."""
        return [self._detail(item, tokens) for item, tokens in self._periods[start_s].items()]

    def _detail(self, item: Item, tokens: dict[str, int]) -> Detail:
        band = item.band
        name = f"{item.start_s}/{band.model}/{band.service}/{band.hours}"
        name += f"/{band.input_over}/{band.output_over}/{item.element}"
        exact = band.price(item.element) * sum(tokens.values()) / 1000
        return Detail(
            id="Detail" + blake2b(name.encode(), digest_size=8).hexdigest(),
            item=item,
            tokens=tokens,
            amount=exact.quantize(_SIX, ROUND_HALF_UP),
        )

    # ------------------------------------------------------------ a bill that is wrong

    def _fault(self, row: Detail) -> str:
        """What is wrong with a row; nothing: it is right."""
        faults = self._settings.faults
        drawn = _draw(faults, row.id)
        for kind in ("missing", "changed", "doubled", "foreign"):
            share: float = getattr(faults, kind)
            if drawn < share:
                return kind
            drawn -= share
        return ""

    def _spoilt(self, row: Detail) -> Iterator[Detail]:
        """The row as it stands in the bill: not at all, as it should be, or with company."""
        kind = self._fault(row)
        if kind == "missing":
            return
        if kind == "changed":
            yield _changed(self._settings.faults, row)
            return
        yield row
        if kind == "doubled":
            yield msgspec.structs.replace(row, id=row.id + "x")
        elif kind == "foreign":
            tokens = {"ep-20260101000000-other": 1000 + row.count}
            other = self._detail(row.item, tokens)
            yield msgspec.structs.replace(other, id=row.id + "y")


def product_of(model: str) -> str:
    """Under which product a model is billed. Third-party models are another one; what it is called
    is not published."""
    return "ark_bd" if model.startswith("doubao") else "ark_third_party"


def preset_endpoint(model: str) -> str:
    """The endpoint behind a Model ID, which nobody has made (`ep-m-...`)."""
    tail = blake2b(model.encode(), digest_size=4).hexdigest()[:5]
    return f"ep-m-20260101000000-{tail}"


def _draw(faults: BillFaults, name: str) -> float:
    digest = blake2b(name.encode(), key=str(faults.seed).encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big") / 2**56


def _changed(faults: BillFaults, row: Detail) -> Detail:
    """More tokens, fewer, or the same ones at another price: as the draw has it."""
    how = int(_draw(faults, row.id + "/how") * 3)
    if how == 2:
        more = max((row.amount / 10).quantize(_SIX, ROUND_HALF_UP), 3 * _SIX)
        return msgspec.structs.replace(row, amount=row.amount + more)
    step = max(2, row.count // 7)
    tokens = dict(row.tokens)
    for endpoint, count in sorted(tokens.items(), key=lambda it: -it[1])[:1]:
        tokens[endpoint] = count + step if how == 1 or count <= step else count - step
    exact = row.item.band.price(row.item.element) * sum(tokens.values()) / 1000
    return msgspec.structs.replace(row, tokens=tokens, amount=exact.quantize(_SIX, ROUND_HALF_UP))


def _shares(row: Detail) -> Iterator[tuple[str, int, Decimal]]:
    """A row by endpoint; the last one takes what rounding leaves, so the shares are the whole."""
    left = row.amount
    last = len(row.tokens) - 1
    for i, (endpoint, tokens) in enumerate(sorted(row.tokens.items())):
        share = (row.amount * tokens / row.count).quantize(_SIX, ROUND_HALF_UP)
        share = left if i == last else share
        left -= share
        yield endpoint, tokens, share
