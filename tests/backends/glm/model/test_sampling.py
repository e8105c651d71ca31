from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from backends.glm.model.sampling import CANDIDATES, Sampler, pick_all, truncated
from backends.glm.types import Sampling, SamplingOverrides

CANDIDATES_MAX = CANDIDATES[-1]
LOGITS = torch.tensor([1.0, 3.0, 2.0, 0.0, -1.0])
DRAWS = 4000


def pick(sampler: Sampler, logits: torch.Tensor) -> int:
    (drawn,) = pick_all([sampler], logits[None])
    return drawn.token_id


def adjusted(sampler: Sampler, logits: torch.Tensor) -> torch.Tensor:
    row = logits.clone()
    sampler.adjust(row.numpy())
    return row


def frequencies(sampling: Sampling) -> list[float]:
    sampler = Sampler(sampling, [])
    counts = [0] * len(LOGITS)
    for _ in range(DRAWS):
        counts[pick(sampler, LOGITS)] += 1
    return [count / DRAWS for count in counts]


def close_to(expected: torch.Tensor) -> list[object]:
    return [pytest.approx(float(p), abs=0.04) for p in expected]


@pytest.mark.parametrize(
    "sampling",
    [Sampling(temperature=0.0), Sampling(temperature=1e-9), Sampling(temperature=2.0, top_k=1)],
)
def test_greedy(sampling: Sampling) -> None:
    assert pick(Sampler(sampling, []), LOGITS) == 1


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_temperature(temperature: float) -> None:
    drawn = frequencies(Sampling(temperature=temperature, seed=1))
    assert drawn == close_to((LOGITS / temperature).softmax(0))


@pytest.mark.parametrize("top_k", [2, 3])
def test_top_k_keeps_the_likeliest(top_k: int) -> None:
    kept = LOGITS.clone()
    kept[LOGITS.topk(5).indices[top_k:]] = float("-inf")
    drawn = frequencies(Sampling(top_k=top_k, seed=2))
    assert drawn == close_to(kept.softmax(0))
    assert drawn.count(0.0) == 5 - top_k


@pytest.mark.parametrize("off", [0, -1, 5, 99])
def test_top_k_off(off: int) -> None:
    assert frequencies(Sampling(top_k=off, seed=3)) == close_to(LOGITS.softmax(0))


@pytest.mark.parametrize(("top_p", "kept"), [(0.0, 1), (0.5, 1), (0.64, 2), (0.9, 3), (1.0, 5)])
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p: float, kept: int) -> None:
    """Probabilities are .636 .234 .086 .032 .012, so .64 needs two of them."""
    masked = LOGITS.clone()
    masked[LOGITS.topk(5).indices[kept:]] = float("-inf")
    assert frequencies(Sampling(top_p=top_p, seed=4)) == close_to(masked.softmax(0))


def test_top_k_then_top_p_count_within_the_kept_ones() -> None:
    """Of the two kept by top_k the likelier has .731, so top_p .7 leaves only it."""
    assert frequencies(Sampling(top_k=2, top_p=0.7, seed=5))[1] == 1.0


@settings(deadline=None)
@given(
    st.integers(0, 2**32),
    st.sampled_from([8, 300, CANDIDATES_MAX + 500]),
    st.sampled_from([0.3, 1.0, 1.7]),
    st.sampled_from([0, 1, 7, 200, 1200]),
    st.sampled_from([1.0, 0.95, 0.5, 0.01]),
    st.sampled_from([0.0, 0.02, 0.3]),
)
def test_the_truncated_distribution_is_that_of_transformers(
    seed: int, width: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    logits = torch.randn(1, width, generator=torch.Generator().manual_seed(seed)) * 3
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1.0:
        warpers.append(TopPLogitsWarper(top_p))
    if min_p:
        warpers.append(MinPLogitsWarper(min_p))
    theirs = warpers(None, logits.clone())[0].softmax(0)
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)

    every, order = (logits[0] / temperature).softmax(0).sort(descending=True)
    for candidates in {width, *(min(width, count) for count in CANDIDATES)}:
        whole = candidates == width
        kept, known = truncated(every[:candidates].double().numpy(), sampling, whole=whole)
        if not known:
            assert not whole
            continue
        ours = torch.zeros(width, dtype=torch.float64)
        ours[order[: len(kept)]] = torch.from_numpy(kept / kept.sum())
        # A token on the very edge of top_p may fall on either side by the rounding of a sum.
        different = ((ours > 0) != (theirs > 0)).sum()
        assert different <= 1
        if not different:
            assert torch.allclose(ours.float(), theirs, atol=1e-5)


