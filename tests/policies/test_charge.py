from __future__ import annotations

from typing import Any

import pytest

from policies.charge import Charge, charge
from policies.exchange import Resolve
from policies.price import Hours, ModelPrice, PriceCard, PriceList, Rate, Tier
from policies.types import Attempt, Reason, Site, Usage
from tests.policies.builders import facts, rules

HOLD = 7_000_000
USAGE = Usage(prompt_tokens=120, completion_tokens=80, cached_tokens=20, slot_ms=2_000)


def attempt(site: Site, target: str, slots: int = 1) -> Attempt:
    return Attempt(
        site=site,
        target=target,
        reason=Reason.LOCAL_FITS,
        hold_nano=HOLD,
        scopes=(),
        ttft_ms=1.0,
        finish_ms=2.0,
        slots=slots,
    )


def charged(
    site: Site, resolve: Resolve, usage: Usage | None, *, target: str = "small", **more: Any
) -> Charge:
    return charge(
        resolve,
        attempt(site, target, more.pop("slots", 8)),
        more.pop("asked", facts()),
        usage,
        at_ms=more.pop("at_ms", None),
        elapsed_ms=more.pop("elapsed_ms", 5_000),
        rules=more.pop("how", rules(cloud_models=("small",))),
    )


def test_the_cloud_at_its_price_and_its_price_for_cached_tokens() -> None:
    found = charged(Site.CLOUD, Resolve.METER, USAGE)
    assert found.posted_nano == 100 * 100 + 20 * 10 + 80 * 1_000
    assert found.cloud_nano == found.posted_nano, "nothing was saved"
    assert (found.tier, found.state, found.flags) == ("flat", "final", ())


@pytest.mark.parametrize("resolve", [Resolve.BOUND, Resolve.METER])
def test_a_cloud_that_does_not_say_posts_the_whole_hold(resolve: Resolve) -> None:
    found = charged(Site.CLOUD, resolve, None)
    assert (found.posted_nano, found.cloud_nano) == (HOLD, HOLD)
    assert (found.state, found.flags) == ("unreconciled", ("bound",))


def test_a_cloud_that_may_have_worked_on_is_not_believed() -> None:
    assert charged(Site.CLOUD, Resolve.BOUND, USAGE).posted_nano == HOLD


def test_what_could_not_be_true_is_flagged() -> None:
    found = charged(Site.CLOUD, Resolve.METER, Usage(prompt_tokens=-5, completion_tokens=1))
    assert found.posted_nano == 1_000
    assert found.flags == ("prompt_tokens_negative",)


def test_a_local_answer_costs_its_share_of_the_servers_time() -> None:
    """2 s of one of eight slots at 800,000 nano-CNY a second; the cloud would have charged its
    list price without its cache, which our requests are not in."""
    found = charged(Site.LOCAL, Resolve.METER, USAGE)
    assert found.posted_nano == 200_000
    assert found.cloud_nano == 120 * 100 + 80 * 1_000
    assert found.state == "final"


def test_what_a_local_answer_added_stands_beside_its_share_of_everything() -> None:
    found = charged(Site.LOCAL, Resolve.METER, USAGE)
    assert (found.posted_nano, found.marginal_nano) == (200_000, 20_000)
    assert charged(Site.CLOUD, Resolve.METER, USAGE).marginal_nano == 0


@pytest.mark.parametrize(
    ("tier", "posted", "state", "flags"),
    [
        ("default", 1, "final", ()),
        ("scale", 1, "final", ()),
        ("fast", 3, "final", ()),
        ("warp", HOLD, "unreconciled", ("service_tier_unknown",)),
    ],
)
def test_the_rate_that_was_served_is_the_one_that_is_charged(
    tier: str, posted: int, state: str, flags: tuple[str, ...]
) -> None:
    usual, fast = (Tier(name="flat", input_nano=n, output_nano=0) for n in (1, 3))
    model = ModelPrice(tiers=(usual,), lists=(PriceList(rate=Rate.FAST, tiers=(fast,)),))
    how = rules(cloud_models=("m",), prices=PriceCard(version="t", models={"m": model}))
    usage = Usage(prompt_tokens=1, completion_tokens=0, service_tier=tier)
    found = charged(Site.CLOUD, Resolve.METER, usage, target="m", how=how)
    assert (found.posted_nano, found.state, found.flags) == (posted, state, flags)


def test_a_rate_that_has_no_price_is_left_to_the_bill() -> None:
    usage = Usage(prompt_tokens=1, completion_tokens=0, service_tier="fast")
    found = charged(Site.CLOUD, Resolve.METER, usage)
    assert (found.posted_nano, found.state) == (HOLD, "unreconciled")
    assert found.flags == ("service_tier_unpriced",)


