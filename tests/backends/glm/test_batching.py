"""Engine and model together: whatever else happens, each request is told what it is told alone."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn import Linear

from backends.glm.answer.deltas import Delta
from backends.glm.answer.output import Output
from backends.glm.engine.engine import Engine
from backends.glm.engine.events import ABORTED, Event, Failed, Finished, Job, Progress
from backends.glm.engine.prefix import BLOCK
from backends.glm.model.linears import packs
from backends.glm.model.load import Checkpoint
from backends.glm.model.runner import Runner
from backends.glm.types import Drawn, Prompt, Sampling

from .batches import GREEDY, agrees, forced, generated, prompt_for
from .scripted import scheduler

STEPS = 24
# Log-probabilities of the wide checkpoint that far apart are the same in bfloat16: transformers'
# own forward is up to 0.08 off its float32 one there, ours as much, and they 0.06 from each other.
NEAR = 0.15
SLOTS, ROW_TOKENS, STEP_TOKENS, KEPT_BLOCKS = 4, 96, 40, 24
WAIT_S = 60
CASES: list[tuple[str, list[tuple[int, int]]]] = [
    ("Hello, what is this?", []),
    ("What is in this picture?", [(112, 56)]),
    ("What else is in this picture?", [(112, 56)]),  # the same picture: features are shared
    ("What is in this picture?", [(50, 130)]),
    ("请描述这张图片", [(300, 200)]),
    ("Which one?", [(57, 85), (28, 140), (100, 100)]),
    ("x" * 90, []),
]


class Ids(Output):
    """An answer as token ids; every token is shown."""

    def __init__(self) -> None:
        super().__init__(lambda _: b"", think_ids=(None, None), thinking="closed")
        self.drawn: list[Drawn] = []

    @property
    def ids(self) -> list[int]:
        return [drawn.token_id for drawn in self.drawn]

    def push(self, drawn: Drawn) -> list[Delta]:
        self.drawn.append(drawn)
        return [Delta("content", ".")]


@dataclass(frozen=True)
class Wish:
    """`after`: tokens that anybody has been told before this one comes; `stop_at`: the token that
    is a stop id, by its index in the answer; `leaves_at`: tokens told before its caller leaves."""

    case: int
    tenant: str
    after: int
    tokens: int
    stop_at: int | None
    leaves_at: int | None
    priority: int


wishes = st.builds(
    Wish,
    case=st.integers(0, len(CASES) - 1),
    tenant=st.sampled_from("ab"),
    after=st.integers(0, 60),
    tokens=st.integers(1, STEPS),
    stop_at=st.none() | st.integers(0, STEPS - 1),
    leaves_at=st.none() | st.none() | st.integers(0, STEPS - 1),
    priority=st.integers(-1, 1),
)


@cache
def known(checkpoint: Checkpoint, case: int) -> tuple[Prompt, list[int], list[float]]:
    prompt = prompt_for(checkpoint, *CASES[case])
    return prompt, *generated(checkpoint.model, prompt, STEPS)


@dataclass
class Day:
    """Submits wishes as answers go on, and waits until all are over."""

    engine: Engine
    checkpoint: Checkpoint
    sampling: Sampling = GREEDY
    told: int = 0
    outputs: list[Ids] = field(default_factory=list)
    ends: dict[int, Event] = field(default_factory=dict)
    moved: threading.Condition = field(default_factory=threading.Condition)

    def run(self, mix: list[Wish]) -> None:
        for number, wish in enumerate(mix):
            with self.moved:
                # Nobody left who could tell the rest: it comes now.
                self.moved.wait_for(
                    lambda n=number, w=wish: self.told >= w.after or len(self.ends) == n, WAIT_S
                )
            self._submit(number, wish)
        with self.moved:
            assert self.moved.wait_for(lambda: len(self.ends) == len(mix), WAIT_S)

    def _submit(self, number: int, wish: Wish) -> None:
        prompt, expected, _ = known(self.checkpoint, wish.case)
        output = Ids()
        self.outputs.append(output)
        ticket = self.engine.admit()

        def emit(event: Event) -> None:
            with self.moved:
                if isinstance(event, Progress):
                    self.told += 1
                else:
                    self.ends[number] = event
                self.moved.notify_all()
            if wish.leaves_at is not None and len(output.drawn) > wish.leaves_at:
                self.engine.abort(ticket)

        job = Job(
            prompt=prompt,
            sampling=self.sampling,
            stop_ids=frozenset() if wish.stop_at is None else frozenset({expected[wish.stop_at]}),
            max_tokens=wish.tokens,
            output=output,
            emit=emit,
            tenant=wish.tenant,
            priority=wish.priority,
        )
        self.engine.submit(ticket, job)
        if wish.leaves_at == 0:
            self.engine.abort(ticket)


def opened(checkpoint: Checkpoint) -> tuple[Engine, Runner]:
    runner = Runner(
        checkpoint.model,
        checkpoint.device,
        rows=SLOTS,
        row_tokens=ROW_TOKENS,
        kept_blocks=KEPT_BLOCKS,
        kept_bytes=20_000,
    )
    engine = Engine(
        runner,
        scheduler=scheduler(SLOTS, row_tokens=ROW_TOKENS, step_tokens=STEP_TOKENS),
        queue_limit=100,
        kept_blocks=KEPT_BLOCKS,
    )
    engine.start()
    return engine, runner


def lived(
    checkpoint: Checkpoint, mix: list[Wish], sampling: Sampling = GREEDY
) -> list[tuple[Wish, Ids, Event]]:
    """A day on a new engine, which is as empty after it as before: what became of each wish."""
    engine, runner = opened(checkpoint)
    try:
        day = Day(engine, checkpoint, sampling)
        day.run(mix)
        load = engine.load()
        assert (load.running, load.waiting, load.kv_tokens_used) == (0, 0, 0)
    finally:
        engine.stop(WAIT_S)
    rows = runner._cache._data[:, : SLOTS * ROW_TOKENS]
    assert not rows.any()  # nobody's entries stay behind
    return [(wish, day.outputs[number], day.ends[number]) for number, wish in enumerate(mix)]


def apart(output: Ids, theirs: Any) -> float:
    """The largest distance of a named log-probability from `theirs`, (tokens, V)."""
    return max(
        abs(logprob - float(row[token_id]))
        for drawn, row in zip(output.drawn, theirs, strict=True)
        for token_id, logprob in drawn.top
    )


def check(
    wish: Wish, found: list[int], end: Event, expected: list[int], ahead: list[float]
) -> None:
    assert agrees(found, expected, ahead), (wish, found, expected)
    if isinstance(end, Failed):
        assert end is ABORTED
        assert wish.leaves_at is not None
        return
    assert isinstance(end, Finished)
    wanted = expected[: wish.tokens]
    stop = None if wish.stop_at is None else expected[wish.stop_at]
    if stop in wanted:
        wanted = wanted[: wanted.index(stop)]
    if found == expected[: len(found)]:  # no tie led elsewhere
        assert found == wanted
        assert end.reason == ("length" if stop not in expected[: wish.tokens] else "stop")


# Matrices of both checkpoints together are plain and packed; see `linears`.
@pytest.mark.parametrize("weights", ["checkpoint", "wide"])
@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(mix=st.lists(wishes, min_size=1, max_size=12))
def test_any_day_gives_each_what_it_gets_alone(
    weights: str, mix: list[Wish], request: pytest.FixtureRequest
) -> None:
    """Arrivals, tenants, classes, sizes, limits, stops and callers who leave, all at random, with
    more requests than slots, prompts longer than a step, and beginnings that are remembered."""
    checkpoint = request.getfixturevalue(weights)
    for wish, output, end in lived(checkpoint, mix):
        _, expected, ahead = known(checkpoint, wish.case)
        check(wish, output.ids, end, expected, ahead)


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(mix=st.lists(wishes, min_size=1, max_size=12))
def test_any_day_in_bfloat16_is_as_near_as_transformers_own(
    wide_bfloat16: Checkpoint, mix: list[Wish]
) -> None:
    """Texts of random weights part ways in 8 bits of mantissa, so the probabilities are compared,
    with those of transformers' own bfloat16 forward over what was answered."""
    picture_id = wide_bfloat16.prompts.image_token_id
    named = Sampling(temperature=0.0, logprobs=8, logit_bias=((picture_id, -100.0),))
    for wish, output, _ in lived(wide_bfloat16, mix, named):
        if output.drawn:
            prompt, _, _ = known(wide_bfloat16, wish.case)
            assert apart(output, forced(wide_bfloat16.model, prompt, output.ids)) < NEAR


