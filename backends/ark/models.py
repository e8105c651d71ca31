"""The models of Ark and what each of them does with a request.

Ids, limits: Ark's model list and console pages, state of September and October 2026. "k" of those
pages is taken as 1000, the smaller reading, so that no limit is overrun. Thinking: docs
82379/1449737. Parameters: docs 82379/1494384. What no page states is left out of a model's
capabilities: a request that needs it then goes elsewhere instead of failing.

An endpoint id (`ep-...`) says nothing about its model: the operator names the family in the
configuration, otherwise UNKNOWN applies, which claims little.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

import msgspec

from backends.ark.images import SEED_1_8, SEED_2_0, SEED_BEFORE_1_8, THIRD_PARTY, ImageRule
from policies.types import Capability, ModelTraits

COMPLETION_TOKENS_MAX = 65_536  # the largest max_completion_tokens that Ark accepts


class Thinks(StrEnum):
    """Whether a model reasons before it answers."""

    NEVER = "never"
    SWITCH = "switch"  # by default; `thinking` turns it off
    ALWAYS = "always"


class Efforts(msgspec.Struct, frozen=True, kw_only=True):
    """What a model makes of `reasoning_effort`.

    send:    caller's value -> value sent. A value that is missing is refused for this model.
    default: what the model uses when nothing is said.
    """

    send: Mapping[str, str]
    default: str


class ArkModel(msgspec.Struct, frozen=True, kw_only=True):
    """One model, or one family of them."""

    family: str
    traits: ModelTraits
    thinks: Thinks = Thinks.SWITCH
    efforts: Efforts | None = None  # None: the model knows no effort
    thinking_auto: bool = False
    temperature_fixed: bool = False
    top_p_fixed: bool = False
    penalties: bool = False  # frequency_penalty and presence_penalty, text requests only
    tool_choice_forced: bool = True  # `required` or a named function
    parallel_off: bool = True  # parallel_tool_calls=false is honoured
    image_rule: ImageRule | None = None
    cache_prefix_tokens: int | None = None  # shortest prefix of the implicit cache
    usage_always: bool = False  # a stream ends with usage even when nobody asked
    reasoning_summary: bool = False  # reasoning is summarised; the original comes encrypted
    burst_code: str = "RequestBurstTooFast"
    rpm: int | None = None  # published default of an account; None: not published
    tpm: int | None = None

    def can(self, capability: Capability) -> bool:
        return capability in self.traits.capabilities


_SEED_EFFORTS = {
    "none": "minimal",
    "minimal": "minimal",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "high",
    "max": "high",
}
_SEED_HIGH = Efforts(send=_SEED_EFFORTS, default="high")
_SEED_MEDIUM = Efforts(send=_SEED_EFFORTS, default="medium")
# `none` is a 400 on GLM-5.2 by one measurement; `minimal` means the same and is accepted.
_GLM_5_2 = Efforts(
    send={
        "none": "minimal",
        "minimal": "minimal",
        "low": "high",
        "medium": "high",
        "high": "high",
        "xhigh": "max",
        "max": "max",
    },
    default="high",
)
# Always thinks: "do not think" cannot be had, so it is refused rather than billed.
_GLM_5_3_FLASH = Efforts(
    send={"low": "low", "medium": "high", "high": "high", "xhigh": "max", "max": "max"},
    default="max",
)
_DEEPSEEK_V4 = Efforts(
    send={
        "none": "minimal",
        "minimal": "minimal",
        "low": "low",
        "medium": "low",
        "high": "high",
        "xhigh": "high",
        "max": "high",
    },
    default="high",
)


def _traits(
    context_tokens: int,
    output_tokens_max: int,
    image_rule: ImageRule | None,
    *extra: Capability,
) -> ModelTraits:
    """Traits for the decision. The picture bounds hold for every detail that we let through."""
    capabilities = frozenset({Capability.TOOLS, *extra})
    if image_rule is None:
        return ModelTraits(
            capabilities=capabilities,
            context_tokens=context_tokens,
            output_tokens_max=output_tokens_max,
        )
    return ModelTraits(
        capabilities=capabilities | {Capability.VISION},
        context_tokens=context_tokens,
        output_tokens_max=output_tokens_max,
        image_factor_px=image_rule.side_px,
        image_pixels_min=image_rule.pixels_floor,
        image_pixels_max=image_rule.pixels_max,
    )


# The output limit of a thinking model goes out as max_completion_tokens, so its largest value
# caps the published 128k and 256k of the newer models.
_SEED_2_1 = ArkModel(
    family="seed-2.1",
    traits=_traits(256_000, COMPLETION_TOKENS_MAX, SEED_2_0, Capability.STRUCTURED),
    efforts=_SEED_HIGH,
    image_rule=SEED_2_0,
    cache_prefix_tokens=1024,
    reasoning_summary=True,
    rpm=500,
    tpm=1_000_000,
)
_SEED_2_1_LONG = msgspec.structs.replace(
    _SEED_2_1,
    family="seed-2.1-long",
    traits=_traits(1_024_000, COMPLETION_TOKENS_MAX, SEED_2_0, Capability.STRUCTURED),
)
_SEED_2_1_TURBO = msgspec.structs.replace(
    _SEED_2_1, family="seed-2.1-turbo", cache_prefix_tokens=2048
)
_SEED_2_1_LITE = msgspec.structs.replace(
    _SEED_2_1,
    family="seed-2.1-lite",
    traits=_traits(1_000_000, COMPLETION_TOKENS_MAX, SEED_2_0, Capability.STRUCTURED),
    rpm=None,
    tpm=None,
)
_EVOLVING = msgspec.structs.replace(
    _SEED_2_1_LONG,
    family="seed-evolving",
    traits=_traits(1_024_000, COMPLETION_TOKENS_MAX, None, Capability.STRUCTURED),
    image_rule=None,
)
_SEED_2_0 = ArkModel(
    family="seed-2.0",
    traits=_traits(256_000, COMPLETION_TOKENS_MAX, SEED_2_0, Capability.STRUCTURED),
    efforts=_SEED_MEDIUM,
    image_rule=SEED_2_0,
    cache_prefix_tokens=1024,
    rpm=30_000,
    tpm=5_000_000,
)
_SEED_2_0_FIXED = msgspec.structs.replace(
    _SEED_2_0, family="seed-2.0-fixed", temperature_fixed=True, top_p_fixed=True
)
_SEED_2_0_CODE = msgspec.structs.replace(
    _SEED_2_0,
    family="seed-2.0-code",
    traits=_traits(256_000, COMPLETION_TOKENS_MAX, None),  # response_format is a 400 here
    image_rule=None,
)
_SEED_1_8 = ArkModel(
    family="seed-1.8",
    traits=_traits(256_000, 64_000, SEED_1_8, Capability.STRUCTURED),
    efforts=_SEED_MEDIUM,
    top_p_fixed=True,
    image_rule=SEED_1_8,
    burst_code="ServerOverloaded",
    rpm=30_000,
    tpm=5_000_000,
)
_SEED_1_6 = ArkModel(
    family="seed-1.6",
    traits=_traits(256_000, 32_000, SEED_BEFORE_1_8, Capability.STRUCTURED),
    penalties=True,
    image_rule=SEED_BEFORE_1_8,
    burst_code="ServerOverloaded",
    rpm=30_000,
    tpm=5_000_000,
)
_SEED_1_6_EFFORT = msgspec.structs.replace(
    _SEED_1_6,
    family="seed-1.6-effort",
    efforts=_SEED_MEDIUM,
    traits=_traits(256_000, 64_000, SEED_BEFORE_1_8, Capability.STRUCTURED),
)
_SEED_1_6_AUTO = msgspec.structs.replace(_SEED_1_6, family="seed-1.6-auto", thinking_auto=True)
_SEED_1_5 = ArkModel(
    family="seed-1.5",
    traits=_traits(32_000, 12_000, None, Capability.STRUCTURED, Capability.LOGPROBS),
    thinks=Thinks.NEVER,
    penalties=True,
    tool_choice_forced=False,
    parallel_off=False,
    burst_code="ServerOverloaded",
    rpm=30_000,
    tpm=5_000_000,
)
_SEED_1_5_VISION = msgspec.structs.replace(
    _SEED_1_5,
    family="seed-1.5-vision",
    traits=_traits(32_000, 16_000, SEED_BEFORE_1_8, Capability.LOGPROBS),
    image_rule=SEED_BEFORE_1_8,
)
_GLM_53 = ArkModel(
    family="glm-5.3-flash",
    traits=_traits(1_000_000, COMPLETION_TOKENS_MAX, THIRD_PARTY, Capability.STRUCTURED),
    thinks=Thinks.ALWAYS,
    efforts=_GLM_5_3_FLASH,
    tool_choice_forced=False,
    parallel_off=False,
    image_rule=THIRD_PARTY,
)
_GLM_52 = ArkModel(
    family="glm-5.2",
    traits=_traits(1_000_000, COMPLETION_TOKENS_MAX, None, Capability.STRUCTURED),
    efforts=_GLM_5_2,
    tool_choice_forced=False,
    parallel_off=False,
    cache_prefix_tokens=2048,
    usage_always=True,
)
_GLM_47 = ArkModel(
    family="glm-4.7",
    traits=_traits(200_000, COMPLETION_TOKENS_MAX, None, Capability.STRUCTURED),
    tool_choice_forced=False,
    parallel_off=False,
)
_DEEPSEEK = ArkModel(
    family="deepseek-v4",
    traits=_traits(1_000_000, COMPLETION_TOKENS_MAX, None, Capability.STRUCTURED),
    efforts=_DEEPSEEK_V4,
    tool_choice_forced=False,
    parallel_off=False,
    cache_prefix_tokens=2048,
    usage_always=True,
)
_DEEPSEEK_VISION = msgspec.structs.replace(
    _DEEPSEEK,
    family="deepseek-v4.1-flash",
    traits=_traits(1_000_000, COMPLETION_TOKENS_MAX, THIRD_PARTY, Capability.STRUCTURED),
    image_rule=THIRD_PARTY,
    usage_always=False,
)

UNKNOWN = ArkModel(
    family="unknown",
    traits=_traits(32_000, 12_000, None),
    tool_choice_forced=False,
    parallel_off=False,
)
"""An id we know nothing about: the smallest limits of the list, text and tools only, and taken for
a thinking model, because an unbounded chain of thought is the costlier mistake."""

FAMILIES: Mapping[str, ArkModel] = {
    model.family: model
    for model in (
        _SEED_2_1, _SEED_2_1_LONG, _SEED_2_1_TURBO, _SEED_2_1_LITE, _EVOLVING,
        _SEED_2_0, _SEED_2_0_FIXED, _SEED_2_0_CODE, _SEED_1_8,
        _SEED_1_6, _SEED_1_6_EFFORT, _SEED_1_6_AUTO, _SEED_1_5, _SEED_1_5_VISION,
        _GLM_53, _GLM_52, _GLM_47, _DEEPSEEK, _DEEPSEEK_VISION, UNKNOWN,
    )
}  # fmt: skip

CATALOGUE: Mapping[str, ArkModel] = {
    "doubao-seed-2-1-pro-260915": _SEED_2_1_LONG,
    "doubao-seed-2-1-pro-260628": _SEED_2_1,
    "doubao-seed-2-1-turbo-260628": _SEED_2_1_TURBO,
    "doubao-seed-2-1-lite-260915": _SEED_2_1_LITE,
    "doubao-seed-evolving": _EVOLVING,
    "doubao-seed-2-0-pro-260215": _SEED_2_0_FIXED,
    "doubao-seed-2-0-lite-260215": _SEED_2_0_FIXED,
    "doubao-seed-2-0-lite-260428": msgspec.structs.replace(_SEED_2_0, reasoning_summary=True),
    "doubao-seed-2-0-mini-260428": _SEED_2_0,
    "doubao-seed-2-0-code-preview-260215": _SEED_2_0_CODE,
    "doubao-seed-1-8-251228": _SEED_1_8,
    "doubao-seed-1-6-251015": _SEED_1_6_EFFORT,
    "doubao-seed-1-6-250615": _SEED_1_6_AUTO,
    "doubao-seed-1-6-flash-250828": _SEED_1_6,
    "doubao-seed-1-6-vision-250815": _SEED_1_6,
    "doubao-1-5-vision-pro-32k-250115": _SEED_1_5_VISION,
    "doubao-1-5-vision-pro-32k-250328": _SEED_1_5_VISION,
    "doubao-1-5-pro-32k-250115": _SEED_1_5,
    "doubao-1-5-lite-32k-250115": _SEED_1_5,
    "deepseek-v4-1-flash-260910": _DEEPSEEK_VISION,
    "deepseek-v4-pro-ga-260813": _DEEPSEEK,
    "deepseek-v4-flash-ga-260731": _DEEPSEEK,
    "glm-5-3-flash-260828": _GLM_53,
    "glm-5-2-260617": _GLM_52,
    "glm-4-7-251222": _GLM_47,
}
"""Known ids. A listed model is not always callable: some are flagged for retirement."""

# A version that is newer than this table behaves like its family; longest prefix wins.
_PREFIXES: tuple[tuple[str, ArkModel], ...] = tuple(
    sorted(
        {
            "doubao-seed-2-1-": _SEED_2_1,
            "doubao-seed-2-1-turbo-": _SEED_2_1_TURBO,
            "doubao-seed-2-0-": _SEED_2_0,
            "doubao-seed-2-0-code-": _SEED_2_0_CODE,
            "doubao-seed-1-8-": _SEED_1_8,
            "doubao-seed-1-6-": _SEED_1_6,
            "doubao-1-5-": _SEED_1_5,
            "doubao-1-5-vision-": _SEED_1_5_VISION,
            "deepseek-v4-": _DEEPSEEK,
            "glm-5-3-flash-": _GLM_53,
            "glm-5-2-": _GLM_52,
            "glm-4-7-": _GLM_47,
        }.items(),
        key=lambda item: -len(item[0]),
    )
)


def model_of(model: str, family: str | None = None) -> ArkModel:
    """What is known of a model or endpoint id; `family` (a key of FAMILIES) overrides the id.

    Raises KeyError for a family that does not exist: a misspelt configuration must not pass.
    """
    if family is not None:
        return FAMILIES[family]
    known = CATALOGUE.get(model)
    if known is not None:
        return known
    return next((traits for prefix, traits in _PREFIXES if model.startswith(prefix)), UNKNOWN)


def traits_of(model: str, family: str | None = None) -> ModelTraits:
    """The part of `model_of` that the decision needs. Raises KeyError like it."""
    return model_of(model, family).traits


def base_name(model: str) -> str:
    """The model without its date: rate limits are shared by all versions of a name."""
    head, _, tail = model.rpartition("-")
    return head if head and len(tail) == 6 and tail.isdigit() else model