def test_a_flat_distribution_is_drawn_from_beyond_the_candidates() -> None:
    """Where neither top_k nor top_p can be decided among the candidates, all tokens count."""
    flat = torch.zeros(4 * CANDIDATES_MAX)
    for sampling in (Sampling(seed=1), Sampling(seed=1, top_p=0.9), Sampling(seed=1, min_p=0.5)):
        sampler = Sampler(sampling, [])
        drawn = [pick(sampler, flat) for _ in range(60)]
        assert len(set(drawn)) > 50
        assert max(drawn) > 2 * CANDIDATES_MAX


def test_a_repeated_token_is_penalised_whatever_its_sign() -> None:
    sampling = Sampling(temperature=0.0, repetition_penalty=2.0)
    assert pick(Sampler(sampling, [1]), LOGITS) == 2  # 3.0 / 2 < 2.0
    assert pick(Sampler(sampling, [0]), torch.tensor([-1.0, -1.5])) == 1  # -1.0 * 2 < -1.5
    sampler = Sampler(sampling, [])
    assert [pick(sampler, LOGITS) for _ in range(3)] == [1, 2, 1]  # 3, then 1.5 < 2, then 1.5 > 1


def test_repetition_penalty_equals_that_of_transformers() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, generator=generator) * 4
    history = torch.randint(0, 50, (1, 20), generator=generator)
    theirs = RepetitionPenaltyLogitsProcessor(1.3)(history, logits[None].clone())[0]
    ids = history[0].tolist()
    sampler = Sampler(Sampling(repetition_penalty=1.3), ids[:12])
    for token_id in ids[12:]:  # the answer so far counts as the prompt does
        sampler.took(token_id)
    ours = adjusted(sampler, logits)
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, logits)


def test_frequency_and_presence_count_the_answer_and_not_the_prompt() -> None:
    sampler = Sampler(Sampling(frequency_penalty=0.5, presence_penalty=0.25), [0, 0, 0])
    assert torch.equal(adjusted(sampler, LOGITS), LOGITS)
    for token_id in (1, 1, 2):
        sampler.took(token_id)
    assert adjusted(sampler, LOGITS).tolist() == [
        1.0,
        3.0 - 1.0 - 0.25,
        2.0 - 0.5 - 0.25,
        0.0,
        -1.0,
    ]
    rewarded = Sampler(Sampling(temperature=0.0, frequency_penalty=-2.0), [])
    assert [pick(rewarded, LOGITS) for _ in range(3)] == [1, 1, 1]


def test_logit_bias_forbids_and_forces() -> None:
    assert pick(Sampler(Sampling(temperature=0.0, logit_bias=((1, -100.0),)), []), LOGITS) == 2
    assert frequencies(Sampling(logit_bias=((4, 100.0),), seed=1))[4] == 1.0


class OnlyEven:
    """A constraint; remembers what it was told."""

    def __init__(self) -> None:
        self.accepted: list[int] = []

    def allowed(self) -> np.ndarray[Any, np.dtype[np.bool_]] | None:
        return None if not self.accepted else np.arange(len(LOGITS)) % 2 == 0

    def accept(self, token_id: int) -> None:
        self.accepted.append(token_id)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_constraint_masks_and_hears_of_every_token(temperature: float) -> None:
    constraint = OnlyEven()
    sampling = Sampling(temperature=temperature, repetition_penalty=1.5, seed=1)
    sampler = Sampler(sampling, [2], constraint)
    drawn = [pick(sampler, LOGITS) for _ in range(20)]
    assert constraint.accepted == drawn
    assert all(token_id % 2 == 0 for token_id in drawn[1:])


def test_logprobs_are_the_models_own_whatever_was_drawn() -> None:
    sampling = Sampling(temperature=0.0, logit_bias=((1, -100.0),), logprobs=3)
    (drawn,) = pick_all([Sampler(sampling, [])], LOGITS[None])
    expected = LOGITS.log_softmax(0)
    assert drawn.token_id == 2
    assert drawn.logprob == pytest.approx(float(expected[2]))
    assert [token_id for token_id, _ in drawn.top] == [1, 2, 0]
    assert [p for _, p in drawn.top] == pytest.approx([float(expected[i]) for i in (1, 2, 0)])
    (drawn,) = pick_all([Sampler(Sampling(temperature=0.0, logprobs=0), [])], LOGITS[None])
    assert drawn.logprob == pytest.approx(float(expected[1]))
    assert drawn.top == ()


