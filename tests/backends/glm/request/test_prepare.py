from __future__ import annotations

import json
from typing import Any

import pytest

from backends.glm.errors import WorkerError
from backends.glm.model.load import Checkpoint
from backends.glm.request.limits import Limits
from backends.glm.request.prepare import Prepared
from backends.glm.request.prompt import finish

HELLO = {"role": "user", "content": "Hello"}
TOOL = {"type": "function", "function": {"name": "now"}}


def prepare(checkpoint: Checkpoint, **fields: Any) -> Prepared:
    body = {"model": "m", "messages": [HELLO], **fields}
    preparer = checkpoint.preparer(Limits(choices_max=3))
    return finish(preparer.steps(preparer.read(json.dumps(body).encode(), ("m", "alias"))))


def refused(checkpoint: Checkpoint, **fields: Any) -> WorkerError:
    with pytest.raises(WorkerError) as caught:
        prepare(checkpoint, **fields)
    return caught.value


def test_each_answer_has_its_own_seed_output_and_state(checkpoint: Checkpoint) -> None:
    made = prepare(checkpoint, n=3, seed=5, response_format={"type": "json_object"})
    assert [plan.sampling.seed for plan in made.plans] == [5, 6, 7]
    assert len({id(plan.output) for plan in made.plans}) == 3
    assert len({id(plan.constraint) for plan in made.plans}) == 3
    unseeded = prepare(checkpoint, n=2)
    assert [plan.sampling.seed for plan in unseeded.plans] == [None, None]


def test_stop_ids(checkpoint: Checkpoint) -> None:
    (plan,) = prepare(checkpoint, stop_token_ids=[7]).plans
    assert plan.stop_ids == checkpoint.stop_ids | {7}
    (plan,) = prepare(checkpoint, stop_token_ids=[7], ignore_eos=True).plans
    assert plan.stop_ids == {7}


def test_what_depends_on_the_checkpoint_is_checked(checkpoint: Checkpoint) -> None:
    width = checkpoint.grammars.width
    assert refused(checkpoint, n=4).param == "n"
    assert "at most 3" in refused(checkpoint, n=4).message
    assert refused(checkpoint, stop_token_ids=[width]).param == "stop_token_ids"
    assert refused(checkpoint, logit_bias={str(width): 1}).param == "logit_bias"
    assert refused(checkpoint, model="other").status == 404
    form = {"type": "json_object"}
    assert refused(checkpoint, ignore_eos=True, response_format=form).param == "ignore_eos"


def test_constraints_where_a_form_or_a_call_is_forced(checkpoint: Checkpoint) -> None:
    def constrained(**fields: Any) -> bool:
        return prepare(checkpoint, **fields).plans[0].constraint is not None

    assert not constrained()
    assert not constrained(tools=[TOOL])
    assert constrained(tools=[TOOL], tool_choice="required")
    assert constrained(structured_outputs={"choice": ["a"]})
    assert not constrained(response_format={"type": "text"})


def test_the_output_limit(checkpoint: Checkpoint) -> None:
    assert prepare(checkpoint, max_tokens=9).plans[0].max_tokens == 9
    made = prepare(checkpoint, max_tokens=10**6)
    assert made.plans[0].max_tokens == checkpoint.max_model_len - len(made.prompt.ids)
