"""Ledger rows as the traffic of a study, and what the books say of them."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from typing import Final

import msgspec

from gateway.ledger.rows import Row, RowState
from gateway.reports.report import open_rows
from policies.tco import Job
from policies.tco_parts import slot_ms_of
from policies.types import Reason, Site

JOBS_MAX: Final = 200_000  # the latest ones; more would make a study of minutes
SAMPLES_MAX: Final = 20_000  # more do not make two coefficients better


class NothingToStudy(Exception):
    """There is no traffic, or it does not say enough. The text says what is missing."""


class Booked(msgspec.Struct, kw_only=True):
    """What the books say of the span, as they say it. Money in nano-CNY.

    requests: exchanges that ended; local_requests: of those, here. unanswered: had no tokens.
    unpriced: answered here, and the card has no price to compare with. pinned: may not leave.
    unreconciled: posted at their upper bound until the bill is read.
    slot_ms: of local answers together.  estimated: answered in the cloud, their slot time learned
    """

    first_ms: int = 0
    last_ms: int = 0
    rows: int = 0
    requests: int = 0
    local_requests: int = 0
    unanswered: int = 0
    unpriced: int = 0
    pinned: int = 0
    unreconciled: int = 0
    estimated: int = 0
    local_nano: int = 0
    cloud_nano: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    slot_ms: int = 0
    workers: set[str] = set()
    cards: set[str] = set()
    cloud_models: set[str] = set()
    left_out: int = 0  # earlier requests beyond JOBS_MAX


class Traffic(msgspec.Struct, kw_only=True):
    """Jobs by arrival, how long they took to come, and the books' word on them.

    prompt_ms, completion_ms: of a slot per token, as learned from local answers
    """

    jobs: list[Job]
    span_s: int
    booked: Booked
    prompt_ms: Fraction
    completion_ms: Fraction


def gather(
    rows: Iterable[Row], *, time_scale: int = 1, token_ms: Fraction | None = None
) -> Traffic:
    """Rows as traffic.

    time_scale: how many times faster than the traffic they stand for the rows came (a replay)
    token_ms:   of a slot per completion token, where no local answer teaches it

    Raises NothingToStudy.
    """
    booked = Booked()
    finals: list[Row] = []
    corrections: dict[str, Row] = {}
    for row in rows:
        _count(booked, row)
        if row.state == RowState.CORRECTION:
            corrections[row.hold_id] = row
        elif row.final:
            finals.append(row)
    finals.sort(key=lambda row: row.at_ms)
    samples = [
        (row.prompt_tokens, row.completion_tokens, row.slot_ms)
        for row in finals
        if row.site is Site.LOCAL and row.slot_ms and row.completion_tokens
    ]
    rates = slot_ms_of(samples[-SAMPLES_MAX:]) if token_ms is None else (Fraction(0), token_ms)
    jobs = []
    for row in finals:
        job = _job(row, corrections, booked, rates)
        if job is not None:
            jobs.append(job)
    booked.left_out = max(0, len(jobs) - JOBS_MAX)
    jobs = jobs[-JOBS_MAX:]
    if len(jobs) < 2 or rates is None:
        raise NothingToStudy(_why(booked, rates))
    start = jobs[0].at_ms
    if time_scale != 1:
        jobs = [
            msgspec.structs.replace(job, at_ms=start + (job.at_ms - start) * time_scale)
            for job in jobs
        ]
    span_s = -(-(jobs[-1].at_ms - start) // 1000)
    return Traffic(
        jobs=jobs,
        span_s=max(1, span_s),
        booked=booked,
        prompt_ms=rates[0],
        completion_ms=rates[1],
    )


def _count(booked: Booked, row: Row) -> None:
    if not booked.rows:
        booked.first_ms = booked.last_ms = row.at_ms
    booked.rows += 1
    booked.first_ms = min(booked.first_ms, row.at_ms)
    booked.last_ms = max(booked.last_ms, row.at_ms)
    if row.site is Site.LOCAL:
        booked.local_nano += row.posted_nano
        booked.slot_ms += row.slot_ms
        booked.workers.add(row.target)
    else:
        booked.cloud_nano += row.posted_nano
        if row.target:
            booked.cloud_models.add(row.target)
    if row.card_version:
        booked.cards.add(row.card_version)
    booked.unreconciled += open_rows(row.state)
    if row.final and row.state != RowState.CORRECTION:
        booked.requests += 1
        booked.local_requests += row.site is Site.LOCAL
        booked.pinned += row.reason == Reason.PINNED
        booked.prompt_tokens += row.prompt_tokens
        booked.completion_tokens += row.completion_tokens


def _job(
    row: Row,
    corrections: dict[str, Row],
    booked: Booked,
    rates: tuple[Fraction, Fraction] | None,
) -> Job | None:
    """A request as a job; None when it was not answered or has no price to compare with."""
    billed = corrections.get(row.hold_id)
    if billed is not None:  # the bill knows what was used, and what it came to
        total = row.posted_nano + billed.posted_nano
        row = msgspec.structs.replace(billed, posted_nano=total)
    if not row.completion_tokens:
        booked.unanswered += 1
        return None
    here = row.site is Site.LOCAL
    price = row.cloud_nano if here else row.posted_nano
    if price is None:
        booked.unpriced += 1
        return None
    slot_ms = row.slot_ms if here else 0
    if not slot_ms:
        if rates is None:
            return None
        slot_ms = round(row.prompt_tokens * rates[0] + row.completion_tokens * rates[1])
        booked.estimated += 1
    return Job(at_ms=row.at_ms, slot_ms=slot_ms, cloud_nano=max(0, price), local=here)


def _why(booked: Booked, rates: tuple[Fraction, Fraction] | None) -> str:
    if rates is None and booked.requests > 1:
        return (
            f"none of {booked.requests} requests was answered here, so nothing says how long one "
            "would occupy a slot: give --token-ms (milliseconds of a slot per output token)"
        )
    return (
        f"a study needs at least two answered requests with a price to compare; of "
        f"{booked.requests} in the ledger {booked.unanswered} had no answer and "
        f"{booked.unpriced} no price in the cloud"
    )
