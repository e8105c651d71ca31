"""A study as a sheet: what stands on it, in words and figures, before it is drawn anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Final
from zoneinfo import ZoneInfo

import msgspec

from gateway.tco import charts
from gateway.tco.charts import Bar, Line, Mark
from gateway.tco.gather import Traffic
from policies.tco import BASIS, Scenario, Study
from policies.tco_parts import MONTH_S, Server
from policies.types import NANO_PER_CNY

CASH_MONTHS: Final = 36
SHORT_S: Final = 7 * 86_400  # less than a week says nothing of the week
_SMALL_NANO: Final = 100 * NANO_PER_CNY  # below, the hundredths of a yuan are shown


class Context(msgspec.Struct, kw_only=True):
    """What a study was made with, for the reader of the sheet."""

    server: Server
    zone: str
    made: date
    bought: date
    version: str
    wait_s: float
    time_scale: int = 1
    slots_from_option: bool = False


class Table(msgspec.Struct, kw_only=True):
    title: str
    head: list[str]
    rows: list[list[str]]
    left: int = 1  # columns that are words


class Sheet(msgspec.Struct, kw_only=True):
    """Everything on the page. tiles: (what, figure, beside it). charts: SVG."""

    lang: str
    title: str
    period: str
    made: str
    verdict: str
    tiles: list[tuple[str, str, str]]
    charts: list[str]
    tables: list[Table]
    notes_title: str
    notes: list[str]


def sheet(study: Study, traffic: Traffic, context: Context, words: Mapping[str, str]) -> Sheet:
    """The sheet of a study in the language of `words`."""
    best = best_of(study)
    booked, zone = traffic.booked, ZoneInfo(context.zone)
    cards = ", ".join(sorted(booked.cards)) or "-"
    return Sheet(
        lang=words["lang"],
        title=words["title"],
        period=words["period"].format(
            first=_moment(booked.first_ms, zone),
            last=_moment(booked.last_ms, zone),
            zone=context.zone,
            rows=charts.grouped(booked.rows),
        ),
        made=words["made"].format(
            day=context.made.isoformat(), version=context.version, cards=cards
        ),
        verdict=_verdict(study, best, words),
        tiles=_tiles(study, best, context, words),
        charts=[
            _cost_chart(study, words),
            _cash_chart(study, best, context, words),
            _volume_chart(study, words),
            _sensitivity_chart(study, best, words),
        ],
        tables=[
            _scenarios(study, words),
            _all_local(study, words),
            _books(traffic, words),
            _assumed(traffic, context, words),
        ],
        notes_title=words["sure_title"],
        notes=_notes(study, traffic, context, words),
    )


def best_of(study: Study) -> Scenario:
    """The scenario that saves most; of equals the one with fewer servers."""
    return max(study.scenarios, key=lambda one: (one.saving_nano, -one.servers))


def yuan(nano: int) -> str:
    """Nano-CNY as yuan: whole, or to the hundredth when it is little."""
    places = Decimal("0.01") if 0 < abs(nano) < _SMALL_NANO else Decimal(1)
    return f"{(Decimal(nano) / NANO_PER_CNY).quantize(places, ROUND_HALF_EVEN):,}"


def plain(value: Decimal) -> str:
    """A figure of the settings: grouped, without zeros that say nothing."""
    return f"{value.normalize():,f}"


def percent(basis_points: int) -> str:
    return f"{Decimal(basis_points) * 100 / BASIS:.1f} %"


def servers(count: int, words: Mapping[str, str]) -> str:
    return words["server_1"] if count == 1 else words["server_n"].format(n=count)


def _cny(nano: int) -> int:
    return round(nano / NANO_PER_CNY)  # where a pixel lies, not what anything costs


def _verdict(study: Study, best: Scenario, words: Mapping[str, str]) -> str:
    said = _buy_or_rent(best, words)
    if study.span_s < SHORT_S:
        said += " " + words["verdict_short"].format(span=_span(study.span_s, words))
    return said


def _buy_or_rent(best: Scenario, words: Mapping[str, str]) -> str:
    n = servers(best.servers, words)
    if best.saving_nano > 0 and best.payback_months is not None and best.payback_day is not None:
        return words["verdict_buy"].format(
            n=n,
            saving=yuan(best.saving_nano),
            months=best.payback_months,
            day=best.payback_day.isoformat(),
        )
    return words["verdict_rent"].format(n=n, loss=yuan(-best.saving_nano))


def _tiles(
    study: Study, best: Scenario, context: Context, words: Mapping[str, str]
) -> list[tuple[str, str, str]]:
    n = servers(best.servers, words)
    share = Decimal(best.total_nano) * 100 / study.cloud_nano if study.cloud_nano else Decimal(0)
    paid = "-" if best.payback_day is None else best.payback_day.isoformat()
    return [
        (
            words["tile_cloud"],
            f"{yuan(study.cloud_nano)} CNY",
            words["tile_spread"].format(spread=yuan(study.spread_nano)),
        ),
        (
            words["tile_best"].format(n=n),
            f"{yuan(best.total_nano)} CNY",
            words["of_price"].format(share=f"{share:.0f}"),
        ),
        (words["tile_saving"], f"{yuan(best.saving_nano)} CNY", n),
        (
            words["tile_payback"],
            _months(best.payback_months, words),
            words["by_day"].format(day=paid),
        ),
        (
            words["tile_breakeven"],
            words["never"]
            if study.breakeven_requests is None
            else charts.short(_round(study.breakeven_requests)),
            words["requests_month"]
            + " · "
            + words["now_volume"].format(n=charts.short(_round(study.month_requests))),
        ),
        (
            words["tile_busy"].format(slots=best.servers * context.server.slots),
            percent(best.busy_bp),
            words["served_here"].format(share=f"{Decimal(BASIS - best.overflow_bp) / 100:.1f}"),
        ),
    ]


def _round(value: int) -> int:
    """To three figures, for a tile."""
    unit: int = 10 ** max(0, len(str(value)) - 3)
    return round(value / unit) * unit


def _months(months: Decimal | None, words: Mapping[str, str]) -> str:
    return words["never"] if months is None else words["months"].format(n=months)


# ------------------------------------------------------------------ charts


def _cost_chart(study: Study, words: Mapping[str, str]) -> str:
    whole = ((_cny(study.cloud_nano), charts.CLOUD),)
    bars = [Bar(words["cloud"], whole, yuan(study.cloud_nano))]
    for one in study.scenarios:
        parts = (
            (_cny(one.fixed_nano), charts.FIXED),
            (_cny(one.power_nano), charts.POWER),
            (_cny(one.overflow_nano), charts.OVERFLOW),
        )
        note = f"{words['col_overflow']} {percent(one.overflow_bp)}"
        bars.append(Bar(servers(one.servers, words), parts, yuan(one.total_nano), note))
    legend = [
        (words["cloud"], charts.CLOUD),
        (words["fixed"], charts.FIXED),
        (words["power"], charts.POWER),
        (words["overflow"], charts.OVERFLOW),
    ]
    return charts.stacked(words["chart_cost"], words["unit_month"], bars, legend)


def _cash_chart(study: Study, best: Scenario, context: Context, words: Mapping[str, str]) -> str:
    """Money that has left the house: nothing is written off here, a price is paid on its day."""
    price = best.servers * round(context.server.price_cny)
    monthly = study.cloud_nano - best.cash_nano  # power, upkeep and what overflows
    months = range(CASH_MONTHS + 1)
    cloud = tuple((n, _cny(n * study.cloud_nano)) for n in months)
    own = tuple((n, price + _cny(n * monthly)) for n in months)
    marks = []
    if best.payback_months is not None:
        at = round(best.payback_months)
        marks.append(Mark(at, f"{words['paid_back']}: {_months(best.payback_months, words)}"))
    drawn = [
        Line(words["cloud"], charts.SERIES[0], cloud),
        Line(servers(best.servers, words), charts.SERIES[1], own),
    ]
    return charts.lines(words["chart_cash"], words["unit_cny"], words["unit_months"], drawn, marks)


def _volume_chart(study: Study, words: Mapping[str, str]) -> str:
    shown = [point for point in study.volumes if point.factor_percent <= 200]
    drawn = [
        Line(
            words["cloud"],
            charts.SERIES[0],
            ((0, 0), *((point.requests, _cny(point.cloud_nano)) for point in shown)),
        )
    ]
    for number, one in enumerate(study.scenarios):
        line = tuple((point.requests, _cny(point.totals_nano[number])) for point in shown)
        colour = charts.SERIES[(number + 1) % len(charts.SERIES)]
        drawn.append(Line(servers(one.servers, words), colour, line))
    marks = [Mark(study.month_requests, words["now"])]
    if study.breakeven_requests is not None:
        marks.append(Mark(study.breakeven_requests, words["breakeven"]))
    return charts.lines(
        words["chart_volume"], words["unit_month"], words["unit_requests"], drawn, marks
    )


def _sensitivity_chart(study: Study, best: Scenario, words: Mapping[str, str]) -> str:
    by = {(one.what, one.percent): _cny(one.saving_nano) for one in study.sensitivities}
    pairs = [
        (words[what], by[what, 80], by[what, 125])
        for what in dict.fromkeys(one.what for one in study.sensitivities)
    ]
    pairs.sort(key=lambda pair: -abs(pair[2] - pair[1]))
    title = words["chart_sensitivity"].format(n=servers(best.servers, words))
    names = (words["less"], words["more"])
    return charts.diverging(title, words["unit_month"], _cny(best.saving_nano), pairs, names)


# ------------------------------------------------------------------ tables


def _scenarios(study: Study, words: Mapping[str, str]) -> Table:
    names = "servers busy overflow wait fixed power cloud total saving cash payback".split()
    rows = [
        [words["cloud"], "-", "-", "-", "-", "-", *[yuan(study.cloud_nano)] * 2, "-", "-", "-"],
        *(
            [
                servers(one.servers, words),
                percent(one.busy_bp),
                percent(one.overflow_bp),
                f"{one.wait_p99_ms / 1000:.1f}",
                yuan(one.fixed_nano),
                yuan(one.power_nano),
                yuan(one.overflow_nano),
                yuan(one.total_nano),
                yuan(one.saving_nano),
                yuan(one.cash_nano),
                _months(one.payback_months, words),
            ]
            for one in study.scenarios
        ),
    ]
    head = [words[f"col_{name}"] for name in names]
    return Table(title=words["table_servers"], head=head, rows=rows)


def _all_local(study: Study, words: Mapping[str, str]) -> Table:
    rows = [
        [
            servers(one.servers, words),
            percent(one.busy_bp),
            f"{one.wait_p99_ms / 1000:.1f}" if one.keeps_up else "-",
            yuan(one.total_nano),
            words["yes"] if one.keeps_up else words["no"],
        ]
        for one in study.all_local
    ]
    head = [words[f"col_{name}"] for name in "servers busy wait total keeps_up".split()]
    return Table(title=words["table_local"], head=head, rows=rows)


def _books(traffic: Traffic, words: Mapping[str, str]) -> Table:
    booked, grouped = traffic.booked, charts.grouped
    left_out = (booked.unanswered, booked.unpriced, booked.left_out)
    rows = [
        [words["books_requests"], grouped(booked.requests)],
        [words["books_local"], grouped(booked.local_requests)],
        [words["books_pinned"], grouped(booked.pinned)],
        [
            words["books_tokens"],
            f"{grouped(booked.prompt_tokens)}, {grouped(booked.completion_tokens)}",
        ],
        [words["books_local_cost"], f"{yuan(booked.local_nano)} CNY"],
        [words["books_cloud_cost"], f"{yuan(booked.cloud_nano)} CNY"],
        [words["books_unreconciled"], grouped(booked.unreconciled)],
        [words["books_left_out"], "; ".join(map(grouped, left_out))],
    ]
    return Table(
        title=words["table_books"], head=[words["col_what"], words["col_value"]], rows=rows
    )


def _assumed(traffic: Traffic, context: Context, words: Mapping[str, str]) -> Table:
    server, booked = context.server, traffic.booked
    cards = ", ".join(sorted(booked.cards)) or "-"
    models = ", ".join(sorted(booked.cloud_models)) or "-"
    settings, option = words["from_settings"], words["from_options"]
    rows = [
        [words["a_price"], f"{plain(server.price_cny)} CNY", settings],
        [words["a_residual"], f"{plain(server.residual_cny)} CNY", settings],
        [words["a_years"], plain(server.years), settings],
        [words["a_watts"], f"{plain(server.idle_watts)} W, {plain(server.load_watts)} W", settings],
        [words["a_kwh"], f"{plain(server.cny_per_kwh)} CNY/kWh", settings],
        [words["a_upkeep"], f"{plain(server.upkeep_cny_per_year)} CNY", settings],
        [
            words["a_slots"],
            str(server.slots),
            option if context.slots_from_option else words["from_workers"],
        ],
        [words["a_wait"], f"{context.wait_s:g} s", words["from_limits"]],
        [
            words["a_slot_time"],
            f"{float(traffic.prompt_ms):.3f} ms, {float(traffic.completion_ms):.2f} ms",
            words["from_rows"],
        ],
        [words["a_prices"], cards, words["from_card"].format(cards=cards, models=models)],
        [
            words["a_bought"],
            context.bought.isoformat(),
            words["from_today"] if context.bought == context.made else option,
        ],
    ]
    head = [words["col_what"], words["col_value"], words["col_source"]]
    return Table(title=words["table_assumed"], head=head, rows=rows)


def _notes(study: Study, traffic: Traffic, context: Context, words: Mapping[str, str]) -> list[str]:
    notes = [
        words["sure_span"].format(
            span=_span(study.span_s, words), times=f"{Decimal(MONTH_S) / study.span_s:,.1f}"
        ),
        words["sure_spread"].format(cloud=yuan(study.cloud_nano), spread=yuan(study.spread_nano)),
        words["sure_replay"].format(
            estimated=charts.grouped(traffic.booked.estimated),
            requests=charts.grouped(study.requests),
        ),
        words["sure_not"],
    ]
    if context.time_scale != 1:
        notes.insert(0, words["sure_scaled"].format(scale=context.time_scale))
    return notes


def _span(seconds: int, words: Mapping[str, str]) -> str:
    for name, size in (("days", 86_400), ("hours", 3_600)):
        if seconds >= 2 * size:
            return words[name].format(n=f"{seconds / size:.1f}")
    return words["minutes"].format(n=f"{seconds / 60:.1f}")


def _moment(ms: int, zone: ZoneInfo) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).astimezone(zone).strftime("%Y-%m-%d %H:%M")
