"""A backend that plays a script: for tests, demonstrations and the simulator.

    ScriptedBackend([Wait(0.2), delta("Hel"), delta("lo"), finish(), usage(12, 2), DONE])

A step is bytes (a raw event, or the body of a plain answer), a `Wait`, or a `Failure` that is
raised when its turn comes. Waits and failures before the first bytes happen in `open`, as with an
engine that thinks, is busy or refuses; those after it happen in the stream.

`python -m backends.scripted --port 9000` is the same as a real server: see `scripted_server`.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import msgspec
import uvloop

from backends.base import Billed, Call, Event, Failure, Kind
from backends.chunks import read_body, read_event
from backends.scripted_server import ScriptedServer, ServerOptions
from backends.sse import encode
from policies.types import Usage


class Wait(msgspec.Struct, frozen=True):
    """A pause in the script."""

    seconds: float


Step = bytes | Wait | Failure
Sleep = Callable[[float], Awaitable[Any]]

DONE = encode(b"[DONE]")


class ScriptedBackend:
    """Plays the same script for every call. `calls` and `closed` are there to be looked at."""

    def __init__(self, script: Sequence[Step], *, sleep: Sleep = asyncio.sleep) -> None:
        self._script = tuple(script)
        self._sleep = sleep
        self.calls: list[Call] = []
        self.closed = 0  # replies that were closed

    async def open(self, call: Call) -> ScriptedReply:
        """Plays the steps before the first bytes. Raises the script's Failure if one comes."""
        self.calls.append(call)
        steps = list(self._script)
        while steps and not isinstance(steps[0], bytes):
            await _play(steps.pop(0), self._sleep)
        return ScriptedReply(steps, self)


class ScriptedReply:
    """The rest of one played script. See `backends.base.Reply`."""

    def __init__(self, steps: list[Step], backend: ScriptedBackend) -> None:
        self._steps = steps
        self._backend = backend

    async def body(self) -> tuple[bytes, Usage | None]:
        """All bytes of the script as one answer. Raises the script's Failure if one comes."""
        parts: list[bytes] = []
        for step in self._steps:
            if isinstance(step, bytes):
                parts.append(step)
            else:
                await _play(step, self._backend._sleep)
        body = b"".join(parts)
        return body, read_body(body)[0]

    async def events(self) -> AsyncIterator[list[Event]]:
        """One batch per step of bytes. A script that just stops is a broken stream."""
        finished = False
        for step in self._steps:
            if not isinstance(step, bytes):
                await _play(step, self._backend._sleep)
                continue
            event = read_event(step)
            finished = finished or event.done or event.finish_reason is not None
            yield [event]
            if event.done:
                return
        if not finished:
            raise Failure(Kind.BROKEN, "the script ended early", billed=Billed.MAYBE)

    async def close(self) -> None:
        self._backend.closed += 1


def delta(text: str) -> bytes:
    """An event with a piece of text."""
    return _chunk([{"index": 0, "delta": {"content": text}, "finish_reason": None}])


def finish(reason: str = "stop") -> bytes:
    """The event that ends the text."""
    return _chunk([{"index": 0, "delta": {}, "finish_reason": reason}])


def usage(prompt_tokens: int, completion_tokens: int, *, slot_ms: int = 0) -> bytes:
    """The usage event."""
    counted = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
    return _chunk([], usage=counted, yuzui={"slot_ms": slot_ms})


def answer(text: str, prompt_tokens: int, completion_tokens: int, *, slot_ms: int = 0) -> bytes:
    """A whole plain answer."""
    return msgspec.json.encode(
        {
            "id": "chatcmpl-scripted",
            "object": "chat.completion",
            "created": 0,
            "model": "scripted",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": text},
                    "finish_reason": "stop",
                }
            ],
            "usage": {
                "prompt_tokens": prompt_tokens,
                "completion_tokens": completion_tokens,
                "total_tokens": prompt_tokens + completion_tokens,
            },
            "yuzui": {"slot_ms": slot_ms},
        }
    )


def _chunk(choices: list[dict[str, Any]], **more: Any) -> bytes:
    head = {"id": "chatcmpl-scripted", "object": "chat.completion.chunk", "created": 0}
    return encode(msgspec.json.encode({**head, "model": "scripted", "choices": choices, **more}))


async def _play(step: Step, sleep: Sleep) -> None:
    if isinstance(step, Failure):
        raise step
    if isinstance(step, Wait):
        await sleep(step.seconds)


def main(arguments: Sequence[str] | None = None) -> None:
    """Serves until SIGTERM or SIGINT; writes one JSON line when it listens."""
    parser = argparse.ArgumentParser(prog="backends.scripted", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: any free port")
    parser.add_argument("--model", default="glm-4.6v-scripted")
    parser.add_argument("--chunks", type=int, default=100, help="text events of a stream")
    parser.add_argument("--first-ms", type=float, default=0.0, help="wait before an answer")
    parser.add_argument("--pace-ms", type=float, default=0.0, help="wait between two events")
    parser.add_argument("--slots", type=int, default=1024)
    options = msgspec.convert(vars(parser.parse_args(arguments)), ServerOptions)
    uvloop.run(_serve(options))


async def _serve(options: ServerOptions) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with ScriptedServer(options) as server:
        sys.stdout.write(msgspec.json.encode({"listening": server.url}).decode() + "\n")
        sys.stdout.flush()
        await stop.wait()


if __name__ == "__main__":
    main()
