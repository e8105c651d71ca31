"""Any sequence of operations, on the real ledger and on the oracle: they must agree throughout.

Short here; `make proof-budget` draws a hundred thousand.
"""

from __future__ import annotations

import random

from tests.gateway.ledger.machine import Op, Player, draw

SEQUENCES = 120
STEPS = 25


async def test_the_ledger_agrees_with_its_model(redis_url: str) -> None:
    drawn: list[list[Op]] = []
    draw(SEQUENCES, STEPS, drawn.append, random.randrange(2**32))
    async with Player(redis_url) as player:
        await player.play(drawn)
    verdict = player.verdict
    assert verdict.wrong == []
    assert (verdict.overspend, verdict.drift, verdict.leaked) == (0, 0, 0)
    assert verdict.sequences == len(drawn)
    assert verdict.operations > 10 * SEQUENCES


async def test_a_ledger_that_disagrees_is_found_out(books_url: str) -> None:
    """The control: an oracle that is told another cost than the ledger."""
    drawn: list[list[Op]] = []
    draw(20, STEPS, drawn.append, 1)
    for ops in drawn:
        for op in ops:
            if op.name == "settle" and op.args["cost"]:
                op.args["cost"] -= 1
    async with Player(books_url) as player:
        await player.play(drawn)
    assert player.verdict.wrong
