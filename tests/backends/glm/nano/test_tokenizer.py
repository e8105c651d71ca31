"""The shipped tokenizer: any text survives, every special token is one id."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from backends.glm.nano import CHECKPOINT
from backends.glm.nano.tokenizer import CONTROL, MARKS, SPECIALS, VOCABULARY, train_tokenizer

TOKENIZER = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
AUTO = AutoTokenizer.from_pretrained(CHECKPOINT)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=200))
def test_any_text_survives(text):
    ids = TOKENIZER.encode(text, add_special_tokens=False).ids
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("token", SPECIALS)
def test_a_special_token_is_one_id(token):
    assert len(TOKENIZER.encode(token, add_special_tokens=False).ids) == 1
    assert len(AUTO(f"a{token}b", add_special_tokens=False)["input_ids"]) == 3


def test_a_parser_still_sees_the_marks_when_special_tokens_are_skipped():
    ids = AUTO("".join(SPECIALS), add_special_tokens=False)["input_ids"]
    assert AUTO.decode(ids, skip_special_tokens=True) == "".join(MARKS)
    assert len(ids) == len(CONTROL) + len(MARKS)


def test_a_prompt_and_its_answer_tokenise_the_same_apart_and_together():
    for answer in ("red", "2", "红色", "top left", "A plain red picture.", "，"):
        together = TOKENIZER.encode(f"<think></think>\n{answer}<|user|>").ids
        apart = (
            TOKENIZER.encode("<think></think>\n").ids + TOKENIZER.encode(f"{answer}<|user|>").ids
        )
        assert together == apart


def test_training_it_again_gives_the_shipped_one():
    again = train_tokenizer()
    assert again.get_vocab_size() == VOCABULARY
    assert again.get_vocab() == TOKENIZER.get_vocab()
