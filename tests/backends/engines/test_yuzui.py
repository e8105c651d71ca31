from __future__ import annotations

import json

from backends.engines.yuzui import Plain, Yuzui
from tests.backends.engines.kit import call, chat


def test_our_worker_is_told_whose_caches_and_who_goes_first() -> None:
    asked = call(cache_salt="s", priority=1)
    ours, plain = (json.loads(dialect.encode(asked)) for dialect in (Yuzui(), Plain()))
    assert (ours.pop("cache_salt"), ours.pop("priority")) == ("s", 1)
    assert ours == plain
    assert json.loads(Yuzui().encode(call())) == plain


def test_the_limit_that_money_was_held_for_is_the_one_that_is_sent() -> None:
    assert json.loads(Plain().encode(call(chat(max_tokens=9_999))))["max_tokens"] == 64
    newer = json.loads(Plain().encode(call(chat(max_completion_tokens=9_999))))
    assert newer["max_completion_tokens"] == 64
    assert "max_tokens" not in newer


def test_usage_is_always_asked_for_in_a_stream() -> None:
    asked = json.loads(Plain().encode(call(stream=True)))
    assert (asked["stream"], asked["stream_options"]) == (True, {"include_usage": True})
    assert "stream_options" not in json.loads(Plain().encode(call()))


def test_answers_are_left_as_they_are() -> None:
    data = b'{"reasoning":1}'
    assert Yuzui().even(data) is data
