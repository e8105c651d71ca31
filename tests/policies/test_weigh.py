from __future__ import annotations

import pytest
from msgspec.structs import replace

from policies.sensitivity import permit
from policies.types import Capability, ImageSize, Plan, Site
from policies.weigh import (
    Weighed,
    funds_of,
    weigh_clouds,
    weigh_workers,
)
from tests.policies.builders import (
    NOW_S,
    TRAITS,
    budget,
    cloud,
    decide,
    facts,
    rules,
    snapshot,
    worker,
)


def test_funds_are_the_least_that_is_left_of_any_scope() -> None:
    world = snapshot(
        budgets=(
            budget("tenant:acme", limit=100, posted=30),
            budget("model:glm", limit=90, posted=50, held=40),
            budget("backend:cloud", limit=10, posted=0),
            budget("tenant:other", limit=0),
        )
    )
    assert funds_of(facts(), Site.LOCAL, world).left_nano == 40
    assert funds_of(facts(), Site.CLOUD, world).left_nano == 10
    assert funds_of(facts(), Site.CLOUD, world).scopes[-2:] == ("model:glm", "backend:cloud")


def test_without_a_budget_there_is_no_end_to_it() -> None:
    assert funds_of(facts(), Site.CLOUD, snapshot()).left_nano == 2**53 - 1


def _cloud_hold(**changes: object) -> Weighed:
    asked = facts(**changes)
    world = snapshot(clouds=(cloud("small"),))
    route = rules().routes["glm"]
    funds = funds_of(asked, Site.CLOUD, world)
    (found,) = weigh_clouds(asked, route, permit(asked), world, funds, rules(), NOW_S)
    return found


def test_a_cloud_hold_covers_the_pictures_and_what_the_model_can_say() -> None:
    text = _cloud_hold().hold_nano
    assert text == 200 * 100 + 1_000 * 1_000
    pictures = _cloud_hold(images=(ImageSize(width=336, height=336),)).hold_nano - text
    assert pictures == 5_120 * 100, "no rule is known for the card's model: the most of any"
    remote = _cloud_hold(remote_images=2).hold_nano - text
    assert remote == 2 * 5_120 * 100
    longest = _cloud_hold(output_tokens_max=60_000).hold_nano
    assert longest == 200 * 100 + TRAITS.output_tokens_max * 1_000


def test_a_hold_covers_every_answer_that_is_asked_for() -> None:
    assert _cloud_hold(choices=3).hold_nano == 200 * 100 + 3 * 1_000 * 1_000
    longest = _cloud_hold(choices=3, output_tokens_max=60_000).hold_nano
    assert longest == 200 * 100 + 3 * TRAITS.output_tokens_max * 1_000

    def local_hold(choices: int) -> int:
        asked = facts(choices=choices)
        world = snapshot(worker())
        funds = funds_of(asked, Site.LOCAL, world)
        (found,) = weigh_workers(asked, rules().routes["glm"], world, funds, rules())
        return found.hold_nano

    assert local_hold(4) == pytest.approx(4 * local_hold(1), rel=1e-3)


def test_an_attempt_knows_what_its_pictures_should_count() -> None:
    """336 x 336 pixels are 12 x 12 squares of 28; a worker reports no begin and end."""
    asked = facts(image=True)
    world = snapshot(worker())
    route, funds = rules().routes["glm"], funds_of(asked, Site.LOCAL, world)
    (found,) = weigh_workers(asked, route, world, funds, rules())
    assert found.image_tokens == 144
    plan = decide(asked, world)
    assert isinstance(plan, Plan)
    assert plan.attempts[0].image_tokens == 144


def test_what_a_request_needs_must_be_there_and_without_a_permit_nothing_is_looked_at() -> None:
    plain = cloud("small", traits=replace(TRAITS, capabilities=frozenset({Capability.VISION})))
    world = snapshot(clouds=(plain,))
    asked = facts(needs=frozenset({Capability.TOOLS}))
    route, funds = rules().routes["glm"], funds_of(asked, Site.CLOUD, world)
    for leave, verdict in ((permit(asked), "unfit"), (None, "label")):
        found = weigh_clouds(asked, route, leave, world, funds, rules(), NOW_S)
        assert [w.verdict for w in found] == [verdict]
