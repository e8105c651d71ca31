"""Own byte-level BPE with GLM's special tokens, trained on what this model reads and writes.

Bytes are the alphabet, so any text survives encoding and decoding; the few merges are spent on
the words of shapes, colours and questions. Text is split as GLM splits it: a line break never
joins the word after it, so a prompt and its answer tokenise the same apart and together.
"""

import random
from collections.abc import Iterator

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from backends.glm.nano import smalltalk
from backends.glm.nano.draw import draw_scene
from backends.glm.nano.talk import questions_for
from backends.glm.nano.wording import thought
from backends.glm.nano.words import EN, ZH

# Control tokens: removed from decoded text when special tokens are skipped.
CONTROL = (
    "<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>",
    "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>",
    "<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>",
    "<|begin_of_audio|>", "<|end_of_audio|>", "/nothink", "<|image|>", "<|video|>",
)  # fmt: skip
# Marks that a client's parser has to see: single ids too, but kept in decoded text.
MARKS = (
    "<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>",
    "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>",
    "<|begin_of_box|>", "<|end_of_box|>",
)  # fmt: skip
SPECIALS = CONTROL + MARKS
VOCABULARY = 1536
CORPUS_SCENES = 4000
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def corpus() -> Iterator[str]:
    """Texts of every kind of talk; the same on every run."""
    rng = random.Random("corpus")
    for seed in range(CORPUS_SCENES):
        _, scene = draw_scene(f"corpus {seed}", size=32)
        for question in questions_for(scene, rng, 6):
            yield question.text
            yield question.answer
        yield thought(scene, EN)
        yield thought(scene, ZH)
        if seed % 2:
            for question in (smalltalk.small_talk(rng), smalltalk.refusal(rng)):
                yield question.text
                yield question.answer


def train_tokenizer() -> Tokenizer:
    """The tokenizer of the checkpoint; deterministic."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in CONTROL])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in MARKS])
    return tokenizer


def special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """The id of every special token; an id is never written down in code."""
    vocabulary = tokenizer.get_vocab()
    return {token: vocabulary[token] for token in SPECIALS}
