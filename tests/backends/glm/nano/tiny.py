"""Widths of a model small enough to train for a few steps inside a test."""

WIDTHS = {
    "text": {
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 100.0,
            "partial_rotary_factor": 0.5,
            "mrope_section": [2, 2, 2],
        },
    },
    "vision": {
        "hidden_size": 32,
        "depth": 1,
        "num_heads": 2,
        "intermediate_size": 48,
        "out_hidden_size": 48,
        "image_size": 112,
    },
}
