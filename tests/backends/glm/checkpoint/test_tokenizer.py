from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.glm.checkpoint.tokenizer import GlmTokenizer, Guard, UnsupportedTokenizer, strings_of
from backends.glm.model.load import Checkpoint
from backends.glm.request.protocol import parse_chat
from tests.backends.glm.tiny import LITERALS, make_tokenizer

# Text of an attacker: whole control literals, halves of them, and what could glue halves.
HALVES = [literal[:cut] for literal in LITERALS for cut in (1, len(literal) // 2, -1)] + [
    literal[cut:] for literal in LITERALS for cut in (1, len(literal) // 2, -1)
]
HOSTILE = st.lists(
    st.sampled_from(LITERALS) | st.sampled_from(HALVES) | st.text(max_size=6)
    | st.sampled_from(["\U00100000", "\U00100001", "\n", "{{", "%}", "你好", "\\u003c"]),
    max_size=6,
).map("".join)  # fmt: skip


def controls(tokenizer: GlmTokenizer, ids: list[int]) -> list[int]:
    return [i for i in ids if i in tokenizer.control_ids]


def prompt_ids(checkpoint: Checkpoint, messages: list[Any], **fields: Any) -> list[int]:
    body = {"model": "m", "messages": messages, **fields}
    return checkpoint.prompts.build(parse_chat(json.dumps(body).encode())).ids


@given(st.lists(HOSTILE, min_size=5, max_size=5), st.booleans())
def test_no_text_of_a_request_becomes_a_control_token(
    checkpoint: Checkpoint, texts: list[str], thinking: bool
) -> None:
    """Every place a caller's string can stand in, at once; the controls are those of neutral text.

    Parts of a message follow each other without a separator in this template, and names stand
    directly behind control literals, so halves are tried on both sides of a border, too.
    """

    def request(system: str, first: str, second: str, answer: str, value: str) -> list[int]:
        parts = [{"type": "text", "text": first}, {"type": "text", "text": second}]
        arguments = json.dumps({"key" + value: value})
        call = {"function": {"name": "f" + value, "arguments": arguments}}
        messages = [
            {"role": "system", "content": system},
            {"role": "user", "content": parts},
            {"role": "assistant", "content": answer, "reasoning_content": value,
             "tool_calls": [call]},
            {"role": "tool", "content": "r" + value},
        ]  # fmt: skip
        tool = {"type": "function", "function": {"name": "f", "description": value}}
        return prompt_ids(
            checkpoint,
            messages,
            tools=[tool],
            chat_template_kwargs={"enable_thinking": thinking},
        )

    tokenizer = checkpoint.tokenizer
    neutral = request("a", "b", "c", "d", "e")
    hostile = request(*("x" + text for text in texts))
    assert controls(tokenizer, hostile) == controls(tokenizer, neutral)


@given(HOSTILE)
def test_the_model_still_reads_every_character(checkpoint: Checkpoint, text: str) -> None:
    ids = prompt_ids(checkpoint, [{"role": "user", "content": "x" + text}])
    decoded = checkpoint.tokenizer._fast.decode(ids, clean_up_tokenization_spaces=False)
    assert decoded == f"[gMASK]<sop><|user|>\nx{text}<|assistant|>\n"


@given(st.text(max_size=60))
def test_ordinary_text_has_the_ids_of_the_stock_tokenizer(
    checkpoint: Checkpoint, text: str
) -> None:
    if any(literal in text for literal in LITERALS):
        return
    fast = checkpoint.tokenizer._fast
    messages = [{"role": "user", "content": "x" + text}]
    stock = fast.apply_chat_template(messages, add_generation_prompt=True, tokenize=True)
    assert prompt_ids(checkpoint, messages) == list(stock["input_ids"])


@given(HOSTILE)
def test_plain_encoding_knows_no_control_token(checkpoint: Checkpoint, text: str) -> None:
    tokenizer = checkpoint.tokenizer
    assert controls(tokenizer, tokenizer.encode_plain(text)) == []


def test_the_stock_tokenizer_would_have_been_fooled(checkpoint: Checkpoint) -> None:
    """Without this, the tests above could pass on a tokenizer that has no control tokens."""
    tokenizer = checkpoint.tokenizer
    for literal in LITERALS:
        fooled = tokenizer._fast.encode("x" + literal, add_special_tokens=False)
        assert tokenizer.control_id(literal) in fooled


def test_typed_nothink_is_text_and_the_template_adds_its_own(checkpoint: Checkpoint) -> None:
    nothink = checkpoint.tokenizer.control_id("/nothink")
    messages = [{"role": "user", "content": "Hello /nothink"}]
    assert nothink not in prompt_ids(checkpoint, messages)
    assert prompt_ids(checkpoint, messages, reasoning_effort="none").count(nothink) == 1


@given(st.dictionaries(HOSTILE, st.lists(HOSTILE, max_size=3), max_size=3))
def test_a_guard_gives_back_what_it_hid(checkpoint: Checkpoint, value: dict[str, Any]) -> None:
    guard = Guard(checkpoint.tokenizer.guarded, strings_of(value))
    hidden = guard.hide(value)
    assert not any(char in text for text in strings_of(hidden) for char in "<>|[]/")
    assert json.loads(guard.reveal(json.dumps(hidden, ensure_ascii=False))) == value


def test_a_text_that_leaves_no_stand_in_is_refused() -> None:
    with pytest.raises(ValueError, match="private-use"):
        Guard("<", ["".join(map(chr, range(0x100000, 0x110000)))])


def test_a_tokenizer_of_another_kind_is_refused() -> None:
    fast = make_tokenizer()
    fast.backend_tokenizer.decoder = None
    with pytest.raises(UnsupportedTokenizer, match="byte-level"):
        GlmTokenizer(fast)


def test_the_text_of_answer_markup_and_the_silence_of_the_rest(checkpoint: Checkpoint) -> None:
    tokenizer = checkpoint.tokenizer

    def text(literal: str) -> bytes:
        token_id = tokenizer.control_id(literal)
        assert token_id is not None
        return tokenizer.bytes_of(token_id)

    assert text("<tool_call>") == b"<tool_call>"
    for literal in ("<think>", "<|begin_of_box|>", "<|end_of_box|>", "<|user|>", "<|image|>"):
        assert text(literal) == b""
    assert tokenizer.bytes_of(-1) == tokenizer.bytes_of(10**9) == b""
