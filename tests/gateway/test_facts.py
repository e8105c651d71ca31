from __future__ import annotations

import base64
import io
import json
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import pytest
from multidict import CIMultiDict, CIMultiDictProxy
from PIL import Image

from backends.limits import IMAGES_MAX
from gateway.errors import GatewayError
from gateway.facts import (
    DEADLINE_MS_MAX,
    adapter_of,
    facts_of,
    new_request_id,
    scopes_of,
)
from gateway.wire.chat import ChatDialect
from policies import tokens
from policies.sensitivity import LabelRules
from policies.types import Capability, Facts, ImageSize, Sensitivity, Site, SloClass
from tests.policies.builders import principal, rules

HI = [{"role": "user", "content": "hi"}]
HTTP = "https://example.com/a.png"


class Past:
    """What a history says: one caller's answers of one model hardly exceed 200 tokens."""

    def bound(self, tenant: str, model: str) -> int | None:
        return {"short": 200, "long": 1_500}.get(tenant)


class Likely:
    """The part of the world that facts ask: how long answers of a model have been."""

    def likely_output_tokens(self, model: str, output_tokens_max: int) -> int:
        return {"glm": 77}.get(model, 1)


def gateway(**label_rules: Any) -> Any:
    limits = SimpleNamespace(output_tokens_default=512, output_tokens_max=2_048)
    labels = SimpleNamespace(metadata_labels=("project",))
    return SimpleNamespace(
        config=SimpleNamespace(limits=limits, budgets=labels),
        rules=rules(),
        label_rules=LabelRules(**label_rules),
        world=Likely(),
        history=Past(),
        pool=SimpleNamespace(size=2),
    )


def facts(
    *, headers: list[tuple[str, str]] | None = None, who: Any = None, at: Any = None, **body: Any
) -> Facts:
    asked = ChatDialect().read(json.dumps({"model": "glm", "messages": HI, **body}).encode())
    given = CIMultiDictProxy(CIMultiDict(headers or []))
    return facts_of("yz-1", who or principal(), asked, given, at or gateway())


def refused(**asked: Any) -> GatewayError:
    with pytest.raises(GatewayError) as caught:
        facts(**asked)
    return caught.value


@lru_cache
def picture(width: int = 40, height: int = 30) -> str:
    out = io.BytesIO()
    Image.new("RGB", (width, height)).save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def seen(*urls: str, text: str = "") -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": u}} for u in urls]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


# ------------------------------------------------------------------ model and side


@pytest.mark.parametrize(
    ("model", "name", "side"),
    [
        ("glm", "glm", None),
        ("glm-latest", "glm", None),
        ("local/glm", "glm", Site.LOCAL),
        ("cloud/glm-latest", "glm", Site.CLOUD),
        ("cloud/", "", Site.CLOUD),
        ("other/glm", "other/glm", None),
        ("nobody", "nobody", None),
        ("local/cloud/glm", "cloud/glm", Site.LOCAL),
    ],
)
def test_a_side_may_stand_before_the_name(model: str, name: str, side: Site | None) -> None:
    found = facts(model=model)
    assert (found.model, found.side) == (name, side)


@pytest.mark.parametrize(
    ("model", "name", "adapter"),
    [
        ("glm:faq", "glm", "faq"),
        ("local/glm-latest:faq", "glm", "faq"),
        ("glm:", "glm:", ""),
        ("nobody:faq", "nobody:faq", ""),
        ("glm:a:b", "glm:a:b", ""),
    ],
)
def test_an_adapter_may_stand_behind_the_name(model: str, name: str, adapter: str) -> None:
    found = facts(model=model)
    assert (found.model, found.adapter) == (name, adapter)


def test_a_public_name_with_a_colon_is_that_name() -> None:
    assert adapter_of("glm:9b", {"glm", "glm:9b"}) == ("glm:9b", "")
    assert adapter_of("glm:9b:faq", {"glm", "glm:9b"}) == ("glm:9b", "faq")


def test_a_token_that_names_models_must_name_the_adapter_too() -> None:
    assert refused(model="glm:faq", who=principal(models=("glm",))).code == "model_not_allowed"
    for allowed in ("glm:faq", "glm-latest:faq"):
        found = facts(model="glm-latest:faq", who=principal(models=(allowed,)))
        assert found.adapter == "faq"


@pytest.mark.parametrize("allowed", [(), ("glm",), ("glm-latest", "x")])
def test_a_token_allows_a_model_by_its_name_or_by_an_alias(allowed: tuple[str, ...]) -> None:
    assert facts(model="local/glm-latest", who=principal(models=allowed)).model == "glm"


def test_a_token_that_allows_others() -> None:
    error = refused(model="cloud/glm", who=principal(models=("tiny", "vision")))
    assert (error.status, error.code, error.param) == (403, "model_not_allowed", "model")
    assert error.message == "this token allows the models tiny, vision, not 'glm'"


