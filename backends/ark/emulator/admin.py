"""The routes under `/emulator/`: what was received and charged, and rules for faults.

They have no key. The server binds to the loopback address unless it is told otherwise.
"""

from __future__ import annotations

from typing import Any, Protocol

import msgspec
from aiohttp import web

from backends.ark.emulator.billing import Bill
from backends.ark.emulator.books import Books
from backends.ark.emulator.faults import CODES, INJECT_HEADER, Fault, FaultBook, FaultRule

_PAGE_ROWS = 1000


class Remembers(Protocol):
    """What the routes show of an emulator (`server.Emulator`), and make it forget."""

    url: str
    books: Books
    bill: Bill
    faults: FaultBook

    def reset(self) -> None: ...


class Admin:
    """Handlers over one emulator."""

    def __init__(self, emulator: Remembers) -> None:
        self._emulator = emulator

    def add_to(self, router: web.UrlDispatcher) -> None:
        router.add_get("/emulator", self._index)
        router.add_get("/emulator/stats", self._stats)
        router.add_get("/emulator/requests", self._requests)
        router.add_get("/emulator/usage", self._usage)
        router.add_get("/emulator/bill/faults", self._bill_faults)
        router.add_get("/emulator/faults", self._faults_list)
        router.add_post("/emulator/faults", self._faults_add)
        router.add_delete("/emulator/faults", self._faults_clear)
        router.add_post("/emulator/reset", self._reset)

    async def _index(self, _request: web.Request) -> web.Response:
        return answer_json(
            {
                "emulator": "yuzui-ark-emulator",
                "base_url": self._emulator.url,
                "see": {
                    "GET /emulator/stats": "counters",
                    "GET /emulator/requests?from=0&limit=100": "what was received; no texts",
                    "GET /emulator/usage?from=0&limit=100": "what was charged",
                    "GET /emulator/bill/faults": "what is wrong with the bill on purpose",
                    "POST /?Action=ListBillDetail&Version=2022-01-01": "the bill, for the SDK",
                    "GET|POST|DELETE /emulator/faults": "rules, e.g. "
                    '{"fault": {"code": "ServerOverloaded"}, "next": 3}',
                    "POST /emulator/reset": "forget everything",
                },
                "inject_header": INJECT_HEADER,
                "fault_fields": list(Fault.__struct_fields__),
                "codes": sorted(CODES),
            }
        )

    async def _stats(self, _request: web.Request) -> web.Response:
        return answer_json(self._emulator.books.stats())

    async def _requests(self, request: web.Request) -> web.Response:
        return answer_json(self._emulator.books.received.page(*_page(request)))

    async def _usage(self, request: web.Request) -> web.Response:
        return answer_json(self._emulator.books.charged.page(*_page(request)))

    async def _bill_faults(self, _request: web.Request) -> web.Response:
        return answer_json({"injected": self._emulator.bill.injected()})

    async def _faults_list(self, _request: web.Request) -> web.Response:
        return answer_json({"rules": self._emulator.faults.rules})

    async def _faults_add(self, request: web.Request) -> web.Response:
        try:
            self._emulator.faults.rules.append(
                msgspec.json.decode(await request.read(), type=FaultRule)
            )
        except msgspec.DecodeError as error:  # ValidationError is one
            return answer_json({"error": str(error)}, status=400)
        return await self._faults_list(request)

    async def _faults_clear(self, request: web.Request) -> web.Response:
        self._emulator.faults.rules.clear()
        return await self._faults_list(request)

    async def _reset(self, _request: web.Request) -> web.Response:
        self._emulator.reset()
        return answer_json({"reset": True})


def _page(request: web.Request) -> tuple[int, int]:
    """Query `from` and `limit` -> numbers; what cannot be read counts as not given."""
    numbers = []
    for name, default in (("from", 0), ("limit", _PAGE_ROWS)):
        text = request.query.get(name, "")
        numbers.append(int(text) if text.isdecimal() else default)
    return numbers[0], numbers[1]


def answer_json(value: Any, status: int = 200) -> web.Response:
    return web.Response(
        status=status, body=msgspec.json.encode(value), content_type="application/json"
    )