KINDS = (
    Sampling(temperature=0.0),
    Sampling(temperature=0.0, repetition_penalty=1.3),
    Sampling(temperature=0.9, seed=3),
    Sampling(temperature=1.4, top_k=5, top_p=0.8, seed=4),
    Sampling(temperature=0.7, min_p=0.1, frequency_penalty=0.4, seed=5),
    Sampling(temperature=0.0, logprobs=2),
)


@given(st.lists(st.sampled_from(KINDS), min_size=1, max_size=9), st.integers(0, 2**32))
def test_a_row_does_not_depend_on_its_neighbours(kinds: list[Sampling], seed: int) -> None:
    logits = torch.randn(4, len(kinds), 40, generator=torch.Generator().manual_seed(seed)) * 3
    together = [Sampler(kind, [1, 2]) for kind in kinds]
    alone = [Sampler(kind, [1, 2]) for kind in kinds]
    for step in logits:
        expected = [pick_all([sampler], step[i : i + 1])[0] for i, sampler in enumerate(alone)]
        assert pick_all(together, step) == expected


def test_the_callers_settings_stand_before_the_checkpoints() -> None:
    defaults = Sampling(temperature=0.8, top_p=0.6, top_k=2, repetition_penalty=1.1)
    assert defaults.overridden(SamplingOverrides()) == defaults
    asked = SamplingOverrides(temperature=0.0, top_k=0, seed=9, presence_penalty=0.5)
    assert defaults.overridden(asked) == Sampling(
        temperature=0.0, top_p=0.6, top_k=0, repetition_penalty=1.1, seed=9, presence_penalty=0.5
    )


def test_more_different_tokens_than_there_was_room_for() -> None:
    sampler = Sampler(Sampling(frequency_penalty=1.0, repetition_penalty=2.0), range(0, 500, 2))
    for token_id in [*range(400), 7]:
        sampler.took(token_id)
    row = adjusted(sampler, torch.full((600,), 8.0)).tolist()
    assert row[7] == 8.0 / 2 - 2
    assert row[8] == 8.0 / 2 - 1
    assert (row[401], row[402], row[599]) == (8.0, 4.0, 8.0)


class Held:
    """A constraint that allows everything, and may break where a test wants it to."""

    def __init__(self, breaks: str = "") -> None:
        self.breaks = breaks
        self.seen: list[int] = []

    def allowed(self) -> None:
        if self.breaks == "allowed":
            raise RuntimeError("its mask is broken")

    def accept(self, token_id: int) -> None:
        if self.breaks == "accept":
            raise RuntimeError("it takes no such token")
        self.seen.append(token_id)


@pytest.mark.parametrize("breaks", ["allowed", "accept"])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_row_that_breaks_changes_nothing_for_the_others(breaks: str, at: int) -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    held = [Held(breaks if i == at else "") for i in range(3)]
    alone = [Sampler(Sampling(seed=i), [1], Held()) for i in range(3)]
    together = [Sampler(Sampling(seed=i), [1], held[i]) for i in range(3)]
    for _ in range(3):
        expected = [pick_all([s], logits[i : i + 1])[0] for i, s in enumerate(alone)]
        drawn = pick_all(together, logits)
        assert isinstance(drawn[at], RuntimeError)
        for i in {0, 1, 2} - {at}:
            assert drawn[i] == expected[i]
    assert [len(one.seen) for one in held] == [0 if i == at else 3 for i in range(3)]


def test_a_pick_that_fails_as_a_whole_draws_the_same_again(monkeypatch: Any) -> None:
    logits = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    fresh = [Sampler(Sampling(seed=i, repetition_penalty=1.5), [1], Held()) for i in range(2)]
    expected = pick_all(fresh, logits.clone())
    held = [Held(), Held()]
    samplers = [Sampler(Sampling(seed=i, repetition_penalty=1.5), [1], held[i]) for i in range(2)]

    def broken(*_: Any) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr("backends.glm.model.sampling._named", broken)  # everything is drawn by then
        with pytest.raises(RuntimeError, match="out of memory"):
            pick_all(samplers, logits.clone())
    assert [one.seen for one in held] == [[], []]
    # The engine has each of them take the step alone.
    assert [pick_all([s], logits[i : i + 1].clone())[0] for i, s in enumerate(samplers)] == expected