# ------------------------------------------------------------------ sizes


def prompt_max(**body: Any) -> int:
    return facts(**body).prompt_tokens_max


def test_a_bound_by_hand() -> None:
    """Two bytes of text, one message, and what a template adds."""
    assert prompt_max() == 2 + tokens.MESSAGE_TOKENS + tokens.TEMPLATE_TOKENS


@pytest.mark.parametrize(
    "more",
    [
        {"messages": [{"role": "user", "content": "hi" + "x" * 50}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi" + "x" * 50}]}]},
        {"messages": [{**HI[0], "name": "x" * 50}]},
        {"messages": [{**HI[0], "reasoning_content": "x" * 50}]},
        {"messages": [{**HI[0], "tool_call_id": "x" * 50}]},
        {"messages": [{**HI[0], "tool_calls": [{"id": "x" * 50, "function": {"name": ""}}]}]},
        {"messages": [{**HI[0], "tool_calls": [{"id": "", "function": {"name": "x" * 50}}]}]},
        {
            "messages": [
                {
                    **HI[0],
                    "tool_calls": [{"id": "", "function": {"name": "", "arguments": "x" * 50}}],
                }
            ]
        },
        {"tools": ["x" * 50]},
        {"tool_choice": "x" * 50},
        {"response_format": {"type": "text", "x": "x" * 50}},
        {"structured_outputs": {"regex": "x" * 50}},
    ],
    ids=lambda more: json.dumps(more)[:40],
)
def test_everything_that_becomes_prompt_text_is_held_for(more: dict[str, Any]) -> None:
    assert prompt_max(**more) >= prompt_max() + 50


def test_chinese_counts_by_its_bytes_for_money_and_by_its_characters_for_time() -> None:
    found = facts(messages=[{"role": "user", "content": "鱼嘴" * 30}])
    assert found.prompt_tokens_max == 180 + tokens.MESSAGE_TOKENS + tokens.TEMPLATE_TOKENS
    assert found.prompt_tokens_likely == tokens.text_tokens_likely(60, 180, messages=1)


@pytest.mark.parametrize(
    ("body", "limit"),
    [
        ({}, 512),
        ({"max_tokens": 100}, 100),
        ({"max_completion_tokens": 200}, 200),
        ({"max_tokens": 60_000}, 2_048),
    ],
)
def test_the_answer_is_clamped(body: dict[str, Any], limit: int) -> None:
    found = facts(**body)
    assert found.output_tokens_max == limit
    assert found.output_tokens_likely == 77, "as the model answered lately"


# ------------------------------------------------------------------ pictures


def test_pictures_are_measured_and_addresses_counted() -> None:
    found = facts(messages=seen(picture(), HTTP, picture(64, 20), "HTTP://X/y"))
    assert found.images == (ImageSize(width=40, height=30), ImageSize(width=64, height=20))
    assert found.remote_images == 2
    assert found.prompt_tokens_max == prompt_max(messages=[{"role": "user", "content": ""}]), (
        "what a picture costs is for the plan to say; its base64 is no text"
    )


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("data:image/png;base64,!!!!", "image_base64_invalid"),
        ("data:image/png;base64,AAAA", "image_unreadable"),
        ("data:image/svg+xml;base64,AAAA", "image_type_unsupported"),
        ("file:///etc/passwd", "image_url_malformed"),
        ("ftp://x/y.png", "image_url_malformed"),
        ("", "image_url_malformed"),
    ],
)
def test_a_picture_that_cannot_be_read(url: str, code: str) -> None:
    error = refused(messages=seen(url))
    where = "messages[0].content[0].image_url"
    assert (error.status, error.code, error.param) == (400, code, where)


def test_too_many_pictures() -> None:
    assert facts(messages=seen(*[HTTP] * IMAGES_MAX)).remote_images == IMAGES_MAX
    assert refused(messages=seen(*[HTTP] * (IMAGES_MAX + 1))).code == "too_many_images"


# ------------------------------------------------------------------ needs


@pytest.mark.parametrize(
    ("body", "needs"),
    [
        ({}, set()),
        ({"messages": seen(HTTP)}, {Capability.VISION}),
        ({"tools": [{}]}, {Capability.TOOLS}),
        ({"tools": []}, set()),
        ({"response_format": {"type": "text"}}, set()),
        ({"response_format": {"type": "json_object"}}, {Capability.STRUCTURED}),
        ({"structured_outputs": {"regex": "a"}}, {Capability.STRUCTURED}),
        ({"tools": [{}], "tool_choice": "none"}, set()),
        ({"logprobs": True}, {Capability.LOGPROBS}),
        ({"logprobs": False}, set()),
        ({"n": 1}, set()),
        ({"n": 2}, {Capability.CHOICES}),
        (
            {"n": 2, "tools": [{}], "messages": seen(HTTP)},
            {Capability.CHOICES, Capability.TOOLS, Capability.VISION},
        ),
    ],
)
def test_what_a_request_needs(body: dict[str, Any], needs: set[Capability]) -> None:
    assert facts(**body).needs == needs


