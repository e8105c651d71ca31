from __future__ import annotations

from backends.glm.answer.output import Output
from backends.glm.engine.events import Failed, Finished, Job, Ticket
from backends.glm.engine.keeping import Keeping
from backends.glm.engine.prefix import BLOCK
from backends.glm.engine.runs import Run
from backends.glm.types import Drawn, Prompt, Sampling
from tests.backends.glm.scripted import Script


def run(tokens: int, *, max_tokens: int = 2, tenant: str = "") -> Run:
    job = Job(
        prompt=Prompt(ids=list(range(tokens)), image_token_id=-1, pixels=None, thinking="closed"),
        sampling=Sampling(),
        stop_ids=frozenset(),
        max_tokens=max_tokens,
        output=Output(lambda i: bytes([i]), think_ids=(None, None), thinking="closed"),
        emit=lambda _: None,
        tenant=tenant,
    )
    return Run.of(Ticket(0.0), job, 0)


def test_a_prompt_is_kept_when_it_is_read_and_its_answer_when_it_ends() -> None:
    script = Script(b"")
    keeping = Keeping(script, blocks=8)
    first = run(2 * BLOCK, max_tokens=BLOCK + 1)
    assert keeping.found(first) == []
    keeping.take(first, Drawn(65), 0.0)
    assert script.kept == 2
    for _ in range(BLOCK):
        end = keeping.take(first, Drawn(65), 0.0)
    assert isinstance(end, Finished)
    assert script.kept == 3
    assert len(keeping.found(run(2 * BLOCK))) == 1  # one token is left to be read
    assert len(keeping.found(run(2 * BLOCK + 1))) == 2
    assert keeping.found(run(2 * BLOCK + 1, tenant="other")) == []


def test_who_would_read_the_same_waits_for_it() -> None:
    keeping = Keeping(Script(b""), blocks=8)
    reading, others = run(5 * BLOCK), run(5 * BLOCK, tenant="other")
    assert not keeping.better_later(run(4 * BLOCK), [reading])  # it waits itself
    reading.entry.first_row = others.entry.first_row = 0
    assert keeping.better_later(run(4 * BLOCK), [others, reading])
    assert not keeping.better_later(run(4 * BLOCK), [others])
    assert not keeping.better_later(run(3 * BLOCK), [reading])  # it saves too little


def test_what_was_not_copied_is_not_found() -> None:
    script = Script(b"")
    script.broken["keep"] = RuntimeError("no memory")
    keeping = Keeping(script, blocks=2)
    for _ in range(2):  # the room is given back
        assert not isinstance(keeping.take(run(2 * BLOCK), Drawn(65), 0.0), Failed)
        assert keeping.found(run(2 * BLOCK + 1)) == []
    script.broken.clear()
    keeping.take(run(2 * BLOCK), Drawn(65), 0.0)
    assert len(keeping.found(run(2 * BLOCK + 1))) == 2
