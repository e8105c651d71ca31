from __future__ import annotations

from collections.abc import AsyncIterator

from gateway import history
from gateway.history import EVERY, History
from gateway.ledger.rows import Row
from policies.topup import SAMPLES_MIN
from tests.gateway.ledger.kit import row


def test_each_tenant_and_model_has_a_bound_of_its_own() -> None:
    past = History(1_000)
    for _ in range(SAMPLES_MIN):
        past.saw("a", "glm", 50, cut=False)
        past.saw("b", "glm", 200, cut=False)
    assert past.bound("a", "glm") == 100
    assert past.bound("b", "glm") == 400
    assert past.bound("a", "other") is None
    for _ in range(history.LENGTHS_MAX):
        past.saw("a", "glm", 900, cut=False)
    assert past.bound("a", "glm") == 1_000  # never above the most


def test_a_bound_that_is_too_low_does_not_confirm_itself() -> None:
    past = History(100_000)
    for _ in range(SAMPLES_MIN):
        past.saw("a", "glm", 50, cut=False)
    for _ in range(6):  # every answer now ends at the bound
        bound = past.bound("a", "glm")
        assert bound is not None
        for _ in range(EVERY):
            past.saw("a", "glm", bound, cut=True)
    final = past.bound("a", "glm")
    assert final is not None
    assert final > 50_000


def test_callers_beyond_the_bound_are_forgotten(monkeypatch: object) -> None:
    past = History(1_000)
    for n in range(history.CALLERS_MAX + 5):
        past.saw(f"t{n}", "glm", 0 if n == 3 else 1, cut=False)
    assert len(past._of) == history.CALLERS_MAX


async def test_it_is_seeded_from_the_rows_that_ended_well() -> None:
    past = History(10_000)

    async def rows() -> AsyncIterator[Row]:
        for n in range(SAMPLES_MIN):
            yield row(f"r{n}.0", completion_tokens=100)
            yield row(f"x{n}.0", completion_tokens=5_000, outcome="broken")
        yield row("y.0", completion_tokens=300, finish_reason="length")

    await past.seed(rows())
    assert past.bound("acme", "glm-4.6v") == 200
    assert list(past._of["acme", "glm-4.6v"].latest)[-1] == 600
