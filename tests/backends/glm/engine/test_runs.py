from __future__ import annotations

from backends.glm.answer.output import Output
from backends.glm.engine.events import Job, Ticket
from backends.glm.engine.runs import Run
from backends.glm.engine.scheduler import Entry
from backends.glm.types import Prompt, Sampling


def test_times_are_counted_from_admission_and_never_negative() -> None:
    job = Job(
        prompt=Prompt(ids=[1, 2, 3], image_token_id=-1, pixels=None, thinking="closed"),
        sampling=Sampling(),
        stop_ids=frozenset(),
        max_tokens=9,
        output=Output(lambda _: b"", think_ids=(None, None), thinking="closed"),
        emit=lambda _: None,
    )
    entry = Entry(key=0, tenant="", priority=0, order=0, prompt_tokens=3, max_tokens=9)
    run = Run(Ticket(10.0), job, entry, [], answer=[5, 6], started_s=10.5, first_s=11.0)
    run.cached_tokens = 2
    end = run.finished("length", [], 12.0)
    assert (end.queue_ms, end.ttft_ms, end.slot_ms) == (500, 1000, 1500)
    assert (end.completion_tokens, end.cached_tokens, end.reason) == (2, 2, "length")
    run.started_s = 9.0  # a clock that was set back
    assert run.finished("stop", [], 8.0).queue_ms == 0
