from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from backends.glm.errors import WorkerError
from backends.glm.model.load import Checkpoint
from backends.glm.request import prompt as prompt_module
from backends.glm.request.images import decode_picture
from backends.glm.request.limits import Limits
from backends.glm.request.protocol import parse_chat
from backends.glm.types import Prompt
from tests.backends.glm.conftest import data_url, picture

Build = Callable[..., Prompt]


@pytest.fixture
def build(checkpoint: Checkpoint) -> Build:
    def built(messages: list[Any], **fields: Any) -> Prompt:
        body = {"model": "m", "messages": messages, **fields}
        return checkpoint.prompts.build(parse_chat(json.dumps(body).encode()))

    return built


def user(*parts: str | tuple[int, int]) -> dict[str, Any]:
    """A user turn of texts and (width, height) pictures."""
    content = [
        {"type": "text", "text": part} if isinstance(part, str)
        else {"type": "image_url", "image_url": {"url": data_url(picture(*part))}}
        for part in parts
    ]  # fmt: skip
    return {"role": "user", "content": content}


def text_of(checkpoint: Checkpoint, prompt: Prompt) -> str:
    text: str = checkpoint.tokenizer._fast.decode(prompt.ids, clean_up_tokenization_spaces=False)
    return text


def test_each_picture_takes_as_many_tokens_as_its_size_asks(
    checkpoint: Checkpoint, build: Build
) -> None:
    prompt = build([user((56, 84), "and", (28, 28), "?")])
    counts = [checkpoint.prompts.vision.tokens(width=w, height=h) for w, h in ((56, 84), (28, 28))]
    assert counts == [6, 1]
    assert prompt.pixels is not None
    assert prompt.pixels.tokens == tuple(counts)
    assert prompt.image_tokens == 7
    assert prompt.token_types.sum() == 7
    image = "<|begin_of_image|>" + "<|image|>" * 6 + "<|end_of_image|>"
    assert text_of(checkpoint, prompt).startswith(f"[gMASK]<sop><|user|>\n{image}\nand")


def test_pictures_of_several_turns_keep_their_order(checkpoint: Checkpoint, build: Build) -> None:
    prompt = build([user((56, 28)), {"role": "assistant", "content": "a"}, user((28, 84), "b")])
    assert prompt.pixels is not None
    assert prompt.pixels.tokens == (2, 3)
    vision = checkpoint.prompts.vision
    alone = [vision.pixels(picture(56, 28)), vision.pixels(picture(28, 84))]
    assert np.array_equal(prompt.pixels.values, np.concatenate([p.values for p in alone]))
    assert prompt.pixels.keys == (*alone[0].keys, *alone[1].keys)


def test_a_typed_image_literal_takes_no_picture(checkpoint: Checkpoint, build: Build) -> None:
    prompt = build([user("<|image|>", (28, 28), "<|begin_of_image|><|image|>")])
    assert prompt.image_tokens == prompt.ids.count(checkpoint.prompts.image_token_id) == 1


@pytest.mark.parametrize(
    ("fields", "thinking"),
    [({}, "model"), ({"reasoning_effort": "none"}, "closed")],
)
def test_how_the_prompt_leaves_thinking(
    build: Build, fields: dict[str, Any], thinking: str
) -> None:
    history = [user("a"), {"role": "assistant", "content": "b"}, user("c")]
    assert build(history, **fields).thinking == thinking


def test_a_prompt_that_opens_the_thought_is_seen(checkpoint: Checkpoint) -> None:
    tokenizer = checkpoint.tokenizer
    ids = tokenizer.encode("<|user|>\nHi<|assistant|>\n<think>")
    assert checkpoint.prompts._thinking(ids) == "open"


