from __future__ import annotations

from backends.chat import ChatRequest, ImagePart, ImageUrl, Message, TextPart
from gateway.pool.prefixes import PICTURE_TOKENS, prefixes_of


def chat(*messages: Message, **more: object) -> ChatRequest:
    return ChatRequest(model="m", messages=list(messages), **more)  # type: ignore[arg-type]


SYSTEM = Message(role="system", content="You answer briefly.")
RED = ImagePart(image_url=ImageUrl(url="data:image/png;base64," + "A" * 90_000))
LOOK = Message(role="user", content=[RED, TextPart(text="what is it?")])


def test_a_turn_more_shares_what_was_there() -> None:
    before, pictures = prefixes_of(chat(SYSTEM, LOOK), "s")
    answer, more = Message(role="assistant", content="red"), Message(role="user", content="sure?")
    after, again = prefixes_of(chat(SYSTEM, LOOK, answer, more), "s")
    assert after[: len(before)] == before
    assert pictures == again
    assert before[1].tokens - before[0].tokens == PICTURE_TOKENS
    assert [p.tokens for p in after] == sorted({p.tokens for p in after})


def test_another_question_about_the_same_picture_shares_the_picture() -> None:
    other = Message(role="user", content=[RED, TextPart(text="how many?")])
    one, _ = prefixes_of(chat(SYSTEM, LOOK), "s")
    two, _ = prefixes_of(chat(SYSTEM, other), "s")
    assert one[:2] == two[:2]
    assert one[2] != two[2]


def test_who_said_it_and_which_tools_there_are_is_part_of_it() -> None:
    said = {prefixes_of(chat(Message(role=r, content="x")), "s")[0] for r in ("user", "system")}  # type: ignore[arg-type]
    assert len(said) == 2
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert prefixes_of(chat(SYSTEM, tools=tools), "s")[0][0] != prefixes_of(chat(SYSTEM), "s")[0][0]


def test_nobody_else_shares_a_key() -> None:
    mine, pictures = prefixes_of(chat(SYSTEM, LOOK), "a" * 32)
    theirs, others = prefixes_of(chat(SYSTEM, LOOK), "b" * 32)
    assert {p.key for p in mine}.isdisjoint(p.key for p in theirs)
    assert set(pictures).isdisjoint(others)
