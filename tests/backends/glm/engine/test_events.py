"""Who shares kept beginnings with whom."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from backends.glm.answer.output import Output
from backends.glm.engine.events import Job
from backends.glm.types import Prompt, Sampling
from tests.backends.glm.batches import discard
from tests.backends.glm.engine.test_adapters import Fake

TEXT = st.text(st.sampled_from("a1:\0"), max_size=4)


def _job(tenant: str, adapter: str | None) -> Job:
    return Job(
        prompt=Prompt(ids=[1], image_token_id=0, pixels=None, thinking="closed"),
        sampling=Sampling(),
        stop_ids=frozenset(),
        max_tokens=1,
        output=Output(lambda i: b"", think_ids=(None, None), thinking="closed"),
        emit=discard,
        tenant=tenant,
        adapter=None if adapter is None else Fake(adapter),
    )


@given(TEXT, st.none() | TEXT.filter(bool), TEXT, st.none() | TEXT.filter(bool))
def test_only_the_same_tenant_with_the_same_adapter_shares(
    tenant: str, adapter: str | None, other: str, others: str | None
) -> None:
    same = (tenant, adapter) == (other, others)
    assert (_job(tenant, adapter).partition == _job(other, others).partition) is same
