from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.chat import ImagePart, ImageUrl, Message, TextPart
from gateway.errors import GatewayError
from gateway.wire.predict import PredictDialect

DIALECT = PredictDialect("glm-4.6v")
URL = "data:image/png;base64,AAAA"


def test_a_prompt_is_one_message_of_the_model_in_the_path() -> None:
    asked = DIALECT.read(b'{"prompt":"hello","model":"another","stream":true}')
    assert asked.chat.model == "glm-4.6v"
    assert asked.chat.messages == [Message(role="user", content=[TextPart(text="hello")])]
    assert asked.chat.stream is None
    assert (asked.label, asked.wants_usage) == (None, False)


def test_the_picture_stands_before_the_prompt() -> None:
    asked = DIALECT.read(json.dumps({"prompt": "what?", "image_url": URL}).encode())
    assert asked.chat.messages[0].content == [
        ImagePart(image_url=ImageUrl(url=URL)),
        TextPart(text="what?"),
    ]


@pytest.mark.parametrize("none", ["null", '""'])
def test_no_picture_can_be_written_in_two_ways(none: str) -> None:
    asked = DIALECT.read(b'{"prompt":"p","image_url":%s}' % none.encode())
    assert asked.chat.messages[0].content == [TextPart(text="p")]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"", None),
        (b"{", None),
        (b"[]", None),
        (b"{}", "prompt"),
        (b'{"prompt":"\xff"}', None),
        (b'{"prompt":"\\ud800 x"}', None),
        (b'{"prompt":"x","z":' + b"[" * 100_000, None),
        (b'{"prompt":1}', "prompt"),
        (b'{"prompt":null}', "prompt"),
        (b'{"prompt":"x","image_url":{"url":"u"}}', "image_url"),
        (b'{"prompt":"x","max_tokens":0}', "max_tokens"),
        (b'{"prompt":"x","max_tokens":"5"}', "max_tokens"),
        (b'{"prompt":"x","temperature":3}', "temperature"),
    ],
)
def test_a_bad_request_names_its_field(body: bytes, param: str | None) -> None:
    with pytest.raises(GatewayError) as caught:
        DIALECT.read(body)
    assert (caught.value.status, caught.value.param) == (400, param)


@given(st.binary(max_size=40) | st.text(max_size=40).map(lambda t: t.encode("utf-8", "replace")))
def test_anything_is_a_request_or_a_400(body: bytes) -> None:
    try:
        found: object = DIALECT.read(body).chat.model
    except GatewayError as error:
        found = error.status
    assert found in ("glm-4.6v", 400)


def test_the_answer_is_its_text_and_its_usage() -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    completion = {
        "id": "x",
        "choices": [{"message": {"role": "assistant", "content": "a red circle"}}],
        "usage": {**usage, "prompt_tokens_details": {"cached_tokens": 1}},
    }
    answer = json.loads(DIALECT.answer(json.dumps(completion).encode()))
    assert answer == {"text": "a red circle", "usage": usage}


@pytest.mark.parametrize(
    "completion",
    [b'{"choices":[{"message":{"content":null}}]}', b'{"choices":[{"message":{}}]}',
     b'{"choices":[]}'],
)  # fmt: skip
def test_an_answer_without_text_is_an_empty_one(completion: bytes) -> None:
    assert json.loads(DIALECT.answer(completion)) == {"text": "", "usage": None}


@pytest.mark.parametrize("body", [b"<html>", b"{}", b'{"choices":[{"message":{"content":[]}}]}'])
def test_an_answer_that_is_none_is_the_engines_fault(body: bytes) -> None:
    with pytest.raises(GatewayError) as caught:
        DIALECT.answer(body)
    assert (caught.value.status, caught.value.code) == (502, "upstream_broken")
