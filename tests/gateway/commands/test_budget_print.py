from __future__ import annotations

import msgspec

from gateway.commands.budget_print import audit_json, audit_table, budgets_table
from gateway.ledger.budgets import AuditEntry
from gateway.ledger.views import Definition
from policies.budget import BudgetOptions
from policies.types import SoftLimit, Steer

BEFORE = Definition(
    limit_nano=5 * 10**9,
    mode="",
    generation="1",
    version=1,
    zone="UTC",
    start_day=1,
    options=BudgetOptions(),
)


def entry(act: str, before: Definition | None, after: Definition | None) -> AuditEntry:
    return AuditEntry(
        at_ms=1_795_338_000_000, who="ada", act=act, scope="tenant:a", period="day",
        before=before, after=after, posted_nano=10**9, held_nano=0,
    )  # fmt: skip


def test_the_trail_says_from_what_to_what() -> None:
    changed = msgspec.structs.replace
    trail = [
        entry("set", None, BEFORE),
        entry("raise", BEFORE, changed(BEFORE, limit_nano=6 * 10**9)),
        entry("freeze", BEFORE, changed(BEFORE, mode="F")),
        entry("set", BEFORE, changed(BEFORE, start_day=3, options=BudgetOptions(hard=False))),
        entry("reset", BEFORE, changed(BEFORE, generation="2")),
        entry("delete", BEFORE, None),
    ]
    plain = msgspec.json.decode(msgspec.json.encode(trail))
    lines = audit_table(plain).splitlines()[2:]
    assert "none -> 5.0" in lines[0]
    assert lines[0].startswith("2026-11-22T09:00:00+00:00  ada")
    assert "5.0 -> 6.0" in lines[1]
    assert "5.0 -> 5.0 frozen" in lines[2]
    assert 'start_day 1 -> 3, options {} -> {"hard":false}' in lines[3]
    assert "counts from nothing" in lines[4]
    assert "5.0 -> none" in lines[5]
    assert msgspec.json.decode(audit_json(plain)) == plain
    assert "ever changed" in audit_table([])


def test_a_list_notes_what_is_special() -> None:
    options = BudgetOptions(
        hard=False, pace=True, soft=(SoftLimit(at_percent=80, steer=Steer.CHEAPER),)
    )
    shown = budgets_table(
        [
            {
                "scope": "tenant:a", "period": "day", "limit_nano": 0, "posted_nano": 0,
                "held_nano": 0, "resets_at_s": None, "frozen": True,
                "options": msgspec.to_builtins(options),
            }
        ]
    )  # fmt: skip
    assert "frozen soft 80:cheaper pace" in shown
    assert "100 %" in shown
