from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.glm.answer.deltas import Delta
from backends.glm.answer.toolcalls import MARKERS, ToolCallParser

WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "units": {"enum": ["C", "F"]},
        "place": {"$ref": "#/$defs/place"},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "code": {"type": ["string", "integer"]},
    },
    "$defs": {"place": {"type": "object"}},
}
TOOLS = {"get_weather": WEATHER, "now": {}}


def pieces_of(text: str) -> list[str]:
    """Markers apart from the text between them."""
    pieces, rest = [], text
    while rest:
        at, marker = min(((rest.find(m), m) for m in MARKERS if m in rest), default=(len(rest), ""))
        pieces += [rest[:at], marker]
        rest = rest[at + len(marker) :]
    return [piece for piece in pieces if piece]


def play(pieces: list[str], *, cut: bool = False) -> list[Delta]:
    parser = ToolCallParser(TOOLS)
    deltas = []
    for piece in pieces:
        deltas += parser.mark(piece) if piece in MARKERS else parser.push(piece)
    return deltas + parser.finish(cut=cut)


def told(deltas: list[Delta]) -> tuple[str, list[tuple[str, str]]]:
    """The content, and each call's name and arguments."""
    content, calls = "", []
    for delta in deltas:
        if delta.channel == "content":
            content += delta.text
        elif delta.channel == "call":
            assert delta.call == len(calls)
            calls.append((delta.text, ""))
        else:
            name, arguments = calls[delta.call]
            assert delta.call == len(calls) - 1  # one call after the other
            calls[delta.call] = (name, arguments + delta.text)
    return content, calls


def read(text: str, *, cut: bool = False) -> tuple[str, list[tuple[str, Any]]]:
    content, calls = told(play(pieces_of(text), cut=cut))
    return content, [(name, json.loads(arguments)) for name, arguments in calls]


def call(name: str, **arguments: str) -> str:
    written = "".join(
        f"<arg_key>{key}</arg_key>\n<arg_value>{value}</arg_value>\n"
        for key, value in arguments.items()
    )
    return f"\n<tool_call>{name}\n{written}</tool_call>"


@pytest.mark.parametrize(
    ("key", "written", "value"),
    [
        ("city", "Beijing", "Beijing"),
        ("city", "5", "5"),  # a string stays one, whatever it looks like
        ("city", ' "x"\n{ ', ' "x"\n{ '),
        ("city", "", ""),
        ("city", "北京🙂\\", "北京🙂\\"),
        ("units", "C", "C"),
        ("days", "5", 5),
        ("days", " 5\n", 5),
        ("days", "five", "five"),  # not what was asked for, but still JSON: the tool will say so
        ("days", "True", True),
        ("place", '{"a": [1, {"b": null}]}', {"a": [1, {"b": None}]}),
        ("place", "[" * 5000, "[" * 5000),
        ("note", "null", None),
        ("note", "None", None),
        ("note", "5", "5"),  # a number is not allowed, a string is
        ("note", "hello", "hello"),
        ("code", "5", 5),
        ("code", "x5", "x5"),
        ("unheard_of", "5", 5),
        ("unheard_of", "NaN", "NaN"),
        ("unheard_of", "five", "five"),
    ],
)
def test_the_schema_says_what_a_value_is(key: str, written: str, value: object) -> None:
    assert read(call("get_weather", **{key: written})) == ("", [("get_weather", {key: value})])


def test_text_then_several_calls() -> None:
    text = "Let me look. " + call("get_weather", city="A", days="2") + call("now")
    expected = [("get_weather", {"city": "A", "days": 2}), ("now", {})]
    assert read(text) == ("Let me look.", expected)


@pytest.mark.parametrize("inside", ["now", "now\n", "\nnow\n", " now "])
def test_a_call_without_arguments(inside: str) -> None:
    assert read(f"<tool_call>{inside}</tool_call>") == ("", [("now", {})])


def test_layout_between_the_markers_is_none_of_the_answer() -> None:
    tight = "<tool_call>get_weather<arg_key>city</arg_key><arg_value>A</arg_value></tool_call>"
    loose = tight.replace("><", ">\n \n<")
    assert read(tight) == read(loose) == ("", [("get_weather", {"city": "A"})])


def test_an_unknown_function_is_passed_on() -> None:
    assert read(call("no_such", a="1")) == ("", [("no_such", {"a": 1})])


