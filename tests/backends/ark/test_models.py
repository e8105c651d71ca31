from __future__ import annotations

import pytest

from backends.ark.models import (
    CATALOGUE,
    COMPLETION_TOKENS_MAX,
    FAMILIES,
    UNKNOWN,
    Thinks,
    base_name,
    model_of,
    traits_of,
)
from policies.types import Capability
from tests.backends.ark.kit import GLM_5_2, GLM_5_3, SEED_1_5, SEED_1_6, SEED_2_1


def test_a_known_id() -> None:
    assert traits_of(GLM_5_3).context_tokens == 1_000_000
    assert Capability.VISION in traits_of(GLM_5_3).capabilities
    assert Capability.VISION not in traits_of(GLM_5_2).capabilities
    assert model_of(GLM_5_3).thinks is Thinks.ALWAYS
    assert model_of(SEED_1_5).thinks is Thinks.NEVER
    assert model_of(SEED_1_6).rpm == 30_000


def test_a_newer_version_is_taken_for_its_family() -> None:
    assert model_of("doubao-seed-2-1-turbo-270101") is model_of(SEED_2_1)
    assert model_of("doubao-seed-2-0-code-270101").family == "seed-2.0-code"


def test_an_endpoint_says_nothing_until_the_operator_names_its_family() -> None:
    assert model_of("ep-20260901120000-abcde") is UNKNOWN
    assert traits_of("ep-20260901120000-abcde").context_tokens == 32_000
    assert model_of("ep-20260901120000-abcde", "glm-5.3-flash") is model_of(GLM_5_3)
    with pytest.raises(KeyError):
        traits_of("ep-1", "glm-5.3-flahs")


def test_unknown_claims_no_more_than_any_known_model() -> None:
    assert UNKNOWN.traits.context_tokens == min(
        model.traits.context_tokens for model in CATALOGUE.values()
    )
    assert UNKNOWN.traits.capabilities == {Capability.TOOLS}


def test_every_family_is_whole() -> None:
    for name, model in FAMILIES.items():
        assert model.family == name
        assert model.can(Capability.VISION) == (model.image_rule is not None)
        assert not model.can(Capability.CHOICES)
        if model.thinks is not Thinks.NEVER:
            assert model.traits.output_tokens_max <= COMPLETION_TOKENS_MAX
            assert not model.can(Capability.LOGPROBS)
        if model.efforts is not None:
            assert set(model.efforts.send.values()) <= {"minimal", "low", "medium", "high", "max"}


def test_the_date_is_not_part_of_what_limits_count_by() -> None:
    assert base_name("doubao-seed-2-1-pro-260628") == base_name("doubao-seed-2-1-pro-260915")
    assert base_name("doubao-seed-evolving") == "doubao-seed-evolving"
