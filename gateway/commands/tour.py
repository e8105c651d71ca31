"""The guided tour of `yuzui demo`: ten requests that show one decision each, then the report."""

from __future__ import annotations

import base64
import http.client
import io
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from urllib.parse import urlsplit

import msgspec

from backends.glm.nano.draw import draw_scene
from gateway.admin.client import AdminClient
from gateway.commands.tables import table
from gateway.snapshot import RATE_WAIT_S

HEAD = ("request", "route", "reason", "tokens", "cost CNY", "saved CNY", "answer")
MODEL = "glm-4.6v"
TIMEOUT_S = 120.0
TTFT_S = 0.3  # how long a caller of the tour waits for a first token before it overflows
SLOTS = 2  # of the worker
CROWD = 12  # callers at once on these slots, each with an answer that takes seconds
# A list of sixty colours is long, whatever the model makes of the picture.
LONG: dict[str, object] = {
    "max_tokens": 512,
    "response_format": {
        "type": "json_schema",
        "json_schema": {
            "name": "colours",
            "schema": {
                "type": "array",
                "items": {"enum": ["red", "green", "blue"]},
                "minItems": 60,
                "maxItems": 60,
            },
        },
    },
}


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What one request of the tour came to."""

    status: int
    route: str
    reason: str
    tokens: int
    cost: str
    saved: str
    text: str


class Tour:
    """Plays the tour against a running stack.

    url, token: the gateway.   emulator: base URL of the Ark emulator.   say: prints a line.
    """

    def __init__(
        self, url: str, token: str, emulator: str, admin: AdminClient, say: Callable[[str], None]
    ) -> None:
        self._url = url
        self._token = token
        self._emulator = emulator
        self._admin = admin
        self._say = say
        self._rows: list[tuple[str, ...]] = []
        self._picture = _data_url(seed=7)

    def play(self) -> None:
        look = self._chat("What is in this picture?", picture=True)
        self._show("1 a picture, nobody else asking", look)
        self._show(
            "2 the same, streamed", self._chat("How many objects are there?", True, stream=True)
        )
        pinned = {"x-yuzui-sensitivity": "sensitive"}
        self._show("3 marked sensitive", self._chat("What colour is it?", True, headers=pinned))
        typo = {"x-yuzui-sensitivity": "sensitve"}
        self._show("4 a label nobody knows", self._chat("What shape is it?", True, headers=typo))
        with self._crowd():
            self._show(f"5 while {CROWD} others ask", self._chat("Describe the picture.", True))
            soon = {"x-yuzui-deadline-ms": "200"}
            self._show("6 first token within 200 ms", self._chat("What is it?", True, headers=soon))
            self._show("7 sensitive, in the crowd", self._chat("What is it?", True, headers=pinned))
            self._fault("ServerOverloaded")
            self._show("8 the cloud is overloaded too", self._chat("What is it?", True))
        time.sleep(RATE_WAIT_S)  # so long the gateway leaves an overloaded cloud alone
        self._show("9 the cloud asked for by name", self._chat("Hello", model=f"cloud/{MODEL}"))
        self._budget(1_000)  # a millionth of a yuan: less than any answer costs
        self._show("10 the same, no money left", self._chat("Hello", model=f"cloud/{MODEL}"))
        self._say(table(HEAD, self._rows, left=3))

    # ------------------------------------------------------------ one request

    def _chat(
        self,
        text: str,
        picture: bool = False,
        *,
        model: str = MODEL,
        stream: bool = False,
        headers: dict[str, str] | None = None,
        more: Mapping[str, object] = {},
    ) -> Answer:
        parts: list[dict[str, object]] = [{"type": "text", "text": text}]
        if picture:
            parts.insert(0, {"type": "image_url", "image_url": {"url": self._picture}})
        body = {
            "model": model,
            "stream": stream,
            "max_tokens": 64,
            "messages": [{"role": "user", "content": parts}],
            **more,
        }
        if stream:
            body["stream_options"] = {"include_usage": True}
        connection = _connect(self._url)
        try:
            connection.request(
                "POST",
                "/v1/chat/completions",
                body=msgspec.json.encode(body),
                headers={"Authorization": f"Bearer {self._token}", **(headers or {})},
            )
            response = connection.getresponse()
            raw = response.read()
        finally:
            connection.close()
        read = _read_stream if stream and response.status == 200 else _read_plain
        return read(response, raw)

    def _show(self, name: str, answer: Answer) -> None:
        text = answer.text if len(answer.text) <= 40 else answer.text[:37] + "..."
        tokens = str(answer.tokens) if answer.tokens else "-"
        route = answer.route if answer.status == 200 else f"{answer.status}"
        self._rows.append((name, route, answer.reason, tokens, answer.cost, answer.saved, text))
        self._say(f"  {name}: {answer.reason}")

    # ------------------------------------------------------------ circumstances

    @contextmanager
    def _crowd(self) -> Iterator[None]:
        """Others who ask all the time, on the premises only, until the block is left. It is entered
        when each of them has had an answer: by then the gateway knows how long these take."""
        leave, answered = threading.Event(), threading.Semaphore(0)

        def ask_on() -> None:
            while not leave.is_set():
                self._chat("List colours.", True, model=f"local/{MODEL}", more=LONG)
                answered.release()

        with ThreadPoolExecutor(CROWD) as pool:
            for _ in range(CROWD):
                pool.submit(ask_on)
            try:
                for _ in range(CROWD):
                    answered.acquire(timeout=TIMEOUT_S)
                yield
            finally:
                leave.set()

    def _fault(self, code: str) -> None:
        """The emulator answers its next request with this error."""
        connection = _connect(self._emulator)
        body = msgspec.json.encode({"fault": {"code": code}, "next": 1})
        connection.request("POST", "/emulator/faults", body=body)
        connection.getresponse().read()
        connection.close()

    def _budget(self, limit_nano: int) -> None:
        body = {"scope": "backend:cloud", "limit_nano": limit_nano, "period": "day", "zone": None}
        self._admin.call("PUT", "/admin/budgets", body=body)


def _read_plain(response: http.client.HTTPResponse, raw: bytes) -> Answer:
    found = msgspec.json.decode(raw)
    if response.status != 200:
        text, tokens = found["error"]["code"], 0
    else:
        text, tokens = found["choices"][0]["message"]["content"], found["usage"]["total_tokens"]
    return Answer(
        status=response.status,
        route=response.headers.get("x-yuzui-route", "-"),
        reason=response.headers.get("x-yuzui-reason", "-"),
        tokens=tokens,
        cost=response.headers.get("x-yuzui-cost-cny", "-"),
        saved=response.headers.get("x-yuzui-saved-cny", "-"),
        text=" ".join(text.split()),
    )


def _read_stream(response: http.client.HTTPResponse, raw: bytes) -> Answer:
    lines = [line[6:] for line in raw.split(b"\n") if line.startswith(b"data: {")]
    chunks = [msgspec.json.decode(line) for line in lines]
    deltas = [c["choices"][0]["delta"].get("content") for c in chunks if c["choices"]]
    note = chunks[-1]["yuzui"]
    return Answer(
        status=response.status,
        route=note["route"],
        reason=note["reason"],
        tokens=chunks[-1]["usage"]["total_tokens"],
        cost=f"{note['cost_cny']:.9f}",
        saved=f"{note['saved_cny']:.9f}",
        text=" ".join("".join(delta or "" for delta in deltas).split()),
    )


def _connect(url: str) -> http.client.HTTPConnection:
    parts = urlsplit(url)
    return http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=TIMEOUT_S)


def _data_url(seed: int) -> str:
    """A drawn picture whose contents are known."""
    picture, _ = draw_scene(seed, size=224)
    out = io.BytesIO()
    picture.save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