def test_the_hour_of_the_arrival_counts() -> None:
    day, night = (Tier(name=n, input_nano=c, output_nano=0) for n, c in (("d", 100), ("n", 10)))
    hours = PriceList(tiers=(night,), hours=(Hours(from_min=0, to_min=9 * 60),))
    model = ModelPrice(tiers=(day,), lists=(hours,))
    how = rules(cloud_models=("m",), prices=PriceCard(version="t", models={"m": model}))
    usage = Usage(prompt_tokens=1, completion_tokens=0)
    for at_ms, nano in ((0, 10), (3_600_000, 100)):  # 08:00 and 09:00 in Beijing
        found = charged(Site.CLOUD, Resolve.METER, usage, target="m", how=how, at_ms=at_ms)
        assert found.posted_nano == nano
        here = charged(Site.LOCAL, Resolve.METER, usage, how=how, at_ms=at_ms)
        assert here.cloud_nano == nano


def test_slot_time_is_rounded_up_to_the_last_unit() -> None:
    one_ms = Usage(prompt_tokens=1, completion_tokens=1, slot_ms=1)
    assert charged(Site.LOCAL, Resolve.METER, one_ms, slots=3).posted_nano == 267  # 800 / 3


@pytest.mark.parametrize("usage", [None, Usage(prompt_tokens=1, completion_tokens=1)])
def test_a_worker_that_does_not_say_is_charged_since_it_was_asked(usage: Usage | None) -> None:
    assert charged(Site.LOCAL, Resolve.METER, usage, elapsed_ms=5_000).posted_nano == 500_000


def test_a_local_attempt_that_broke_off_cost_time_and_saved_nothing() -> None:
    found = charged(Site.LOCAL, Resolve.BOUND, None, elapsed_ms=1_000)
    assert (found.posted_nano, found.cloud_nano, found.state) == (100_000, None, "final")


@pytest.mark.parametrize("site", Site)
def test_nothing_is_nothing(site: Site) -> None:
    found = charged(site, Resolve.NOTHING, USAGE)
    assert (found.posted_nano, found.cloud_nano, found.state) == (0, None, "final")


def with_family(family: str) -> Any:
    """A card whose only model counts pictures in this way, at 100 in and 1,000 out."""
    tier = Tier(name="flat", input_nano=100, output_nano=1_000)
    model = ModelPrice(tiers=(tier,), image_family=family)
    return rules(cloud_models=("eye",), prices=PriceCard(version="t", models={"eye": model}))


@pytest.mark.parametrize(
    ("family", "tokens"), [("seed-1.8", 65), ("before-1.8", 145), ("unknown", None), ("new", None)]
)
def test_pictures_are_counted_by_the_rule_of_the_cloud_model(
    family: str, tokens: int | None
) -> None:
    """336 x 336 pixels in squares of 42 or of 28, and one more for rounding. Where no rule is
    published there is a bound to hold for it, and nothing to compare with."""
    here = Usage(prompt_tokens=20 + 146, completion_tokens=10, image_tokens=146, slot_ms=1)
    seen, unseen = (
        charged(Site.LOCAL, Resolve.METER, here, asked=asked, how=with_family(family))
        for asked in (facts(image=True), facts())
    )
    assert seen.cloud_nano == (None if tokens is None else (20 + tokens) * 100 + 10 * 1_000)
    assert unseen.cloud_nano == 20 * 100 + 10 * 1_000


@pytest.mark.parametrize(
    "how",
    [
        rules(cloud_models=()),
        rules(cloud_models=("unpriced",)),
    ],
    ids=["no cloud", "no price"],
)
def test_without_a_price_there_is_nothing_to_compare_with(how: Any) -> None:
    assert charged(Site.LOCAL, Resolve.METER, USAGE, how=how).cloud_nano is None


def test_the_first_model_of_the_route_that_has_a_price_is_compared_with() -> None:
    how = rules(cloud_models=("unpriced", "big", "small"))
    found = charged(Site.LOCAL, Resolve.METER, USAGE, how=how)
    assert found.cloud_nano == 120 * 1_000 + 80 * 10_000


def test_a_model_that_is_routed_no_more_has_no_comparison() -> None:
    found = charged(Site.LOCAL, Resolve.METER, USAGE, asked=facts(model="gone"))
    assert found.cloud_nano is None


def test_a_local_attempt_without_a_report_pays_a_slot_for_each_answer() -> None:
    one = charged(Site.LOCAL, Resolve.METER, None)
    three = charged(Site.LOCAL, Resolve.METER, None, asked=facts(choices=3))
    assert three.posted_nano == 3 * one.posted_nano
    reported = charged(Site.LOCAL, Resolve.METER, USAGE, asked=facts(choices=3))
    assert reported == charged(Site.LOCAL, Resolve.METER, USAGE)