def test_the_first_of_two_values_counts() -> None:
    key = "<arg_key>city</arg_key>\n<arg_value>{}</arg_value>\n"
    text = "<tool_call>get_weather\n" + key.format("A") + key.format("B") + "</tool_call>"
    _, ((_, arguments),) = told(play(pieces_of(text)))
    assert arguments == '{"city": "A"}'


def test_a_string_is_streamed_as_it_is_written() -> None:
    parser = ToolCallParser(TOOLS)
    for piece in pieces_of("<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>"):
        parser.mark(piece) if piece in MARKERS else parser.push(piece)
    assert parser.push('a "b"') == [Delta("arguments", 'a \\"b\\"')]
    assert parser.push("\n好") == [Delta("arguments", "\\n好")]
    assert parser.mark("</arg_value>") == [Delta("arguments", '"')]


def test_a_number_comes_when_it_is_whole() -> None:
    parser = ToolCallParser(TOOLS)
    for piece in pieces_of("<tool_call>get_weather\n<arg_key>days</arg_key>\n<arg_value>"):
        parser.mark(piece) if piece in MARKERS else parser.push(piece)
    assert parser.push("1") == parser.push("2") == []
    assert parser.mark("</arg_value>") == [Delta("arguments", '"days": 12')]


OPEN_CALL = "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Beij"


def test_a_call_that_was_cut_off_does_not_parse() -> None:
    for cut in (True, False):  # nor one that the model ended in the middle of a value
        _, ((_, arguments),) = told(play(pieces_of(OPEN_CALL), cut=cut))
        with pytest.raises(json.JSONDecodeError):
            json.loads(arguments)
    between = OPEN_CALL + "ing</arg_value>\n"
    _, ((_, arguments),) = told(play(pieces_of(between), cut=True))
    with pytest.raises(json.JSONDecodeError):
        json.loads(arguments)


def test_an_end_without_the_closing_marker_is_an_end() -> None:
    assert read(OPEN_CALL + "ing</arg_value>\n") == ("", [("get_weather", {"city": "Beijing"})])
    assert read("<tool_call>now\n") == ("", [("now", {})])
    assert read(OPEN_CALL + "</tool_call>") == ("", [("get_weather", {"city": "Beij"})])


def test_markers_that_mean_nothing_are_text() -> None:
    text = "GLM writes <arg_key> and </tool_call> around things."
    assert read(text) == (text, [])
    inside = "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>a <arg_key> b"
    assert read(inside + "</arg_value>\n</tool_call>")[1] == [
        ("get_weather", {"city": "a <arg_key> b"})
    ]


def test_space_at_the_end_of_a_text_belongs_to_it() -> None:
    assert read("a \n") == ("a \n", [])
    assert read("a \n b" + call("now")) == ("a \n b", [("now", {})])


VALUES = st.text(alphabet='ab "\\\n{}5好🙂', max_size=8)
CALLS = st.lists(
    st.tuples(
        st.sampled_from(sorted(TOOLS)),
        st.dictionaries(st.sampled_from(["city", "days", "note", "x"]), VALUES, max_size=3),
    ),
    max_size=3,
)


@given(st.text(alphabet="ab \n", max_size=6), CALLS)
def test_whole_and_character_by_character(
    text: str, calls: list[tuple[str, dict[str, str]]]
) -> None:
    pieces = pieces_of(text + "".join(call(name, **values) for name, values in calls))
    single = [c for piece in pieces for c in ([piece] if piece in MARKERS else piece)]
    content, made = told(play(pieces))
    assert told(play(single)) == (content, made)
    assert content == (text.rstrip() if calls else text)
    assert [name for name, _ in made] == [name for name, _ in calls]
    for (name, arguments), (_, values) in zip(made, calls, strict=True):
        decoded = json.loads(arguments)
        assert list(decoded) == list(values)
        if name == "get_weather" and "city" in values:
            assert decoded["city"] == values["city"]


@given(
    st.lists(st.sampled_from([*MARKERS, "now", "\n", "city", "5", ""]), max_size=14), st.booleans()
)
def test_no_sequence_breaks_it(pieces: list[str], cut: bool) -> None:
    """Whatever comes, calls are numbered, and a call that is closed has arguments that parse."""
    deltas = play(pieces, cut=cut)
    _, calls = told(deltas)
    for _, arguments in calls[:-1]:
        json.loads(arguments)
