"""What is said of a worker before it has said anything itself."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from policies.types import Capability, Sensitivity


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """A worker as it was declared or discovered.

    name:         its id in the pool
    engine:       yuzui | vllm | sglang | openai; empty: it is recognised
    slots:        how many requests it runs at once, where its engine does not say; None: a guess
    capabilities: what it can do, where its engine does not say; None: what GLM-4.6V can
    levels:       labels whose requests it may see; tenants: the same by tenant; empty: all
    api_key:      sent as bearer token, for engines that want one
    """

    name: str
    url: str
    engine: str = ""
    weight: float = 1.0
    slots: int | None = None
    capabilities: frozenset[Capability] | None = None
    levels: frozenset[Sensitivity] = frozenset()
    tenants: frozenset[str] = frozenset()
    api_key: str | None = None

    def __repr__(self) -> str:
        return f"Member({self.name!r}, {self.url!r})"  # a key has no business in a log

    __str__ = __repr__


def members_of(urls: Iterable[str]) -> tuple[Member, ...]:
    """Members named `w1`, `w2` and so on in the order given."""
    return tuple(Member(name=f"w{n}", url=url) for n, url in enumerate(urls, start=1))