def test_what_is_not_near_is_seen(wide_bfloat16: Checkpoint) -> None:
    """The control of the test above: another picture of the same size, and a place too far."""
    prompt, answer, _ = known(wide_bfloat16, 1)
    model = wide_bfloat16.model
    output = Ids()
    for token_id, row in zip(answer, forced(model, prompt, answer), strict=True):
        best = row.topk(8)
        top = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        output.push(Drawn(token_id, float(row[token_id]), top))
    assert apart(output, forced(model, prompt, answer)) < 1e-6
    assert prompt.pixels is not None
    negative = replace(prompt.pixels, values=-prompt.pixels.values)
    assert apart(output, forced(model, replace(prompt, pixels=negative), answer)) > 2 * NEAR
    later = replace(prompt, ids=[*prompt.ids[:2], *prompt.ids[1:]])
    assert apart(output, forced(model, later, answer)) > 2 * NEAR


def test_the_wide_checkpoint_has_packed_matrices_and_plain_ones(wide: Checkpoint) -> None:
    for part in (wide.model.model.language_model, wide.model.model.visual):
        kinds = {packs(module.weight) for module in part.modules() if isinstance(module, Linear)}
        assert kinds == {True, False}


def test_a_second_turn_is_answered_from_the_first_ones_entries(checkpoint: Checkpoint) -> None:
    prompt, expected, ahead = known(checkpoint, 4)
    engine, _ = opened(checkpoint)
    try:
        day = Day(engine, checkpoint)
        wish = Wish(4, "a", 0, STEPS, None, None, 0)
        day.run(
            [wish, Wish(4, "a", 10**6, STEPS, None, None, 0), Wish(4, "b", 10**6, 1, None, None, 0)]
        )
        cached = []
        for number in range(3):
            end = day.ends[number]
            assert isinstance(end, Finished)
            cached.append(end.cached_tokens)
            found = day.outputs[number].ids
            assert agrees(found, expected, ahead)
        assert cached == [0, (len(prompt.ids) - 1) // BLOCK * BLOCK, 0]
        assert engine.load().cached_pictures == 0  # all of the picture was in the cache
    finally:
        engine.stop(WAIT_S)


@pytest.mark.parametrize("others", [0, 5])
def test_a_seed_repeats_an_answer_whoever_else_is_there(
    checkpoint: Checkpoint, others: int
) -> None:
    prompt, _, _ = known(checkpoint, 3)
    answers = []
    for crowd in (0, others):
        engine, _ = opened(checkpoint)
        over = threading.Semaphore(0)
        outputs = []

        def ended(event: Event, over: threading.Semaphore = over) -> None:
            if not isinstance(event, Progress):
                over.release()

        for seed in (5, *range(100, 100 + crowd)):
            outputs.append(Ids())
            engine.submit(
                engine.admit(),
                Job(
                    prompt=prompt,
                    sampling=Sampling(temperature=0.7, seed=seed),
                    stop_ids=frozenset(),
                    max_tokens=12,
                    output=outputs[-1],
                    emit=ended,
                ),
            )
        for _ in outputs:
            assert over.acquire(timeout=WAIT_S)
        engine.stop(WAIT_S)
        answers.append(outputs[0].ids)
        assert len({tuple(output.ids) for output in outputs}) == 1 + crowd
    assert answers[0] == answers[1]
