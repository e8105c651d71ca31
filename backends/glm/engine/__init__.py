"""Who waits, who runs and what is remembered: prompts in, events of their answers out.

`engine` is the one thread that does it, over a model that it knows as a protocol (`model`). Nothing
here knows torch or HTTP, and what decides (`scheduler`, `prefix`, `capacity`) is pure.
"""
