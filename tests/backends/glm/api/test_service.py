from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import aiohttp
import pytest
from PIL import Image

from backends.glm.api import service as service_module
from backends.glm.api.service import Events, Mail, Service
from backends.glm.engine.adapters import Adapters
from backends.glm.engine.events import ABORTED, Progress
from backends.glm.model.load import Checkpoint
from backends.glm.request import prompt as prompt_module
from backends.glm.request.images import decode_picture
from tests.backends.glm.conftest import Serve, data_url, no_adapter, picture
from tests.backends.glm.scripted import Script

WAIT_S = 20


class Meddling(deque[Any]):
    """What is posted; another thread posts, too, in the moment after the first one has."""

    def __init__(self, other: Callable[[], None]) -> None:
        super().__init__()
        self._other: Callable[[], None] | None = other

    def append(self, item: Any) -> None:
        super().append(item)
        other, self._other = self._other, None
        if other is not None:
            other()


async def test_two_who_post_at_once_are_both_delivered() -> None:
    mail = Mail()
    events: Events = asyncio.Queue()
    mail.bind(asyncio.get_running_loop())
    mail._posted = Meddling(lambda: mail.post(events, 1, ABORTED))
    mail.post(events, 0, Progress(deltas=[]))
    async with asyncio.timeout(WAIT_S):
        assert [(await events.get())[0] for _ in range(2)] == [0, 1]
        mail.post(events, 2, ABORTED)  # and so are those who come later
        assert (await events.get())[0] == 2


@pytest.fixture
def restless() -> Iterator[None]:
    """Threads take turns as often as they can."""
    usual_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual_s)


async def test_events_of_many_threads_all_arrive_each_threads_in_order(restless: None) -> None:
    mail = Mail()
    events: Events = asyncio.Queue()
    mail.bind(asyncio.get_running_loop())
    threads, each = 3, 400

    def post(choice: int) -> None:
        for number in range(each):
            mail.post(events, choice, Progress(deltas=[number]))  # type: ignore[list-item]

    posting = [threading.Thread(target=post, args=(choice,)) for choice in range(threads)]
    for one in posting:
        one.start()
    came: list[list[Any]] = [[] for _ in range(threads + 1)]
    async with asyncio.timeout(WAIT_S):
        for number in range(each):  # the loop's own thread posts as well
            mail.post(events, threads, Progress(deltas=[number]))  # type: ignore[list-item]
            await asyncio.sleep(0)
        while sum(map(len, came)) < (threads + 1) * each:
            choice, event = await events.get()
            assert isinstance(event, Progress)
            came[choice] += event.deltas
    assert came == [list(range(each))] * (threads + 1)


async def test_names_are_listed_where_they_change(checkpoint: Checkpoint, serve: Serve) -> None:
    """Adapters come and go on the event loop; a thread that counts them meanwhile breaks."""

    class Watched(Adapters):
        def served(self, *given: Any) -> Any:
            seen.append(threading.current_thread())
            return super().served(*given)

    seen: list[threading.Thread] = []
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
    script = Script([min(checkpoint.stop_ids)])
    adapters = Watched(no_adapter, None)
    async with (
        serve(script, adapters=adapters) as served,
        aiohttp.ClientSession(served.url) as http,
        http.post("/v1/chat/completions", json=body) as answer,
    ):
        assert answer.status == 200
    assert seen == [threading.current_thread()]


class Decoding:
    """Stands in for decoding pictures: each waits until it is let through, and says who it was."""

    def __init__(self) -> None:
        self.entered, self.go = threading.Semaphore(0), threading.Semaphore(0)
        self.order: list[int] = []
        self.at_once = self.most = 0

    def decode(self, image: Image.Image, param: str) -> Image.Image:
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        self.order.append(image.width)
        self.entered.release()
        assert self.go.acquire(timeout=WAIT_S)
        self.at_once -= 1
        return decode_picture(image, param)


def ask(tenant: str, width: int, pictures: int) -> dict[str, Any]:
    url = {"url": data_url(picture(width, 28))}
    parts = [{"type": "image_url", "image_url": url}] * pictures + [{"type": "text", "text": "?"}]
    return {
        "model": "tiny",
        "cache_salt": tenant,
        "messages": [{"role": "user", "content": parts}],
    }


@pytest.mark.parametrize("large_bytes", [1, service_module.LARGE_BYTES])
async def test_pictures_keep_no_text_waiting_and_their_tenants_take_turns(
    checkpoint: Checkpoint, serve: Serve, monkeypatch: pytest.MonkeyPatch, large_bytes: int
) -> None:
    """While the pictures of alpha are decoded: a text of beta is answered, a picture of beta is
    next, and those of a caller who has left are not decoded at all."""
    decoding = Decoding()
    monkeypatch.setattr(service_module, "LARGE_BYTES", large_bytes)
    monkeypatch.setattr(prompt_module, "decode_picture", decoding.decode)
    script = Script([min(checkpoint.stop_ids)])
    async with serve(script) as served, aiohttp.ClientSession(served.url) as http:

        async def post(body: dict[str, Any]) -> int:
            async with http.post("/v1/chat/completions", json=body) as answer:
                return answer.status

        alpha = asyncio.gather(post(ask("alpha", 30, 3)))
        assert await asyncio.to_thread(decoding.entered.acquire, True, WAIT_S)
        hello = {"role": "user", "content": "hi"}
        text = {"model": "tiny", "cache_salt": "beta", "messages": [hello]}
        assert await asyncio.wait_for(post(text), WAIT_S / 2) == 200
        leaves = asyncio.gather(post(ask("beta", 40, 1)))
        await in_line(served.service, 1)
        beta = asyncio.gather(post(ask("beta", 50, 1)))
        await in_line(served.service, 2)
        assert served.engine.load().preparing == served.engine.load().waiting == 3
        leaves.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await leaves
        await in_line(served.service, 1)
        for _ in range(4):
            decoding.go.release()
        assert await asyncio.wait_for(asyncio.gather(alpha, beta), WAIT_S) == [[200], [200]]
    # Beta's first turn was for the header of its picture.
    assert decoding.order == [30, 30, 50, 30]
    assert decoding.most == 1


async def in_line(service: Service, count: int) -> None:
    """Until so many requests of beta wait for a turn with pictures."""
    waiting = service._pictures._turns._waiting
    async with asyncio.timeout(WAIT_S):
        while len(waiting.get("beta", ())) != count:  # noqa: ASYNC110 - another thread's
            await asyncio.sleep(0.002)
