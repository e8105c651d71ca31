"""The model's side of the engine, and the only room for torch and transformers besides nano.

`load` reads a checkpoint, `runner` holds its requests as rows of a cache and takes the steps.
Nothing here knows HTTP, and which request goes first is not decided here.
"""
