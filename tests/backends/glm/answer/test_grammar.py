"""Masks from grammars, driven by random logits: a model that has learned nothing at all."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.glm.answer import grammar
from backends.glm.answer.forms import Form, StructuredOutputs, Tools, read_form, read_tools
from backends.glm.answer.grammar import AnswerConstraint, Grammars, StrictCalls
from backends.glm.errors import WorkerError
from backends.glm.model.load import Checkpoint
from backends.glm.model.sampling import Sampler, pick_all
from backends.glm.types import Sampling, Thinking
from tests.backends.glm.schema_check import conforms

NO_TOOLS = Tools()
LENGTH = 400


@pytest.fixture(scope="module")
def grammars(checkpoint: Checkpoint) -> Grammars:
    return Grammars(checkpoint.tokenizer, width=640, stop_ids=checkpoint.stop_ids)


def form(**structured: Any) -> Form:
    made = read_form({"type": "json_schema", "json_schema": {"schema": structured}}, None)
    assert made is not None
    return made


def regex(pattern: str) -> Form:
    return Form(param="structured_outputs.regex", regex=pattern)


def random_ids(
    grammars: Grammars,
    constraint: AnswerConstraint | StrictCalls,
    *,
    seed: int = 0,
    length: int = LENGTH,
    leaning: float = 3.0,
) -> tuple[list[int], bool]:
    """Ids drawn from noise under the constraint, and whether it came to an end. `leaning`: towards
    short tokens that close things, since noise alone rarely ends a string."""
    sampler = Sampler(Sampling(seed=seed), [], constraint)
    generator = torch.Generator().manual_seed(seed)
    closing = [b'"', b"}", b"]", b",", b"</arg_key>", b"</arg_value>", b"</tool_call>"]
    closers = [i for i in range(grammars.width) if grammars._tokenizer.bytes_of(i) in closing]
    ids: list[int] = []
    for _ in range(length):
        logits = torch.randn(1, grammars.width, generator=generator) * 3
        logits[0, closers] += leaning
        logits[0, sorted(grammars.end_ids)] += leaning
        (drawn,) = pick_all([sampler], logits)
        if drawn.token_id in grammars.end_ids:
            return ids, True
        ids.append(drawn.token_id)
    return ids, False


def text_of(grammars: Grammars, ids: list[int]) -> str:
    return b"".join(grammars._tokenizer.bytes_of(i) for i in ids).decode()


def answer(
    grammars: Grammars, wanted: Form | None, tools: Tools = NO_TOOLS, *, seed: int = 0
) -> str | None:
    """A random answer under the grammar, None if it did not come to an end."""
    constraint = grammars.constraint(wanted, tools, thinking="closed")
    assert constraint is not None
    ids, ended = random_ids(grammars, constraint, seed=seed)
    return text_of(grammars, ids) if ended else None


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["a", "好", 3, None]}, "maxItems": 3},
        "boss": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/short"}]},
    },
    "required": ["name", "age", "boss"],
    "additionalProperties": False,
    "$defs": {
        "short": {
            "type": "object",
            "properties": {"name": {"const": "B"}, "ok": {"type": "boolean"}},
            "required": ["name", "ok"],
            "additionalProperties": False,
        }
    },
}


def test_a_nested_schema_is_met_by_noise(grammars: Grammars) -> None:
    answers = [answer(grammars, form(**PERSON), seed=seed) for seed in range(20)]
    ended = [text for text in answers if text is not None]
    assert len(ended) > 15
    for text in ended:
        assert conforms(json.loads(text), PERSON), text
    assert len(set(ended)) > 10


def test_the_check_of_this_test_sees_a_difference() -> None:
    good = {"name": "x", "age": 3, "boss": None}
    assert conforms(good, PERSON)
    for bad in ({**good, "age": -1}, {**good, "more": 1}, {"name": "x"}, {**good, "boss": {}}, 3):
        assert not conforms(bad, PERSON)


NAMES = st.sampled_from(["a", "b b", "好", 'q"', "x/y"])
LEAVES: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.just({"type": "null"}),
    st.just({"type": "boolean"}),
    st.builds(lambda m, n: {"type": "integer", "minimum": m, "maximum": m + n},
              st.integers(-50, 50), st.integers(0, 99)),
    st.builds(lambda n: {"type": "string", "maxLength": n}, st.integers(0, 6)),
    st.builds(lambda v: {"enum": v}, st.lists(
        st.none() | st.booleans() | st.integers(-9, 9) | st.text("ab\n好\"", max_size=3),
        min_size=1, max_size=3)),
    st.just({"type": "string", "pattern": "^[a-c]{2}$"}),
    st.just({"type": "number", "minimum": 0, "maximum": 1}),
)  # fmt: skip


def objects(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    properties = st.dictionaries(NAMES, inner, max_size=3)
    return properties.flatmap(
        lambda p: (
            st.lists(st.sampled_from(sorted(p)), unique=True).map(
                lambda required: {
                    "type": "object",
                    "properties": p,
                    "required": required,
                    "additionalProperties": False,
                }
            )
            if p
            else st.just({"type": "object", "properties": {}, "additionalProperties": False})
        )
    )


SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: (
        objects(inner)
        | st.builds(lambda i: {"type": "array", "items": i, "maxItems": 2}, inner)
        | st.builds(lambda a, b: {"anyOf": [a, b]}, inner, inner)
    ),
    max_leaves=6,
)


@settings(deadline=None, max_examples=60)
@given(SCHEMAS, st.integers(0, 2**20))
def test_random_schemas_are_met_by_noise(
    grammars: Grammars, schema: dict[str, Any], seed: int
) -> None:
    text = answer(grammars, form(**schema), seed=seed)
    if text is not None:
        assert conforms(json.loads(text), schema), (schema, text)


def test_json_is_written_on_one_line(grammars: Grammars) -> None:
    def fits(text: str) -> bool:
        constraint = grammars.constraint(form(type="array", items={}), NO_TOOLS, thinking="closed")
        assert isinstance(constraint, AnswerConstraint)
        for token_id in grammars._tokenizer.encode_plain(text):
            if not constraint.allowed()[token_id]:
                return False
            constraint.accept(token_id)
        return bool(constraint.allowed()[sorted(grammars.end_ids)].all())

    assert fits('[1, {"a": [2, 3]}]')
    assert fits('[1,{"a":[2,3]}]')
    assert not any(fits(text) for text in ("[ 1]", "[1,\n2]", "[1 ]", '[{"a" :1}]'))


def test_json_object_is_any_object(grammars: Grammars) -> None:
    wanted = read_form({"type": "json_object"}, None)
    ended = [text for seed in range(12) if (text := answer(grammars, wanted, seed=seed))]
    assert len(ended) >= 6
    assert all(isinstance(json.loads(text), dict) for text in ended)


@pytest.mark.parametrize(
    "pattern", [r"[0-9]{3}-[a-z]{2}", r"^(red|绿)$", r"a/b[0-9]", r"x\/y", r"(?i:ab)+c", "a\nb"]
)
def test_a_regex_is_matched_as_a_whole(grammars: Grammars, pattern: str) -> None:
    for seed in range(5):
        text = answer(grammars, regex(pattern), seed=seed)
        assert text is not None
        assert re.fullmatch(pattern, text), text


def test_a_choice_is_one_of_the_texts(grammars: Grammars) -> None:
    texts = ["yes.", "no (never)", "a|b", "好/不好", "^$"]
    wanted = read_form(None, StructuredOutputs(choice=texts))
    drawn = {answer(grammars, wanted, seed=seed) for seed in range(30)}
    assert drawn <= set(texts)
    assert len(drawn) > 2


def tool(name: str, **parameters: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


BOOK = tool(
    "book",
    type="object",
    properties={
        "city": {"type": "string", "minLength": 1, "maxLength": 6},
        "kind": {"enum": ["bus", "boat"]},
        "seats": {"type": "integer", "minimum": 1, "maximum": 4},
        "with": {"$ref": "#/$defs/list"},
    },
    required=["city", "kind", "seats"],
    **{"$defs": {"list": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2}}},
)
NOW = tool("now")
CALL = re.compile(
    r"<tool_call>(?:now\n|book\n<arg_key>city</arg_key>\n<arg_value>(?s:.){1,6}</arg_value>\n"
    r"<arg_key>kind</arg_key>\n<arg_value>(?:bus|boat)</arg_value>\n"
    r"<arg_key>seats</arg_key>\n<arg_value>[1-4]</arg_value>\n"
    r"(?:<arg_key>with</arg_key>\n<arg_value>\[[^<]*\]</arg_value>\n)?)</tool_call>"
)


def test_a_call_can_be_required(grammars: Grammars) -> None:
    tools = read_tools([BOOK, NOW], "required", parallel=False)
    drawn = [answer(grammars, None, tools, seed=seed) for seed in range(12)]
    assert all(text and CALL.fullmatch(text) for text in drawn), drawn
    assert len({text[:14] for text in drawn if text}) == 2  # each of the two was called


def test_a_named_function_is_called_once(grammars: Grammars) -> None:
    choice = {"type": "function", "function": {"name": "now"}}
    tools = read_tools([BOOK, NOW], choice, parallel=None)
    assert {answer(grammars, None, tools, seed=s) for s in range(4)} == {
        "<tool_call>now\n</tool_call>"
    }


def test_several_calls_may_follow_each_other(grammars: Grammars) -> None:
    tools = read_tools([NOW], "required", parallel=None)
    one = "<tool_call>now\n</tool_call>"
    drawn = [answer(grammars, None, tools, seed=seed) or one for seed in range(20)]
    assert all(re.fullmatch(f"{one}(\n{one})*", text) for text in drawn)
    assert len(set(drawn)) > 1


def test_a_form_or_calls_where_the_model_may_choose(grammars: Grammars) -> None:
    tools = read_tools([NOW], "auto", parallel=False)
    drawn = {answer(grammars, regex("yes"), tools, seed=seed) for seed in range(30)}
    assert drawn == {"yes", "<tool_call>now\n</tool_call>"}


def test_calls_of_a_strict_tool_are_held_to_its_schema(grammars: Grammars) -> None:
    """The text around them is free, and so are the arguments of a tool that is not strict."""
    strict = {**BOOK, "function": {**BOOK["function"], "strict": True}}
    tools = read_tools([strict, NOW], "auto", parallel=None)
    opened = grammars._tokenizer.control_id("<tool_call>")
    assert opened is not None
    for seed in range(12):
        constraint = grammars.constraint(None, tools, thinking="closed")
        assert isinstance(constraint, StrictCalls)
        for token_id in grammars._tokenizer.encode_plain("Let me"):
            assert constraint.allowed() is None
            constraint.accept(token_id)
        calls = []
        for number in range(2):  # each call begins anew
            constraint.accept(opened)
            ids = [opened]
            while constraint.allowed() is not None and len(ids) < LENGTH:
                (token_id,), ended = random_ids(
                    grammars, constraint, seed=seed + len(ids), length=1
                )
                assert not ended  # a call cannot be left open
                ids.append(token_id)
            assert constraint.allowed() is None, text_of(grammars, ids)
            assert number == len(calls)
            calls.append(text_of(grammars, ids))
        for text in calls:
            assert CALL.fullmatch(text) or text.startswith("<tool_call>now"), text


def test_a_call_in_a_thought_is_a_thought(grammars: Grammars) -> None:
    strict = {**BOOK, "function": {**BOOK["function"], "strict": True}}
    tools = read_tools([strict], None, None)
    think, close, opened = (
        grammars._tokenizer.control_id(t) for t in ("<think>", "</think>", "<tool_call>")
    )
    for thinking, first in (("open", ()), ("model", (think,))):
        constraint = grammars.constraint(None, tools, thinking=thinking)  # type: ignore[arg-type]
        assert constraint is not None
        for token_id in (*first, opened):
            constraint.accept(token_id)  # type: ignore[arg-type]
        assert constraint.allowed() is None
        for token_id in (close, opened):
            constraint.accept(token_id)  # type: ignore[arg-type]
        assert constraint.allowed() is not None


def test_without_form_and_force_nothing_is_masked(grammars: Grammars) -> None:
    tools = read_tools([NOW], "auto", parallel=None)
    assert grammars.constraint(None, tools, thinking="closed") is None
    assert grammars.constraint(None, NO_TOOLS, thinking="model") is None


def names(grammars: Grammars, mask: np.ndarray[Any, Any]) -> set[int]:
    return set(np.flatnonzero(mask).tolist())


@pytest.mark.parametrize("thinking", ["model", "open"])
def test_after_a_thought_the_form_begins(grammars: Grammars, thinking: Thinking) -> None:
    think, close = (grammars._tokenizer.control_id(t) for t in ("<think>", "</think>"))
    assert think is not None
    assert close is not None
    constraint = grammars.constraint(regex("ok"), NO_TOOLS, thinking=thinking)
    assert constraint is not None
    if thinking == "model":
        assert names(grammars, constraint.allowed()) == {think}
        constraint.accept(think)
    free = names(grammars, constraint.allowed())
    assert free == set(range(grammars.width)) - grammars.end_ids  # a thought cannot end the answer
    for token_id in (*grammars._tokenizer.encode_plain("no"), close):
        constraint.accept(token_id)
    ids, ended = random_ids(grammars, constraint, length=8)
    assert ended
    assert text_of(grammars, ids).lstrip("\n") == "ok"


def test_every_stop_id_ends_a_form(grammars: Grammars) -> None:
    constraint = grammars.constraint(regex("a"), NO_TOOLS, thinking="closed")
    assert constraint is not None
    (a,) = grammars._tokenizer.encode_plain("a")
    assert names(grammars, constraint.allowed()) == {a}
    constraint.accept(a)
    assert names(grammars, constraint.allowed()) == grammars.end_ids
    assert len(grammars.end_ids) == 3


def test_a_form_that_cannot_go_on_ends_cleanly(grammars: Grammars) -> None:
    constraint = grammars.constraint(regex("a"), NO_TOOLS, thinking="closed")
    assert constraint is not None
    constraint.accept(grammars._tokenizer.encode_plain("z")[0])  # cannot happen under its mask
    assert names(grammars, constraint.allowed()) == grammars.end_ids
    sampler = Sampler(Sampling(seed=1, logprobs=1), [], constraint)
    (drawn,) = pick_all([sampler], torch.zeros(1, grammars.width))
    assert drawn.token_id in grammars.end_ids


def test_an_answer_that_has_begun(grammars: Grammars) -> None:
    def begun(text: str) -> AnswerConstraint:
        made = grammars.constraint(
            form(**PERSON),
            NO_TOOLS,
            thinking="closed",
            begun=grammars._tokenizer.encode_plain(text),
        )
        assert made is not None
        return made

    ids, ended = random_ids(grammars, begun('{"name": "x", "age": 1'))
    if ended:
        assert conforms(json.loads('{"name": "x", "age": 1' + text_of(grammars, ids)), PERSON)
    with pytest.raises(WorkerError) as caught:
        begun("The person")
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    ("wanted", "tools", "param"),
    [
        (form(type="object", contains=1), [], "response_format.json_schema.schema"),
        (form(type="nonsense"), [], "response_format.json_schema.schema"),
        (form(**{"$ref": "http://example.com/x"}), [], "response_format.json_schema.schema"),
        (form(**{"$ref": "#/$defs/no"}), [], "response_format.json_schema.schema"),
        (regex("(a"), [], "structured_outputs.regex"),
        (None, [NOW, tool("f", properties={"a": {"type": "array", "contains": 1}})],
         "tools[1].function.parameters"),
        (None, [tool("f", properties={"a": {"type": "string", "pattern": "(x"}})],
         "tools[0].function.parameters"),
    ],
)  # fmt: skip
def test_what_cannot_be_followed_is_refused_by_name(
    grammars: Grammars, wanted: Form | None, tools: list[Any], param: str
) -> None:
    read = read_tools(tools, "required" if tools else None, parallel=None)
    with pytest.raises(WorkerError) as caught:
        grammars.constraint(wanted, read, thinking="closed")
    error = caught.value
    assert (error.status, error.code, error.param) == (400, "unsupported_schema", param)
    assert len(error.message) < 500


BOMBS = [
    regex("((a{1,1000}){1,1000}){1,1000}"),
    regex("(a|b|c|ab|bc)*x{1,5000}(.{0,2000}a.{0,2000}){40}"),
    form(type="array", items={"type": "string"}, minItems=10**9),
    form(**{"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}] * 400}}}),
    form(type="object", properties={f"p{i}": {"type": "string", "pattern": f"^(a|b{{1,{i}}})*$"}
                                    for i in range(400)}),
]  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_bounded(grammars: Grammars, bomb: Form) -> None:
    """Compiled or refused, and what is compiled goes on or ends; nothing hangs or eats memory."""
    try:
        constraint = grammars.constraint(bomb, NO_TOOLS, thinking="closed")
    except WorkerError:
        return
    assert constraint is not None
    random_ids(grammars, constraint, length=20)


def test_a_grammar_is_compiled_once_and_few_are_kept(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    grammars = Grammars(checkpoint.tokenizer, width=640, stop_ids=checkpoint.stop_ids)
    compiled: list[str] = []
    compile_ = Grammars._compile
    monkeypatch.setattr(Grammars, "_compile", lambda s, r: (compiled.append(r), compile_(s, r))[1])
    monkeypatch.setattr(grammar, "GRAMMARS_MAX", 2)
    for pattern in ("a", "b", "a", "c", "a", "b"):
        grammars.constraint(regex(pattern), NO_TOOLS, thinking="closed")
    assert [rules[-4:-1] for rules in compiled] == ["/a/", "/b/", "/c/", "/b/"]
    assert len(grammars._compiled) == 2


def test_two_answers_under_one_grammar_do_not_share_a_state(grammars: Grammars) -> None:
    first, second = (grammars.constraint(regex("ab"), NO_TOOLS, thinking="closed") for _ in "12")
    assert first is not None
    assert second is not None
    before = names(grammars, second.allowed())
    first.accept(grammars._tokenizer.encode_plain("a")[0])
    assert names(grammars, second.allowed()) == before != names(grammars, first.allowed())


def test_a_checkpoint_whose_stop_ids_never_come(checkpoint: Checkpoint) -> None:
    grammars = Grammars(checkpoint.tokenizer, width=640, stop_ids=frozenset({10**6}))
    assert answer(grammars, regex("ab")) == "ab"
