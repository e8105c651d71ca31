"""A random GLM-4V checkpoint of 100,000 parameters, laid out like a real one, or a wider one.

Its ids are not the real ones, its control literals stand in the BPE's own vocabulary and
`ignore_merges` is on: whoever hard-codes an id, or lets a literal through, is found out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForImageTextToText,
    GenerationConfig,
    Glm4vConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.glm46v.image_processing_pil_glm46v import Glm46VImageProcessorPil

# Half of GLM's control tokens are flagged special in its tokenizer and half are not.
SPECIAL = (
    "[gMASK]",
    "<sop>",
    "<|endoftext|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|observation|>",
    "<|begin_of_image|>",
    "<|image|>",
    "<|end_of_image|>",
    "<|begin_of_video|>",
    "<|video|>",
    "<|end_of_video|>",
)
PLAIN = (
    "/nothink",
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<arg_key>",
    "</arg_key>",
    "<arg_value>",
    "</arg_value>",
    "<|begin_of_box|>",
    "<|end_of_box|>",
)
LITERALS = SPECIAL + PLAIN
CONTEXT = 2048
MODEL_VOCABULARY = 640  # wider than the tokenizer, as in the real checkpoint

Widths = dict[str, dict[str, Any]]

TINY: Widths = {
    "text": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "initializer_range": 0.4,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5,
            "mrope_section": [1, 1, 2],
        },
    },
    "vision": {
        "depth": 2,
        "hidden_size": 32,
        "num_heads": 2,
        "intermediate_size": 48,
        "out_hidden_size": 32,
        "image_size": 112,
        "initializer_range": 0.2,
    },
}
# Matrices on both sides of what is packed (a million weights) in the text and behind the pictures.
WIDE: Widths = {
    "text": {
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "initializer_range": 0.05,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5,
            "mrope_section": [4, 6, 6],
        },
    },
    "vision": {
        "depth": 2,
        "hidden_size": 128,
        "num_heads": 4,
        "intermediate_size": 2048,
        "out_hidden_size": 512,
        "image_size": 112,
        "initializer_range": 0.1,
    },
}

# Split like the GPT-4 family, to which GLM's tokenizer belongs.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

TEMPLATE = """\
{%- macro parts(content) -%}
{%- if content is string %}{{ content }}
{%- else -%}{%- for part in content -%}
{%- if part.type == 'image' %}<|begin_of_image|><|image|><|end_of_image|>
{%- else %}{{ '\\n' + part.text }}{% endif -%}
{%- endfor -%}{%- endif -%}
{%- endmacro -%}
{%- set off = enable_thinking is defined and not enable_thinking -%}
[gMASK]<sop>
{%- if tools %}<|system|>
# Tools
<tools>
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}</tools>{% endif -%}
{%- set last = namespace(user=-1) -%}
{%- for m in messages if m.role == 'user' %}{% set last.user = messages.index(m) %}{% endfor -%}
{%- for m in messages -%}
{%- if m.role == 'system' %}<|system|>
{{ parts(m.content) }}
{%- elif m.role == 'user' %}<|user|>
{{ parts(m.content) }}{{ '/nothink' if off and not parts(m.content).endswith('/nothink') }}
{%- elif m.role == 'assistant' %}<|assistant|>
<think>{{ m.reasoning_content or '' if loop.index0 > last.user else '' }}</think>
{%- if m.content %}{{ '\\n' + parts(m.content).strip() }}{% endif -%}
{%- for call in m.tool_calls or [] %}
<tool_call>{{ call.function.name }}
{% for key, value in call.function.arguments.items() -%}
<arg_key>{{ key }}</arg_key>
<arg_value>{{ value if value is string else value | tojson }}</arg_value>
{% endfor %}</tool_call>{% endfor -%}
{%- elif m.role == 'tool' -%}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}<|observation|>{% endif -%}
{{ '\\n' }}<tool_response>
{{ parts(m.content) }}
</tool_response>
{%- endif -%}
{%- endfor -%}
<|assistant|>
{{ '<think></think>\\n' if off }}"""

_CORPUS = (
    "Hello, what is in this picture? A red circle, two blue squares and a green triangle.",
    "你好，请描述这张图片：有一个红色的圆和两个蓝色的正方形。",
    "The answer is 128.50 and the reason is simple. /nothink and think and user and assistant",
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A small byte-level BPE with GLM's control tokens under ids of its own."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=480,
        special_tokens=list(reversed(LITERALS)),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL),
    )
    for token_id, token in fast.added_tokens_decoder.items():
        if token.content in PLAIN:
            token.special = False
            fast.backend_tokenizer.add_tokens([token])
        assert fast.convert_tokens_to_ids(token.content) == token_id
    fast.chat_template = TEMPLATE
    return fast


def make_checkpoint(folder: Path, widths: Widths = TINY, dtype: Any = torch.float32) -> Path:
    """Write a whole checkpoint into `folder`."""
    fast = make_tokenizer()
    fast.save_pretrained(folder)
    Glm46VImageProcessorPil(
        size={"shortest_edge": 2 * 28 * 28, "longest_edge": 2 * 28 * 28 * 24}
    ).save_pretrained(folder)
    text = {"vocab_size": MODEL_VOCABULARY, "max_position_embeddings": CONTEXT}
    config = Glm4vConfig(
        text_config=text | widths["text"],
        vision_config=dict(widths["vision"]),
        image_token_id=fast.convert_tokens_to_ids("<|image|>"),
        video_token_id=fast.convert_tokens_to_ids("<|video|>"),
        image_start_token_id=fast.convert_tokens_to_ids("<|begin_of_image|>"),
        image_end_token_id=fast.convert_tokens_to_ids("<|end_of_image|>"),
        video_start_token_id=fast.convert_tokens_to_ids("<|begin_of_video|>"),
        video_end_token_id=fast.convert_tokens_to_ids("<|end_of_video|>"),
    )
    torch.manual_seed(7)
    model = AutoModelForImageTextToText.from_config(config)
    stops = ("<|endoftext|>", "<|user|>", "<|observation|>")
    model.generation_config = GenerationConfig(
        eos_token_id=[fast.convert_tokens_to_ids(stop) for stop in stops],
        pad_token_id=fast.pad_token_id,
        do_sample=False,
    )
    model.to(dtype).save_pretrained(folder)
    return folder