# ------------------------------------------------------------------ headers and rights


def test_labels_from_every_source() -> None:
    sensitive = Sensitivity.SENSITIVE
    header = [("X-Yuzui-Sensitivity", "Sensitive")]
    assert facts(headers=header).label.source == "header"
    assert facts(metadata={"sensitivity": "sensitive"}).label.source == "body"
    assert facts(who=principal(sensitivity_floor=sensitive)).label.source == "claim"
    assert facts().label.source == "default"
    strict = gateway(image_default=sensitive)
    assert facts(messages=seen(HTTP), at=strict).label.source == "images"
    twice = [("x-yuzui-sensitivity", "public"), ("x-yuzui-sensitivity", "internal")]
    assert facts(headers=twice).label.level is sensitive


@pytest.mark.parametrize(
    ("values", "deadline"),
    [([], None), (["1"], 1), (["1500"], 1_500), (["900", "300"], 300), (["3600000"], 3_600_000)],
)
def test_a_deadline(values: list[str], deadline: int | None) -> None:
    found = facts(headers=[("x-yuzui-deadline-ms", value) for value in values])
    assert found.deadline_ms == deadline


@pytest.mark.parametrize(
    "values", [["0"], ["-1"], ["1.5"], ["soon"], [""], [str(DEADLINE_MS_MAX + 1)], ["9" * 5_000],
               ["500", "x"]],
    ids=lambda values: values[0][:9],
)  # fmt: skip
def test_a_deadline_that_is_none(values: list[str]) -> None:
    error = refused(headers=[("x-yuzui-deadline-ms", value) for value in values])
    assert (error.status, error.param) == (400, "x-yuzui-deadline-ms")


def test_scopes_are_who_asks_and_what_the_token_adds_once() -> None:
    who = principal(org="group", budgets=("label:trial", "tenant:acme"))
    assert scopes_of(who) == (
        "tenant:acme", "user:app", "key:k1", "org:group", "label:trial",
    )  # fmt: skip
    assert scopes_of(principal()) == ("tenant:acme", "user:app", "key:k1")
    assert facts(who=who).scopes == scopes_of(who)


def test_the_rest_is_as_it_was_asked() -> None:
    found = facts(stream=True, who=principal(slo=SloClass.BATCH, tenant="b"))
    assert (found.request_id, found.tenant, found.slo, found.stream) == (
        "yz-1", "b", SloClass.BATCH, True,
    )  # fmt: skip
    assert facts(stream=None).stream is False


def test_request_ids_are_long_and_all_different() -> None:
    ids = [new_request_id() for _ in range(200)]
    assert len(set(ids)) == 200
    assert {len(one) for one in ids} == {35}
    assert all(one.startswith("yz-") and one.isascii() for one in ids)


def test_labels_of_metadata_add_scopes_only_where_the_operator_named_them() -> None:
    named = facts(metadata={"project": "apollo", "team": "moon", "sensitivity": "public"})
    assert named.scopes == (*scopes_of(principal()), "label:project=apollo")
    assert facts(metadata={"project": None}).scopes == scopes_of(principal())


@pytest.mark.parametrize("value", ["", "a b", "a\nb", "a" * 81, 5, ["a"], {"a": 1}, "a{b}", "a:b"])
def test_a_label_that_cannot_be_a_scope_is_refused_by_name(value: object) -> None:
    assert refused(metadata={"project": value}).param == "metadata.project"


@pytest.mark.parametrize(
    ("tenant", "wish", "bounds"),
    [
        ("new", {}, (512, 0, 0)),  # nothing is known: the default
        ("short", {}, (512, 200, 200)),  # the default, and 200 when money is short
        ("long", {}, (1_500, 0, 0)),  # more than the default: its answers are long
        ("short", {"max_tokens": 100}, (100, 0, 0)),
        ("short", {"max_tokens": 1_000}, (1_000, 0, 200)),  # what was asked for is not shortened
        ("long", {"max_tokens": 9_999}, (2_048, 0, 1_500)),
    ],
)
def test_bounds_on_the_output(
    tenant: str, wish: dict[str, int], bounds: tuple[int, int, int]
) -> None:
    found = facts(who=principal(tenant=tenant), **wish)
    assert (
        found.output_tokens_max, found.output_tokens_tight, found.output_tokens_first
    ) == bounds  # fmt: skip


def test_every_answer_that_is_wanted_counts() -> None:
    assert (facts().choices, facts(n=1).choices, facts(n=5).choices) == (1, 1, 5)
