"""The judge of answers that are not the reference's: it must be able to say no."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.bench import checkpoints
from tests.bench.engine import TIE, bodies_of
from tests.bench.plain_generate import answer, follow
from tests.bench.processor import register

TOKENS = 12
# transformers' processor gives numpy a tensor.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, list[Any], str]:
    """Model, processor, a chat, and what generate() answers to it."""
    path = checkpoints.nano(Path(tmp_path_factory.mktemp("nano")))
    register()
    model = AutoModelForImageTextToText.from_pretrained(path, dtype="float32").eval()
    processor = AutoProcessor.from_pretrained(path)
    chats = [bodies_of("nano", "judge", 1, TOKENS)[0]["messages"]]
    return model, processor, chats, answer(model, processor, chats, TOKENS)[0]


def test_the_greedy_answer_is_never_behind(nano: tuple[Any, Any, list[Any], str]) -> None:
    model, processor, chats, text = nano
    assert follow(model, processor, chats, TOKENS, text) == [0.0] * TOKENS
    assert follow(model, processor, chats, TOKENS, " \n" + text) == [0.0] * TOKENS


def test_another_word_is_behind_by_more_than_a_tie(nano: tuple[Any, Any, list[Any], str]) -> None:
    model, processor, chats, text = nano
    words = text.split(" ")
    words[2] = "green" if words[2] != "green" else "red"
    behind = follow(model, processor, chats, TOKENS, " ".join(words))
    assert max(behind) > TIE or len(behind) < TOKENS


@pytest.mark.parametrize("change", ["\u2603", " and", ""])
def test_an_answer_that_ends_otherwise_is_not_followed_to_its_end(
    nano: tuple[Any, Any, list[Any], str], change: str
) -> None:
    """A character no token has, a word too many, a letter too few."""
    model, processor, chats, text = nano
    changed = text + change if change else text[:-1]
    behind = follow(model, processor, chats, TOKENS, changed)
    assert len(behind) < TOKENS or max(behind) > TIE