def test_tool_turns_in_glm_form(checkpoint: Checkpoint, build: Build) -> None:
    call = {"id": "1", "function": {"name": "get", "arguments": '{"city": "北京", "days": 2}'}}
    tool = {"type": "function", "function": {"name": "get", "parameters": {"type": "object"}}}
    prompt = build(
        [
            user("Weather?"),
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": '{"t": 3}'},
        ],
        tools=[tool],
    )
    text = text_of(checkpoint, prompt)
    assert json.dumps(tool, ensure_ascii=False) in text
    assert (
        "<tool_call>get\n<arg_key>city</arg_key>\n<arg_value>北京</arg_value>\n"
        "<arg_key>days</arg_key>\n<arg_value>2</arg_value>\n</tool_call>"
        '<|observation|>\n<tool_response>\n{"t": 3}\n</tool_response><|assistant|>\n'
    ) in text
    observation = checkpoint.tokenizer.control_id("<|observation|>")
    assert prompt.ids.count(observation) == 1  # written by the template, so a control token


@pytest.mark.parametrize(
    "begun", ["Hello, what", "Hello, ", "", "\n\nx", "<|user|>", "a <think> b"]
)
def test_a_continued_answer_stands_in_the_prompt_as_it_was_sent(
    checkpoint: Checkpoint, build: Build, begun: str
) -> None:
    """A template strips it; a control literal in it stays text."""
    prompt = build([user("a"), {"role": "assistant", "content": begun}])
    tail = checkpoint.tokenizer.encode_plain(begun)
    assert prompt.ids[len(prompt.ids) - len(tail) :] == tail
    assert prompt.begun_tokens == len(tail)
    head = text_of(checkpoint, prompt)[: -len(begun)] if begun else text_of(checkpoint, prompt)
    assert head == "[gMASK]<sop><|user|>\na<|assistant|>\n<think></think>\n"
    assert prompt.thinking == "closed"


def test_a_thought_is_continued(checkpoint: Checkpoint, build: Build) -> None:
    prompt = build([user("a"), {"role": "assistant", "content": "", "reasoning_content": "hm, "}])
    assert text_of(checkpoint, prompt) == "[gMASK]<sop><|user|>\na<|assistant|>\n<think>hm, "
    assert prompt.thinking == "open"
    whole = [user("a"), {"role": "assistant", "content": "So ", "reasoning_content": "hm"}]
    assert text_of(checkpoint, build(whole)).endswith("<think>hm</think>\nSo ")


def test_a_turn_that_is_not_continued_ends(checkpoint: Checkpoint, build: Build) -> None:
    messages = [user("a"), {"role": "assistant", "content": "b "}]
    text = text_of(checkpoint, build(messages, continue_final_message=False))
    assert text.endswith("\nb<|assistant|>\n")


def test_a_picture_cannot_be_continued(build: Build) -> None:
    last = {"role": "assistant", "content": user("b", (28, 28))["content"]}
    error = refusal(build, [user("a"), last])
    assert error.param == "messages[1].content"


