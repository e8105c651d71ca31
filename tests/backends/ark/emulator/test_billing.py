from __future__ import annotations

from datetime import datetime
from decimal import Decimal

import msgspec
import pytest

from backends.ark.emulator.billing import BEIJING, Bill, preset_endpoint
from backends.ark.emulator.books import Charged
from backends.ark.emulator.settings import BillFaults, Billing

NOON_S = datetime(2026, 11, 25, 12, tzinfo=BEIJING).timestamp()
ALWAYS = (0.0, 2.0**40)


class Clock:
    now_s = NOON_S

    def __call__(self) -> float:
        return self.now_s


def charged(**changes: object) -> Charged:
    base: dict[str, object] = {
        "seq": 0, "server_id": "s", "client_request_id": None, "account": "default",
        "model": "doubao-seed-1-6-vision-250815", "endpoint": None, "service_tier": "default",
        "stream": False, "started_s": NOON_S - 5, "ended_s": NOON_S, "prompt_tokens": 1_000,
        "cached_tokens": 0, "image_tokens": 0, "completion_tokens": 10, "reasoning_tokens": 0,
        "state": "answered",
    }  # fmt: skip
    return msgspec.convert({**base, **changes}, Charged)


def bill(*rows: Charged, clock: Clock | None = None, **settings: object) -> Bill:
    made = Bill(msgspec.convert(settings, Billing), clock or Clock())
    for row in rows:
        made.add(row)
    return made


def late() -> Clock:
    clock = Clock()
    clock.now_s = NOON_S + 86_400
    return clock


def test_what_ended_within_five_minutes_is_one_row_for_each_kind_of_token() -> None:
    rows = [
        charged(ended_s=NOON_S),
        charged(ended_s=NOON_S + 299.9, completion_tokens=30, cached_tokens=400),
        charged(ended_s=NOON_S + 300),
    ]
    found = bill(*rows, clock=late()).details(*ALWAYS)
    seen = [(d.item.start_s - NOON_S, d.item.element, d.count, str(d.amount)) for d in found]
    assert sorted(seen) == [
        (0, "cached_input", 400, "0.000064"),
        (0, "input", 1_600, "0.001280"),
        (0, "output", 40, "0.000320"),
        (300, "input", 1_000, "0.000800"),
        (300, "output", 10, "0.000080"),
    ]


def test_other_bands_models_and_rates_are_other_rows() -> None:
    rows = [
        charged(),
        charged(prompt_tokens=32_001),
        charged(model="glm-4-7-251222"),
        charged(model="doubao-seed-2-1-turbo-260628"),
        charged(model="doubao-seed-2-1-turbo-260628", service_tier="fast"),
    ]
    found = bill(*rows, clock=late()).details(*ALWAYS)
    assert len(found) == len({row.id for row in found}) == 10


def test_money_has_six_decimals_and_a_month_is_cut_to_two() -> None:
    tiny = charged(model="doubao-seed-1-6-flash-250828", prompt_tokens=17, completion_tokens=1)
    found = {d.item.element: d.amount for d in bill(tiny, clock=late()).details(*ALWAYS)}
    assert found == {"input": Decimal("0.000003"), "output": Decimal("0.000002")}  # 2.55, 1.5
    dear = charged(prompt_tokens=31_000, completion_tokens=31_000)
    other = charged(model="glm-5-2-260617", prompt_tokens=1_000, completion_tokens=1_000)
    months = bill(dear, other, clock=late()).months(*ALWAYS)
    assert months == {
        "ark_bd": Decimal("0.27"),  # of 0.0248 + 0.2480
        "ark_third_party": Decimal("0.03"),  # of 0.008 + 0.028
    }


def test_a_row_appears_after_its_period_and_the_delay() -> None:
    clock = Clock()
    made = bill(charged(ended_s=NOON_S + 10), clock=clock, delay_s=600, split_delay_s=3_600)
    clock.now_s = NOON_S + 300 + 599
    assert made.details(*ALWAYS) == []
    clock.now_s = NOON_S + 300 + 600
    assert len(made.details(*ALWAYS)) == 2
    assert made.splits(*ALWAYS) == []
    clock.now_s = NOON_S + 300 + 3_600
    assert len(made.splits(*ALWAYS)) == 2


def test_a_row_is_divided_among_its_endpoints_to_the_last_digit() -> None:
    rows = [charged(endpoint=name, prompt_tokens=n) for name, n in (("ep-a", 1), ("ep-b", 1))]
    made = bill(*rows, charged(prompt_tokens=1), clock=late())
    (row, *_) = [d for d in made.details(*ALWAYS) if d.item.element == "input"]
    shares = [(ep, n, cny) for d, ep, n, cny in made.splits(*ALWAYS) if d.id == row.id]
    assert {ep for ep, _, _ in shares} == {
        "ep-a", "ep-b", preset_endpoint("doubao-seed-1-6-vision"),
    }  # fmt: skip
    assert sum(n for _, n, _ in shares) == row.count == 3
    assert sum(cny for _, _, cny in shares) == row.amount == Decimal("0.000002")


