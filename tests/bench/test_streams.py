"""The benchmark's own client: what it reads does not depend on how the bytes were cut."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.bench.streams import Answer, answer_of, burst


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


ROLE = _event({"choices": [{"delta": {"role": "assistant", "content": ""}}]})
WORDS = [_event({"choices": [{"delta": {"content": word}}]}) for word in ("你", "好", "\r\n0\r\n")]
USAGE = _event({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}})
REPLY = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    + _chunk(ROLE)
    + b"".join(_chunk(word) for word in WORDS)
    + _chunk(USAGE + b"data: [DONE]\n\n")
    + _chunk(b"")
)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, len(REPLY)])
def test_an_answer_is_the_same_however_it_was_cut(size: int) -> None:
    pieces = [(float(at), REPLY[at : at + size]) for at in range(0, len(REPLY), size)]
    answer = answer_of(began_s=0.0, pieces=pieces)
    assert answer.text == "你好\r\n0\r\n"
    assert (answer.prompt_tokens, answer.completion_tokens) == (7, 3)
    assert answer.ttft_s <= answer.total_s
    first_word_ends = REPLY.index(WORDS[0]) + len(WORDS[0])
    assert answer.ttft_s >= first_word_ends - size  # the role alone is no first token


def test_a_stream_that_breaks_off_is_no_answer() -> None:
    with pytest.raises(RuntimeError, match="not a whole stream"):
        answer_of(began_s=0.0, pieces=[(0.0, REPLY[: REPLY.index(USAGE)])])


async def test_a_burst_comes_back_in_the_order_in_which_it_was_sent() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        body = json.loads(await reader.readexactly(length))
        said = _event({"choices": [{"delta": {"content": body["say"]}}]})
        await asyncio.sleep(0.02 * (3 - int(body["say"])))  # the last one answers first
        writer.write(REPLY.replace(_chunk(WORDS[0]), _chunk(said)))
        await writer.drain()
        await reader.read()  # the caller closes
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        answers = await burst(url, [{"say": str(number)} for number in range(4)])
    assert [answer.text[0] for answer in answers] == ["0", "1", "2", "3"]


def test_time_per_output_token_is_counted_after_the_first() -> None:
    answer = Answer(text="", ttft_s=1.0, total_s=2.0, prompt_tokens=1, completion_tokens=11)
    assert answer.tpot_s == pytest.approx(0.1)
