"""The GLM worker: serves a GLM-4.6V-like checkpoint over HTTP in the OpenAI chat dialect.

The rooms, each usable and testable without those below it:

    checkpoint   what a checkpoint's folder says, unloaded
    answer       ids -> text -> thought, answer, tool calls; and the form they must have
    request      JSON -> checked request -> ids and pixels
    engine       who waits, who runs; one thread; the model behind a protocol
    api          HTTP and JSON; admission to events, on the event loop
    model        forward passes and drawing of tokens       (torch, transformers)
    nano         a very small checkpoint, and how it was trained       (torch, transformers)

At the top stands the process: `__main__` and `options`, `worker`, which listens, and `startup`,
which puts the rooms together, with `preflight`, `priority` and `heap`; and `errors` and `types`,
which every room uses.

Importing this package imports none of them.
"""
