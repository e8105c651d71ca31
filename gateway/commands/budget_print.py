"""What `yuzui budget` prints: tables for people, exact JSON for programs."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec

from gateway.commands.tables import table
from policies.budget import cny

_MODES = {"": "", "S": "soft", "F": "frozen"}


def budgets_json(budgets: list[dict[str, Any]]) -> str:
    """Amounts in CNY as exact decimal numbers, and in nano-CNY; moments in ISO 8601."""
    plain = [
        {
            "scope": b["scope"],
            "period": b["period"],
            "zone": b["zone"],
            "start_day": b["start_day"],
            "limit": msgspec.Raw(cny(b["limit_nano"]).encode()),
            "posted": msgspec.Raw(cny(b["posted_nano"]).encode()),
            "held": msgspec.Raw(cny(b["held_nano"]).encode()),
            "limit_nano": b["limit_nano"],
            "posted_nano": b["posted_nano"],
            "held_nano": b["held_nano"],
            "resets_at": _moment(b["resets_at_s"]),
            "frozen": b["frozen"],
            "options": b["options"],
        }
        for b in budgets
    ]
    return msgspec.json.format(msgspec.json.encode(plain), indent=2).decode()


def budgets_table(budgets: list[dict[str, Any]]) -> str:
    if not budgets:
        return "no budgets; `yuzui budget set backend:cloud --limit-cny 50 --period day` sets one"
    rows = [
        [
            b["scope"],
            b["period"],
            cny(b["limit_nano"]),
            cny(b["posted_nano"]),
            cny(b["held_nano"]),
            f"{_used(b):.0f} %",
            _moment(b["resets_at_s"]) or "never",
            _notes(b),
        ]
        for b in budgets
    ]
    head = ["budget", "period", "limit CNY", "posted", "held", "used", "resets at", "notes"]
    return table(head, rows, left=2)


def _used(budget: dict[str, Any]) -> float:
    used = budget["posted_nano"] + budget["held_nano"]
    return 100.0 * used / budget["limit_nano"] if budget["limit_nano"] else 100.0


def _notes(budget: dict[str, Any]) -> str:
    options = budget["options"]
    notes = ["frozen"] if budget["frozen"] else []
    if not options.get("hard", True):
        notes.append("soft")
    notes += [f"{step['at_percent']}:{step['steer']}" for step in options.get("soft", ())]
    if options.get("pace"):
        notes.append("pace")
    return " ".join(notes) or "-"


def audit_json(trail: list[dict[str, Any]]) -> str:
    return msgspec.json.format(msgspec.json.encode(trail), indent=2).decode()


def audit_table(trail: list[dict[str, Any]]) -> str:
    if not trail:
        return "no budget was ever changed here"
    rows = [
        [
            _moment(entry["at_ms"] // 1000) or "",
            entry["who"],
            entry["act"],
            entry["scope"],
            entry["period"],
            _change(entry["before"], entry["after"]),
            cny(entry["posted_nano"]),
        ]
        for entry in trail
    ]
    head = ["when", "who", "did", "budget", "period", "from -> to", "posted then"]
    return table(head, rows, left=6)


def _change(before: dict[str, Any] | None, after: dict[str, Any] | None) -> str:
    """What differs, in words: "limit 5.0 -> 6.0, zone UTC -> Asia/Shanghai"."""
    if before is None or after is None:
        return f"{_limit(before)} -> {_limit(after)}"
    found = []
    if _limit(before) != _limit(after):
        found.append(f"{_limit(before)} -> {_limit(after)}")
    for name in ("zone", "start_day", "options"):
        if before[name] != after[name]:
            old, new = (msgspec.json.encode(each[name]).decode() for each in (before, after))
            found.append(f"{name} {old} -> {new}")
    if not found and before["generation"] != after["generation"]:
        found.append("counts from nothing")
    return ", ".join(found) or "nothing"


def _limit(definition: dict[str, Any] | None) -> str:
    if definition is None:
        return "none"
    return f"{cny(definition['limit_nano'])} {_MODES[definition['mode']]}".strip()


def _moment(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat()
