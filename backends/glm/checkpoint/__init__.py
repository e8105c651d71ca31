"""What a checkpoint's folder says before any of it is loaded.

Its files, its weights' headers and what they will need of memory, its tokenizer. Nothing here knows
torch, or any other room: a wrong path, and a model that does not fit, are told before the wait.
"""
