from __future__ import annotations

import json

import pytest

from backends.base import Failure
from backends.chat import EFFORTS, Message, TemplateKwargs, Thinking
from backends.engines.dialect import continues, rename, with_members
from backends.engines.sglang import Sglang
from backends.engines.vllm import Vllm
from backends.engines.yuzui import Plain, Yuzui
from backends.glm.request.protocol import parse_chat
from tests.backends import conforming
from tests.backends.engines.kit import backend_of, call, chat, whole


def test_members_are_added_to_an_object() -> None:
    assert json.loads(with_members(b'{"a":[1,{"b":"}"}]}', {"c": "\u00e9"})) == {
        "a": [1, {"b": "}"}],
        "c": "\u00e9",
    }
    assert with_members(b'{"a":1}', {}) == b'{"a":1}'


@pytest.mark.parametrize(("role", "expected"), [("assistant", True), ("user", False)])
def test_a_last_message_of_the_assistant_is_a_beginning(role: str, expected: bool) -> None:
    messages = [Message(role="user", content="a"), Message(role=role, content="b")]  # type: ignore[arg-type]
    assert continues(chat(messages=messages)) is expected


def test_a_name_that_is_taken_stays() -> None:
    value: dict[str, object] = {"old": 1, "new": 2}
    rename(value, "old", "new")
    assert value == {"new": 2}
    rename(None, "old", "new")


@pytest.mark.parametrize("effort", [None, *EFFORTS])
@pytest.mark.parametrize("kind", [None, "enabled", "disabled", "auto"])
@pytest.mark.parametrize("flag", [None, True, False])
def test_thinking_means_the_same_to_every_engine(
    effort: str | None, kind: str | None, flag: bool | None
) -> None:
    """What our own worker reads of a request is what the others are told."""
    asked = chat(
        reasoning_effort=effort,
        thinking=None if kind is None else Thinking(type=kind),  # type: ignore[arg-type]
        chat_template_kwargs=None if flag is None else TemplateKwargs(enable_thinking=flag),
    )
    ours = parse_chat(Yuzui().encode(call(asked))).enable_thinking
    for dialect in (Vllm(), Sglang()):
        sent = json.loads(dialect.encode(call(asked)))
        assert sent.get("chat_template_kwargs", {}).get("enable_thinking") == ours
        assert "thinking" not in sent
        assert sent.get("reasoning_effort") in (None, "low", "medium", "high")
        assert ours or "reasoning_effort" not in sent


@pytest.mark.parametrize("effort", EFFORTS)
async def test_every_effort_and_form_is_taken_by_engines_that_refuse_what_they_do_not_know(
    effort: str,
) -> None:
    form = {"type": "regex", "pattern": "a+"}
    for server, dialect in ((conforming.Vllm(), Vllm()), (conforming.Sglang(), Sglang())):
        async with server as engine, backend_of(engine, dialect) as backend:
            asked = chat(reasoning_effort=effort, response_format=form)
            answer, _ = await whole(backend, call(asked))
            thought = answer["choices"][0]["message"]["reasoning_content"]
            assert bool(thought) == EFFORTS[effort]
            (sent,) = engine.asked
            assert "response_format" not in sent
            pattern = sent.get("structured_outputs", sent)
            assert pattern["regex"] == "a+"
            kept = {"type": "json_object"}
            await whole(backend, call(chat(response_format=kept)))
            assert engine.asked[1]["response_format"] == kept


@pytest.mark.parametrize(
    "strange", [{"response_format": {"type": "regex", "pattern": "a"}}, {"reasoning_effort": "max"}]
)
async def test_without_their_dialect_they_refuse(strange: dict[str, object]) -> None:
    """The positive control."""
    for server in (conforming.Vllm(), conforming.Sglang()):
        async with server as engine, backend_of(engine, Plain()) as backend:
            with pytest.raises(Failure):
                await whole(backend, call(chat(**strange)))
