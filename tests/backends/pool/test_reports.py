from __future__ import annotations

import pytest

from backends.base import Failure, Kind
from backends.pool.reports import (
    REPORT,
    Card,
    Report,
    adapters_of,
    capabilities_of,
    maybe,
    read,
)
from policies.types import Capability


def test_a_report_is_read_whatever_else_it_says() -> None:
    found = read(REPORT, b'{"engine":"yuzui","slots":4,"something":{"new":1}}')
    assert (found.engine, found.slots) == ("yuzui", 4)


@pytest.mark.parametrize("data", [b"", b"[]", b'{"slots":"many"}', b"\xff", b"[" * 100_000])
def test_nonsense_is_a_failure(data: bytes) -> None:
    with pytest.raises(Failure) as failed:
        read(REPORT, data)
    assert failed.value.kind is Kind.BROKEN
    assert maybe(REPORT, data, Report()) == Report()


def test_use_of_the_cache() -> None:
    assert Report(kv_tokens_used=25, kv_tokens_total=100).kv_used == 0.25
    assert Report(kv_tokens_used=25).kv_used == 0.0
    assert Report(kv_tokens_used=500, kv_tokens_total=100).kv_used == 1.0


def test_capabilities_that_nobody_knows_are_left_out() -> None:
    assert capabilities_of(["vision", "telepathy"]) == {Capability.VISION}


def test_adapters_are_models_with_a_parent() -> None:
    cards = [
        Card(id="glm"),
        Card(id="faq", parent="glm"),  # vLLM
        Card(id="glm:shop", parent="glm"),  # SGLang and our worker
    ]
    assert adapters_of(cards) == {"faq": "faq", "shop": "glm:shop"}
