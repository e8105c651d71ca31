"""The GLM worker: serves a GLM-4.6V-like checkpoint over HTTP in the OpenAI chat dialect.

The layers, each usable and testable without the ones below it:

    server, replies, report   HTTP and JSON            worker, options   the process
    service                   admission to events, on the event loop
    engine                    who waits, who runs; one thread; the model behind a protocol
    output                    ids -> text -> thought or answer (detokenize, reasoning)
    prompt, images, protocol  JSON -> checked request -> ids and pixels (tokenizer)
    runner, sampling          forward passes and drawing of tokens       (torch)
    load, startup             checkpoint folder -> all of the above      (torch, transformers)

Importing this package imports none of them.
"""