def test_usage_is_counted_by_the_hour_with_cached_tokens_among_the_input() -> None:
    rows = [charged(cached_tokens=600), charged(ended_s=NOON_S + 3_599), charged(endpoint="ep-a")]
    clock = late()
    made = bill(*rows, clock=clock, usage_delay_s=1_800)
    found = {u.endpoint: u for u in made.usage(*ALWAYS)}
    mine = found[preset_endpoint("doubao-seed-1-6-vision")]
    assert (mine.input_tokens, mine.cached_tokens, mine.output_tokens, mine.requests) == (
        2_000, 600, 20, 2,
    )  # fmt: skip
    assert found["ep-a"].requests == 1
    clock.now_s = NOON_S + 1_799
    assert made.usage(*ALWAYS) == []


def test_whoever_left_pays_for_what_was_generated() -> None:
    found = bill(charged(state="client_left", completion_tokens=3), clock=late()).details(*ALWAYS)
    assert {d.item.element: d.count for d in found} == {"input": 1_000, "output": 3}


@pytest.mark.parametrize(
    ("hours", "at", "amount"),
    [
        ("00:30-08:30", "00:29", "0.002000"),
        ("00:30-08:30", "00:30", "0.001000"),
        ("00:30-08:30", "08:30", "0.002000"),
        ("22:00-06:00", "23:00", "0.001000"),
        ("22:00-06:00", "05:59", "0.001000"),
        ("22:00-06:00", "06:00", "0.002000"),
    ],
)
def test_the_hour_of_the_end_counts(hours: str, at: str, amount: str) -> None:
    ended = datetime.fromisoformat(f"2026-11-25T{at}+08:00").timestamp()
    row = charged(model="deepseek-v4-1-flash-260910", ended_s=ended, completion_tokens=0)
    (found,) = bill(row, clock=late(), off_peak=hours).details(*ALWAYS)
    assert str(found.amount) == amount


def test_the_oldest_periods_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backends.ark.emulator.billing.PERIODS_MAX", 3)
    rows = [charged(ended_s=NOON_S + 300 * i, completion_tokens=0) for i in (1, 0, 2, 3, 4)]
    found = bill(*rows, clock=late()).details(*ALWAYS)
    assert [d.item.start_s - NOON_S for d in found] == [600, 900, 1_200]


# ---- a bill that is wrong


def crowd(**shares: float) -> Bill:
    rows = [charged(ended_s=NOON_S + 300 * i, completion_tokens=50 + i) for i in range(200)]
    return bill(*rows, clock=late(), faults={"seed": 4, **shares})


def test_a_faultless_bill_says_so() -> None:
    assert crowd().injected() == []
    assert len(crowd().details(*ALWAYS)) == 400


@pytest.mark.parametrize("kind", ["missing", "changed", "doubled", "foreign"])
def test_each_fault_changes_its_row_and_no_other(kind: str) -> None:
    right = {row.id: row for row in crowd().details(*ALWAYS)}
    wrong = crowd(**{kind: 0.1})
    injected = {each.id for each in wrong.injected()}
    assert {each.kind for each in wrong.injected()} == {kind}
    assert 20 <= len(injected) <= 60
    found = wrong.details(*ALWAYS)
    assert found == wrong.details(*ALWAYS), "the same bill however often it is read"
    by_id = {row.id: row for row in found}
    for name, row in right.items():
        if name not in injected:
            assert by_id[name] == row
        elif kind == "missing":
            assert name not in by_id
        elif kind == "changed":
            assert (by_id[name].count, by_id[name].amount) != (row.count, row.amount)
        else:
            assert by_id[name] == row
    extra = [row for row in found if row.id not in right]
    assert len(extra) == (len(injected) if kind in ("doubled", "foreign") else 0)


def test_all_faults_together_are_of_every_kind() -> None:
    found = crowd(missing=0.1, changed=0.1, doubled=0.1, foreign=0.1).injected()
    assert {each.kind for each in found} == {"missing", "changed", "doubled", "foreign"}


def test_settings_that_make_no_sense_are_refused() -> None:
    for wrong in ({"period_s": 0}, {"delay_s": -1}):
        with pytest.raises((ValueError, msgspec.ValidationError)):
            msgspec.convert(wrong, Billing)
    assert BillFaults().missing == 0
