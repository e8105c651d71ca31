from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.bench import overspend
from tests.bench.leaky_gateway import PRICE_IN, PRICE_OUT, LeakyGateway
from tests.bench.overspend import Aim, attack
from tests.gateway.redis_servers import _valkey, valkey_url
from tests.gateway.rig import ADMIN_TOKEN, rig

__all__ = ["_valkey", "valkey_url"]

CALL_NANO = 100 * PRICE_IN + 20 * PRICE_OUT
AIM = Aim(
    target="", token="t", model="glm-4.6v", budget_nano=20 * CALL_NANO, requests=120,
    concurrency=40, prompt_words=100, output_tokens=20, price_in_nano=PRICE_IN,
    price_out_nano=PRICE_OUT, spend_field="team.0.spend",
)  # fmt: skip


@pytest.mark.parametrize("leavers", [0.0, 0.5])
async def test_a_budget_that_is_checked_and_added_to_later_is_found_out(leavers: float) -> None:
    """The positive control: a program that finds nothing anywhere is not a proof."""
    async with LeakyGateway(mode="check", budget_nano=AIM.budget_nano) as leaky:
        found = await attack(replace(
            AIM, target=leaky.url, leavers=leavers, spend_url=f"{leaky.url}/spend",
        ))  # fmt: skip
    assert found.overspend_nano > 0
    assert not found.kept
    if leavers:
        assert found.left > 0
        assert found.unbooked_nano == 0 or found.unbooked_nano is not None


async def test_it_is_found_out_by_usage_figures_alone() -> None:
    async with LeakyGateway(mode="check", budget_nano=AIM.budget_nano) as leaky:
        found = await attack(replace(AIM, target=leaky.url, leavers=0.0))
    assert found.own_nano is None
    assert found.usage_nano == found.answered * CALL_NANO
    assert found.overspend_nano == found.usage_nano - AIM.budget_nano > 0


async def test_answers_that_nobody_booked_are_found() -> None:
    """Every client leaves in mid-stream: the leaky books stay empty while tokens arrive."""
    async with LeakyGateway(mode="check", budget_nano=AIM.budget_nano) as leaky:
        found = await attack(replace(
            AIM, target=leaky.url, leavers=1.0, streams=1.0, spend_url=f"{leaky.url}/spend",
        ))  # fmt: skip
    assert found.left == found.sent == 120
    assert found.unbooked_nano is not None
    assert found.unbooked_nano > 0


async def test_a_gateway_that_holds_first_keeps_its_budget() -> None:
    async with LeakyGateway(mode="hold", budget_nano=AIM.budget_nano) as sound:
        found = await attack(replace(AIM, target=sound.url, spend_url=f"{sound.url}/spend"))
        assert found.own_nano == sound.spent
    assert found.kept
    assert found.refused > 0
    assert found.own_nano == AIM.budget_nano


@pytest.mark.slow
async def test_yuzui_keeps_its_budget_and_loses_no_row(valkey_url: str) -> None:
    async with rig(valkey_url, workers=[], cloud=True) as gateway:
        await gateway.budget("tenant:t", 2_000_000)
        found = await attack(replace(
            AIM, target=gateway.url, token=gateway.token(), admin=gateway.admin_url,
            admin_token=ADMIN_TOKEN, scope="tenant:t", budget_nano=2_000_000, requests=200,
        ))  # fmt: skip
    assert found.failed == 0, found.trouble
    assert (found.overspend_nano, found.lost_rows) == (0, 0)
    assert found.refused > 0, "the budget was never reached, so nothing was shown"
    assert found.left > 0
    assert found.own_nano, "nothing was spent, so nothing was shown"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--target", "http://192.0.2.1"], "is not this machine"),
        (["--spend-url", "http://example.invalid/x"], "--spend-url"),
        (["--requests", "0"], "--requests is 1 to"),
        (["--streams", "2"], "shares from 0 to 1"),
        (["--budget-cny", "much"], "--budget-cny 'much'"),
        (["--price-in", "0.0001"], "--price-in"),
        (["--admin", "http://127.0.0.1:1"], "--admin needs --scope"),
    ],
)
def test_options_that_cannot_be(
    more: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["--target", "http://127.0.0.1:1", "--token", "t", "--model", "m", "--budget-cny", "1"]
    with pytest.raises(SystemExit) as ended:
        overspend.main([*base, *more])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


async def test_the_report_and_its_last_line(capsys: pytest.CaptureFixture[str]) -> None:
    async with LeakyGateway(mode="check", budget_nano=AIM.budget_nano) as leaky:
        found = await attack(replace(AIM, target=leaky.url))
    said = overspend.as_table(found)
    assert "overspend CNY" in said
    assert json.dumps(found.trouble) == "{}"
