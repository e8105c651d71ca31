"""The vocabulary of the decision with everything filled in; a test names only what it is about."""

from __future__ import annotations

from random import Random
from typing import Any

from policies.plan import plan
from policies.price import ModelPrice, PriceCard, Tier
from policies.server_cost import ServerRate
from policies.types import (
    BudgetView,
    Capability,
    CloudState,
    Facts,
    ImageSize,
    Label,
    ModelTraits,
    Plan,
    Principal,
    Refusal,
    Sensitivity,
    SloClass,
    Snapshot,
    WorkerState,
)
from policies.weigh import Route, Rules

PUBLIC, INTERNAL, SENSITIVE = Sensitivity
TRAITS = ModelTraits(
    capabilities=frozenset(Capability), context_tokens=32_000, output_tokens_max=8_000
)
BLIND = ModelTraits(capabilities=frozenset(), context_tokens=32_000, output_tokens_max=8_000)
NOW_S = 1_000.0  # of a monotonic clock

# round figures, so that a hold can be computed in one's head
CARD = PriceCard(
    version="test",
    models={
        "big": ModelPrice(tiers=(Tier(name="flat", input_nano=1_000, output_nano=10_000),)),
        "small": ModelPrice(
            tiers=(Tier(name="flat", input_nano=100, cached_nano=10, output_nano=1_000),)
        ),
    },
)
SERVER_NANO_PER_S = 800_000
MARGINAL_NANO_PER_S = 80_000


def principal(**changes: Any) -> Principal:
    return Principal(**{"tenant": "acme", "subject": "app", "key_id": "k1", **changes})


def label(level: Sensitivity = INTERNAL) -> Label:
    return Label(level=level, source="header")


def facts(**changes: Any) -> Facts:
    """A short question, unless it says otherwise. level=: of its label; image=: one picture."""
    level = changes.pop("level", INTERNAL)
    if changes.pop("image", False):
        changes = {
            "images": (ImageSize(width=336, height=336),),
            "needs": frozenset({Capability.VISION}),
            **changes,
        }
    base: dict[str, Any] = {
        "request_id": "yz-1",
        "tenant": "acme",
        "scopes": ("tenant:acme", "user:app"),
        "model": "glm",
        "side": None,
        "label": label(level),
        "prompt_tokens_max": 200,
        "prompt_tokens_likely": 100,
        "output_tokens_max": 1_000,
        "output_tokens_likely": 100,
    }
    return Facts(**{**base, **changes})


def worker(name: str = "w1", **changes: Any) -> WorkerState:
    """Idle, eight slots, 50 tokens/s: it answers the short question after 70 ms."""
    base: dict[str, Any] = {
        "id": name,
        "model": "glm-flash",
        "traits": TRAITS,
        "slots": 8,
        "queue_limit": 8,
        "decode_tokens_per_s": 50.0,
        "prefill_tokens_per_s": 2_000.0,
    }
    return WorkerState(**{**base, **changes})


def busy(name: str = "w1", **changes: Any) -> WorkerState:
    """Its slots are taken for some 18 s to come, its queue is not full."""
    taken: dict[str, Any] = {"running": 8, "in_flight": 8, "in_flight_output_tokens": 8 * 7_000}
    return worker(name, **{**taken, **changes})


def full(name: str = "w1", **changes: Any) -> WorkerState:
    return worker(name, running=8, waiting=8, **changes)


def cloud(model: str = "big", **changes: Any) -> CloudState:
    return CloudState(**{"model": model, "traits": TRAITS, **changes})


def budget(scope: str, *, limit: int, posted: int = 0, held: int = 0) -> BudgetView:
    return BudgetView(scope=scope, limit_nano=limit, posted_nano=posted, held_nano=held)


def snapshot(
    *workers: WorkerState,
    clouds: tuple[CloudState, ...] = (),
    budgets: tuple[BudgetView, ...] = (),
    cloud_enabled: bool | None = None,
) -> Snapshot:
    """A world; the cloud is on when it has a model, unless said otherwise."""
    by_scope: dict[str, tuple[BudgetView, ...]] = {}
    for view in budgets:
        by_scope[view.scope] = (*by_scope.get(view.scope, ()), view)
    return Snapshot(
        workers=workers,
        clouds=clouds,
        budgets=by_scope,
        cloud_enabled=bool(clouds) if cloud_enabled is None else cloud_enabled,
    )


def rules(*, cloud_models: tuple[str, ...] = ("big", "small"), **changes: Any) -> Rules:
    """One public model, glm (alias glm-latest), on any worker and two cloud models."""
    route = Route(name="glm", cloud=cloud_models, local=changes.pop("local", ("*",)))
    base: dict[str, Any] = {
        "routes": {"glm": route, "glm-latest": route},
        "prices": CARD,
        "server_rate": ServerRate(
            full_nano_per_s=SERVER_NANO_PER_S, marginal_nano_per_s=MARGINAL_NANO_PER_S
        ),
        "ttft_target_ms": {SloClass.INTERACTIVE: 2_000.0, SloClass.BATCH: 60_000.0},
    }
    return Rules(**{**base, **changes})


def decide(
    asked: Facts, world: Snapshot, how: Rules | None = None, *, seed: int = 0
) -> Plan | Refusal:
    return plan(asked, world, how or rules(), NOW_S, Random(seed))
