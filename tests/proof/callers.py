"""The callers of `make proof-pool`: requests that come when their time has come.

They do not wait for each other. Callers in a closed loop, each of whom asks again when it has its
answer, fall silent together with a worker that hangs: its own callers wait, the others have the
machine for themselves, and the measurement sees less load and better times than there would be.
Here the arrivals are drawn once from a seed, one at random within each interval of the rate (freely
drawn ones come in bunches, and the slowest in a hundred would be measured at the largest bunch),
and every window of the proof plays the same ones: so two windows differ by what happened in them
and by nothing else. An answer's time counts from when its request was due, whether or not whoever
asks was late himself.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Coroutine
from random import Random
from typing import Any, NamedTuple

import aiohttp
import msgspec

from gateway.tasks import spawn

PATIENCE_S = 240.0
SEED = 20


class Answered(NamedTuple):
    """One request: in which window and as which of its arrivals it was due, and how it ended."""

    window: str
    number: int
    stream: bool
    due_s: float  # since its window began
    began_s: float  # monotonic clock
    total_ms: float
    how: str  # ok | broken | failed | false_done | unexplained
    attempts: int
    detail: str = ""
    request_id: str = ""


class Callers:
    """Asks one gateway. words: how many a whole answer has; None: it is not known."""

    def __init__(
        self, http: aiohttp.ClientSession, url: str, token: str, *, words: int | None
    ) -> None:
        self._http = http
        self._url = f"{url}/v1/chat/completions"
        self._headers = {"Authorization": f"Bearer {token}"}
        self._words = words
        self._asking: set[asyncio.Task[None]] = set()
        self.answers: list[Answered] = []

    async def capacity(self, callers: int, seconds: float) -> float:
        """Answers a second when so many ask in a closed loop."""
        answered = 0
        end_s = time.monotonic() + seconds

        async def ask_again() -> None:
            nonlocal answered
            while time.monotonic() < end_s:
                await self._ask("capacity", answered, 0.0, time.monotonic())
                answered += 1

        await asyncio.gather(*(ask_again() for _ in range(callers)))
        return answered / seconds

    async def window(self, name: str, rate: float, what: Coroutine[Any, Any, None]) -> float:
        """Plays the arrivals, `rate` a second, until `what` is over; how long that was, in
        seconds. Those that have no answer then are waited for by `quiet`."""
        rng, began_s = Random(SEED), time.monotonic()
        over = spawn(what, name=name)
        for number in itertools.count():
            due_s = (number + rng.random()) / rate
            await asyncio.wait({over}, timeout=max(0.0, began_s + due_s - time.monotonic()))
            if over.done():
                break
            asking = spawn(self._ask(name, number, due_s, began_s + due_s), name="ask")
            self._asking.add(asking)
            asking.add_done_callback(self._asking.discard)
        over.result()
        return time.monotonic() - began_s

    async def quiet(self) -> None:
        """Until everybody has an answer."""
        async with asyncio.timeout(PATIENCE_S):
            while self._asking:
                await asyncio.wait(self._asking)

    async def _ask(self, window: str, number: int, due_s: float, began_s: float) -> None:
        stream = number % 2 == 0
        how, attempts, detail, request_id = await self._answer(stream)
        total_ms = 1000 * (time.monotonic() - began_s)
        self.answers.append(
            Answered(
                window, number, stream, due_s, began_s, total_ms, how, attempts, detail, request_id
            )
        )

    async def _answer(self, stream: bool) -> tuple[str, int, str, str]:
        body = {
            "model": "glm-4.6v",
            "stream": stream,
            "max_tokens": 24,
            "messages": [{"role": "user", "content": "Say what you see."}],
        }
        seen, attempts, request_id = b"", 0, ""
        try:
            async with self._http.post(self._url, json=body, headers=self._headers) as response:
                attempts = int(response.headers.get("x-yuzui-attempts", "0"))
                request_id = response.headers.get("x-yuzui-request-id", "")
                if response.status != 200:
                    text = f"{response.status} {await response.text()}"
                    return "failed", attempts, text, request_id
                async for data in response.content.iter_any():
                    seen += data
        except (aiohttp.ClientError, TimeoutError) as error:
            return ("unexplained" if seen else "failed"), attempts, repr(error), request_id
        if not stream:
            whole = bool(msgspec.json.decode(seen)["choices"][0]["message"]["content"])
            return ("ok" if whole else "failed"), attempts, "", request_id
        return judged(seen, words=self._words), attempts, "", request_id


def judged(seen: bytes, *, words: int | None) -> str:
    """How a stream ended. words: how many a whole one has; None: it is not known."""
    events = [line[6:] for line in seen.split(b"\n") if line.startswith(b"data: ")]
    chunks = [msgspec.json.decode(event) for event in events if event.startswith(b"{")]
    done = bool(events) and events[-1] == b"[DONE]"
    if any("error" in chunk for chunk in chunks):
        return "false_done" if done else "broken"
    if not done:
        return "unexplained"
    finished = any(c["finish_reason"] for chunk in chunks for c in chunk.get("choices", ()))
    text = "".join(
        c["delta"].get("content") or "" for chunk in chunks for c in chunk.get("choices", ())
    )
    whole = finished and (words is None or len(text.split()) == words)
    return "ok" if whole else "false_done"
