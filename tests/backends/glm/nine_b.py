"""The published sizes of GLM-4.6V-Flash as a folder of headers: 20 GB of weights in 100 kB.

Sizes: 40 layers of 4096, 32 heads of which 2 hold keys and values,
feed-forward 13696, vocabulary 151552; vision 24 blocks of 1536.
"""

from __future__ import annotations

import json
from pathlib import Path

LAYERS, WIDTH, KV, FFN, VOCABULARY = 40, 4096, 256, 13696, 151552
BLOCKS, VISION = 24, 1536

CONFIG = {
    "model_type": "glm4v",
    "text_config": {
        "hidden_size": WIDTH,
        "intermediate_size": FFN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 32,
        "num_key_value_heads": 2,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 131072,
    },
    "vision_config": {
        "hidden_size": VISION,
        "depth": BLOCKS,
        "intermediate_size": FFN,
        "out_hidden_size": WIDTH,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    },
}
PROCESSOR = {"size": {"shortest_edge": 12544, "longest_edge": 28 * 28 * 2 * 6144}}


def make_headers(folder: Path, *, dtype: str = "BF16", files: int = 4) -> Path:
    """Write config, index and `files` safetensors files that end after their header."""
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    shapes = _shapes()
    names = [f"model-{n + 1:05}-of-{files:05}.safetensors" for n in range(files)]
    where = {tensor: names[i % files] for i, tensor in enumerate(shapes)}
    for name in names:
        header = {
            tensor: {"dtype": dtype, "shape": shape, "data_offsets": [0, 0]}
            for tensor, shape in shapes.items()
            if where[tensor] == name
        }
        raw = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
        (folder / name).write_bytes(len(raw).to_bytes(8, "little") + raw)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder


def _shapes() -> dict[str, list[int]]:
    shapes: dict[str, list[int]] = {
        "lm_head.weight": [VOCABULARY, WIDTH],
        "model.language_model.embed_tokens.weight": [VOCABULARY, WIDTH],
        "model.language_model.norm.weight": [WIDTH],
        "model.visual.patch_embed.proj.weight": [VISION, 3, 2, 14, 14],
        "model.visual.embeddings.position_embedding.weight": [576, VISION],
        "model.visual.downsample.weight": [WIDTH, VISION, 2, 2],
        "model.visual.merger.proj.weight": [WIDTH, WIDTH],
        "model.visual.merger.gate_proj.weight": [FFN, WIDTH],
        "model.visual.merger.up_proj.weight": [FFN, WIDTH],
        "model.visual.merger.down_proj.weight": [WIDTH, FFN],
    }
    for layer in range(LAYERS):
        at = f"model.language_model.layers.{layer}."
        for part, rows in (("q", WIDTH), ("k", KV), ("v", KV), ("o", WIDTH)):
            shapes[f"{at}self_attn.{part}_proj.weight"] = [rows, WIDTH]
        for part, rows in (("q", WIDTH), ("k", KV), ("v", KV)):
            shapes[f"{at}self_attn.{part}_proj.bias"] = [rows]
        shapes[f"{at}mlp.gate_up_proj.weight"] = [2 * FFN, WIDTH]
        shapes[f"{at}mlp.down_proj.weight"] = [WIDTH, FFN]
        for norm in range(4):
            shapes[f"{at}norm{norm}.weight"] = [WIDTH]
    for block in range(BLOCKS):
        at = f"model.visual.blocks.{block}."
        shapes[f"{at}attn.qkv.weight"] = [3 * VISION, VISION]
        shapes[f"{at}attn.proj.weight"] = [VISION, VISION]
        for part, shape in (("gate", [4096, VISION]), ("up", [4096, VISION])):
            shapes[f"{at}mlp.{part}_proj.weight"] = shape
        shapes[f"{at}mlp.down_proj.weight"] = [VISION, 4096]
    return shapes
