from __future__ import annotations

import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from backends.glm.protocol import SamplingOverrides
from backends.glm.sampling import Sampler
from backends.glm.types import Sampling

LOGITS = torch.tensor([1.0, 3.0, 2.0, 0.0, -1.0])
DRAWS = 4000


def frequencies(sampling: Sampling) -> list[float]:
    sampler = Sampler(sampling, [])
    counts = [0] * len(LOGITS)
    for _ in range(DRAWS):
        counts[sampler.pick(LOGITS)] += 1
    return [count / DRAWS for count in counts]


def close_to(expected: torch.Tensor) -> list[object]:
    return [pytest.approx(float(p), abs=0.04) for p in expected]


@pytest.mark.parametrize(
    "sampling",
    [Sampling(temperature=0.0), Sampling(temperature=1e-9), Sampling(temperature=2.0, top_k=1)],
)
def test_greedy(sampling: Sampling) -> None:
    assert Sampler(sampling, []).pick(LOGITS) == 1


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


def test_a_repeated_token_is_penalised_whatever_its_sign() -> None:
    sampling = Sampling(temperature=0.0, repetition_penalty=2.0)
    assert Sampler(sampling, [1]).pick(LOGITS) == 2  # 3.0 / 2 < 2.0
    assert Sampler(sampling, [0]).pick(torch.tensor([-1.0, -1.5])) == 1  # -1.0 * 2 < -1.5
    sampler = Sampler(sampling, [])
    assert [sampler.pick(LOGITS) for _ in range(3)] == [1, 2, 1]  # 3, then 1.5 < 2, then 1.5 > 1


def test_repetition_penalty_equals_that_of_transformers() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, generator=generator) * 4
    prompt = torch.randint(0, 50, (1, 20), generator=generator)
    theirs = RepetitionPenaltyLogitsProcessor(1.3)(prompt, logits[None].clone())[0]
    seen = prompt[0].tolist()
    ours = Sampler(Sampling(repetition_penalty=1.3), seen)._penalised(logits, set(seen))
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, logits)


def test_the_callers_settings_stand_before_the_checkpoints() -> None:
    defaults = Sampling(temperature=0.8, top_p=0.6, top_k=2, repetition_penalty=1.1)
    assert defaults.overridden(SamplingOverrides()) == defaults
    asked = SamplingOverrides(temperature=0.0, top_k=0, seed=9)
    assert defaults.overridden(asked) == Sampling(
        temperature=0.0, top_p=0.6, top_k=0, repetition_penalty=1.1, seed=9
    )
