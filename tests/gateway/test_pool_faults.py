"""Workers at their worst, behind a real gateway: garbage, deaths, stalls, names that flap."""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
import subprocess
import sys
from collections import Counter
from contextlib import suppress

import msgspec
import pytest

from backends.dial import Dialer
from backends.scripted_server import ScriptedServer, ServerOptions
from gateway.tasks import spawn
from policies import breaker
from tests.gateway.rig import PATIENCE_S, Rig, rig, until
from tests.gateway.test_pool_flow import pool, up
from tests.ports import free_port
from tests.proof.callers import judged

CARD = json.dumps({"object": "list", "data": [{"id": "glm", "object": "model"}]}).encode()
STREAM = b"content-type: text/event-stream\r\n"
JSON = b"content-type: application/json\r\n"
ROLE = b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":"a"}}]}\n\n'


def http(head: bytes, body: bytes, status: bytes = b"200 OK", length: int | None = None) -> bytes:
    size = b"%d" % (len(body) if length is None else length)
    return b"HTTP/1.1 " + status + b"\r\n" + head + b"content-length: " + size + b"\r\n\r\n" + body


class Liar:
    """An engine that passes every probe and answers each chat with these bytes, then hangs up."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.asked = 0
        self.url = ""
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Liar:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = 0
                for line in head.lower().split(b"\r\n"):
                    if line.startswith(b"content-length:"):
                        length = int(line.partition(b":")[2])
                await reader.readexactly(length)
                if head.startswith(b"POST"):
                    self.asked += 1
                    writer.write(self.answer)
                    await writer.drain()
                    break
                elif head.startswith(b"GET /v1/models"):
                    writer.write(http(JSON, CARD))
                elif head.startswith(b"GET /health"):
                    writer.write(http(JSON, b"{}"))
                else:
                    writer.write(http(JSON, b"{}", b"404 Not Found"))
        writer.close()


GARBAGE = {
    "nothing": b"",
    "not http": b"SSH-2.0-OpenSSH_9.2\r\n",
    "an empty body": http(JSON, b""),
    "a page": http(b"content-type: text/html\r\n", b"<html>It works!</html>"),
    "another object": http(JSON, b'{"detail":"ok"}'),
    "no choices": http(JSON, b'{"choices":[]}'),
    "a choice of nothing": http(JSON, b'{"choices":[{}]}'),
    "half an answer": http(JSON, b'{"choices":[{"message":{"con', length=4_000),
    "not utf-8": http(JSON, b'{"choices":[{"message":{"content":"\xff\xfe"}}]}'),
    "nested": http(JSON, b"[" * 100_000),
    "an endless head": b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 100_000,
    "an error that says 200": http(JSON, b'{"error":{"message":"out of memory","code":500}}'),
    "an empty stream": http(STREAM, b""),
    "a stream of nothing": http(STREAM, b"data: [DONE]\n\n"),
    "a stream of words": http(STREAM, b"data: hello\n\n"),
    "a stream that is not utf-8": http(STREAM, ROLE.replace(b'"a"', b'"\xff"')),
    "a line without end": http(STREAM, b"data: " + b"x" * 3_000_000),
    "a negative length": b"HTTP/1.1 200 OK\r\ncontent-length: -5\r\n\r\n",
}


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("name", GARBAGE)
async def test_a_worker_that_answers_garbage_costs_nobody_an_answer(
    books_url: str, name: str, stream: bool
) -> None:
    async with Liar(GARBAGE[name]) as liar, ScriptedServer(ServerOptions(chunks=3)) as good:
        named = [{"url": liar.url, "name": "liar", "weight": 1_000}, {"url": good.url, "name": "g"}]
        async with rig(books_url, workers=[], settings=pool(*named)) as house:
            await up(house, 2)
            for _ in range(12):
                answer = await house.ask(stream=stream)
                assert (answer.status, answer.header("route")) == (200, "local:g"), answer.body
                assert answer.ended_well == stream
            # The positive control; then its breaker is open, but for one attempt after 2, 6, 14 s.
            assert 0 < liar.asked <= 8
            rows = await house.settled()
            assert {row.target for row in rows if row.posted_nano} == {"g"}
            assert len(rows) == 12


@pytest.mark.parametrize(
    "rest",
    [
        b"",
        b"data: hello\n\n",
        b"data: [DONE]\n\n",
        b'data: {"choices":[{"index":0',
        b"\x00" * 99,
        ROLE.replace(b'"a"', b'"\xe4\xbd"'),
    ],
    ids=["silence", "words", "done", "half", "zeros", "half a character"],
)
async def test_a_stream_that_turns_to_garbage_ends_with_an_error_and_never_with_done(
    books_url: str, rest: bytes
) -> None:
    async with Liar(http(STREAM, ROLE + rest)) as liar:
        settings = pool({"url": liar.url, "name": "liar"})
        async with rig(books_url, workers=[], settings=settings) as house:
            await up(house, 1)
            answer = await house.ask(stream=True)
            assert answer.status == 200
            assert b"[DONE]" not in answer.body
            assert answer.chunks[-1]["error"]["code"] == "upstream_broken"
            (row,) = await house.settled()
            assert row.outcome == "broken"


# ------------------------------------------------------------------ engines as processes


class Engines:
    """vLLM's and SGLang's servers as processes of their own, each at a port that it keeps."""

    def __init__(self, *kinds: str) -> None:
        self.kinds = dict(zip("abc", kinds, strict=False))
        self.ports = {name: free_port() for name in self.kinds}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str) -> None:
        self.processes[name] = subprocess.Popen(
            [sys.executable, "-m", "tests.scripted_worker", "--engine", self.kinds[name],
             "--port", str(self.ports[name]), "--pace-ms", "40"],
            stderr=subprocess.DEVNULL,  # it complains of clients that have gone
        )  # fmt: skip

    def __enter__(self) -> Engines:
        for name in self.kinds:
            self.start(name)
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()

    @property
    def settings(self) -> dict[str, object]:
        named = [
            {"url": f"http://127.0.0.1:{port}", "name": name} for name, port in self.ports.items()
        ]
        return pool(*named, **{"limits.local.idle_s": 3.0, "pool.warm_up_s": 0.5})


class Callers:
    """Six in a closed loop, half of them streaming; how their requests ended."""

    def __init__(self, house: Rig) -> None:
        self.house = house
        self.ends: Counter[str] = Counter()
        self.routes: Counter[str | None] = Counter()
        self.stop = False

    async def run(self) -> None:
        await asyncio.gather(*(self._ask(stream=n % 2 == 0) for n in range(6)))

    async def _ask(self, *, stream: bool) -> None:
        while not self.stop:
            answer = await self.house.ask(model="local/glm-4.6v", stream=stream)
            end = "ok" if answer.status == 200 else f"failed: {answer.body!r}"
            if stream and answer.status == 200:
                end = judged(answer.body, words=None)
            self.ends[end] += 1
            self.routes[answer.header("route") if end == "ok" else None] += 1

    async def more(self, count: int, *, of: str | None = None) -> None:
        """Returns after so many more answers (from one worker)."""
        seen = self.routes.total() if of is None else self.routes[f"local:{of}"]
        enough = seen + count
        await until(
            lambda: (self.routes.total() if of is None else self.routes[f"local:{of}"]) >= enough
        )


async def health(house: Rig, name: str, *wanted: str) -> None:
    async with asyncio.timeout(60):
        while True:
            listed = await house.admin("GET", "/admin/workers")
            if {worker["name"]: worker["health"] for worker in listed}[name] in wanted:
                return
            await asyncio.sleep(0.02)


@pytest.mark.slow
async def test_engines_that_die_hang_and_restart_take_nobody_with_them(books_url: str) -> None:
    """Only streams that had begun at the engine that died or hung may end early, with an error."""
    with Engines("vllm", "sglang", "vllm") as engines:
        async with rig(books_url, workers=[], settings=engines.settings) as house:
            await up(house, 3)
            callers = Callers(house)
            asking = spawn(callers.run(), name="callers")
            for name in "abc":
                await callers.more(3, of=name)  # all of them serve

            engines.processes["a"].kill()
            await health(house, "a", "down")
            engines.processes["a"].wait()
            await callers.more(12)
            engines.start("a")
            await callers.more(3, of="a")  # it is used again by itself

            engines.processes["b"].send_signal(signal.SIGSTOP)
            await health(house, "b", "down")
            await callers.more(12)
            engines.processes["b"].send_signal(signal.SIGCONT)
            await callers.more(3, of="b")

            begun_and_lost = callers.ends["broken"]
            for name in "abc":  # one after the other, as an operator rolls a new version out
                engines.processes[name].send_signal(signal.SIGTERM)
                await asyncio.to_thread(engines.processes[name].wait)
                engines.start(name)
                await callers.more(3, of=name)

            callers.stop = True
            await asking
            assert set(callers.ends) <= {"ok", "broken"}, callers.ends
            assert begun_and_lost <= 6  # as many as there are callers, at two faults
            assert callers.ends["broken"] == begun_and_lost, "a roll breaks no stream"
            await house.settled()


async def test_a_pool_that_is_thrown_out_as_a_whole_says_so_and_comes_back(
    books_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(breaker, "OPEN_FIRST_S", 0.5)  # nobody need wait longer for its return
    broken = http(JSON, b"{}", b"500 Internal Server Error")
    async with Liar(broken) as one, Liar(broken) as other:
        named = [{"url": one.url, "name": "a"}, {"url": other.url, "name": "b"}]
        async with rig(books_url, workers=[], cloud=True, settings=pool(*named)) as house:
            await up(house, 2)
            for _ in range(12):  # nobody notices: the cloud answers what may go there
                assert (await house.ask()).status == 200
            async with asyncio.timeout(PATIENCE_S):  # nobody else is asked first, but now and then
                while (await house.ask()).header("attempts") != "1":
                    pass
            pinned = house.headers(sensitivity="sensitive")
            refused = await house.ask(pinned)
            assert refused.status in (500, 502, 503)
            assert (await house.admin("GET", "/admin/pool"))["alerts"]
            good = {"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}]}
            one.answer = other.answer = http(JSON, json.dumps(good).encode())
            async with asyncio.timeout(PATIENCE_S):
                while (await house.ask(pinned)).status != 200:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            assert (await house.ask(pinned)).status == 200


async def test_a_name_that_flaps_loses_no_request(
    books_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty times a second it has other addresses, none, or cannot be looked up at all."""
    one, other = "127.0.0.1", "127.0.0.2"
    said = itertools.cycle([[one, other], [other], [one], [], [one, other], None, [other, one]])
    asked = 0

    async def resolve(dialer: Dialer, origin: object) -> list[str]:
        nonlocal asked
        asked += 1
        if (addresses := next(said)) is None:
            raise OSError("no such name")
        return addresses

    monkeypatch.setattr(Dialer, "resolve", resolve)
    options = ServerOptions(chunks=5, pace_ms=10, slots=2)
    async with ScriptedServer(options) as here:
        port = int(here.url.rpartition(":")[2])
        async with ScriptedServer(msgspec.structs.replace(options, host=other, port=port)) as there:
            name = {"url": f"http://gpus.svc:{port}", "name": "gpu", "every_s": 0.05}
            settings = {"pool.dns": [name], "pool.warm_up_s": 0}
            async with rig(books_url, workers=[], settings=settings) as house:
                await house.ready_worker()
                callers = Callers(house)
                asking = spawn(callers.run(), name="callers")
                await until(lambda: asked > 30)
                callers.stop = True
                await asking
                assert set(callers.ends) == {"ok"}, callers.ends
                assert set(callers.routes) == {f"local:gpu-{one}", f"local:gpu-{other}"}
                assert here.answered > 10 < there.answered