def test_a_template_without_a_place_for_a_continued_answer(
    checkpoint: Checkpoint, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = "{% for m in messages if m.role == 'user' %}<|user|>{{ m.content }}{% endfor %}"
    monkeypatch.setattr(checkpoint.tokenizer._fast, "chat_template", template)
    error = refusal(
        build, [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    )
    assert error.code == "invalid_prompt"
    assert "continued" in error.message


def refusal(build: Build, *args: Any, **fields: Any) -> WorkerError:
    with pytest.raises(WorkerError) as caught:
        build(*args, **fields)
    assert caught.value.status == 400
    return caught.value


def test_too_long_a_text(checkpoint: Checkpoint, build: Build) -> None:
    error = refusal(build, [user("z" * checkpoint.max_model_len)])
    assert error.code == "context_length_exceeded"
    assert str(checkpoint.max_model_len) in error.message


def test_too_many_picture_tokens_are_refused_before_decoding(
    checkpoint: Checkpoint, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("a picture was decoded")

    monkeypatch.setattr(prompt_module, "decode_picture", never)
    each = checkpoint.prompts.vision.tokens(width=400, height=400)
    count = checkpoint.max_model_len // each + 1
    part = user((400, 400))["content"]
    prompts = dataclasses.replace(checkpoint.prompts, limits=Limits(images_max=10_000))
    body = {"model": "m", "messages": [{"role": "user", "content": part * count}]}
    with pytest.raises(WorkerError) as caught:
        prompts.build(parse_chat(json.dumps(body).encode()))
    assert caught.value.code == "context_length_exceeded"


def test_too_many_pictures(checkpoint: Checkpoint) -> None:
    body = {"model": "m", "messages": [user((1, 1), (1, 1)), user((1, 1))]}
    with pytest.raises(WorkerError) as caught:
        dataclasses.replace(checkpoint.prompts, limits=Limits(images_max=2)).build(
            parse_chat(json.dumps(body).encode())
        )
    assert caught.value.code == "too_many_images"
    assert "At most 2 pictures" in caught.value.message
    assert "has 3" in caught.value.message


def test_pictures_are_in_memory_one_by_one(
    checkpoint: Checkpoint, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever decodes the next one finds the last one closed: both as it came and decoded."""
    seen: list[Image.Image] = []

    def closed(picture: Image.Image) -> bool:
        try:
            picture.getpixel((0, 0))
        except ValueError:  # "Operation on closed image"
            return True
        return False

    def decode(picture: Image.Image, param: str) -> Image.Image:
        assert all(closed(earlier) for earlier in seen)
        decoded = decode_picture(picture, param)
        assert not closed(decoded)
        seen.extend([picture, decoded])
        return decoded

    monkeypatch.setattr(prompt_module, "decode_picture", decode)
    clear = {"type": "image_url", "image_url": {"url": data_url(Image.new("RGBA", (30, 30)))}}
    mixed = [user((56, 84), (28, 28), "?"), {"role": "user", "content": [clear]}]
    assert build(mixed).pixels is not None
    assert len(seen) == 6
    assert all(closed(picture) for picture in seen)


def test_others_may_have_their_turn_between_two_pictures(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = 0

    def decode(picture: Image.Image, param: str) -> Image.Image:
        nonlocal decoded
        decoded += 1
        return decode_picture(picture, param)

    monkeypatch.setattr(prompt_module, "decode_picture", decode)
    body = {"model": "m", "messages": [user((56, 84), (28, 28), (30, 30), "?")]}
    steps = checkpoint.prompts.steps(parse_chat(json.dumps(body).encode()))
    assert [decoded for _ in steps] == [0, 0, 0, 1, 2]
    assert decoded == 3


def test_too_many_pixels_in_all_are_refused_before_decoding(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = 30 * 40 + 20 * 20
    few, enough = (
        dataclasses.replace(checkpoint.prompts, limits=Limits(image_pixels_max=most))
        for most in (pixels - 1, pixels)
    )
    body = {"model": "m", "messages": [user("a"), user((30, 40), "b", (20, 20))]}
    chat = parse_chat(json.dumps(body).encode())
    assert enough.build(chat).pixels is not None
    monkeypatch.delattr(prompt_module, "decode_picture")
    with pytest.raises(WorkerError) as caught:
        few.build(chat)
    assert caught.value.code == "too_many_pixels"
    assert caught.value.param == "messages[1].content[2].image_url"  # the one that was too many
    assert "1,599 pixels together; with this one they have 1,600. Send" in caught.value.message


def test_a_picture_the_template_has_no_place_for(
    checkpoint: Checkpoint, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = "[gMASK]<sop>{% for m in messages %}<|user|>no pictures here{% endfor %}"
    monkeypatch.setattr(checkpoint.tokenizer._fast, "chat_template", template)
    assert refusal(build, [user((28, 28))]).code == "invalid_prompt"


def test_a_template_that_refuses(
    checkpoint: Checkpoint, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint.tokenizer._fast, "chat_template", "{{ raise_exception('s') }}")
    error = refusal(build, [user("a secret")])
    assert error.code == "invalid_prompt"
    assert "secret" not in error.message


def test_the_picture_at_fault_is_named(build: Build) -> None:
    bad = {"type": "image_url", "image_url": {"url": "http://x/y.png"}}
    error = refusal(build, [user("a"), {"role": "user", "content": [bad]}])
    assert error.param == "messages[1].content[0].image_url"
