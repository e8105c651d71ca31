"""The emulated control plane: bills, balance and usage, as the vendor's SDK asks for them.

    POST /?Action=ListBillDetail&Version=2022-01-01         rows of a month or a day
    POST /?Action=ListSplitBillDetail&Version=2022-01-01    the same by endpoint
    POST /?Action=ListBill&Version=2022-01-01               a month by product, cut to the cent
    POST /?Action=QueryBalanceAcct&Version=2022-01-01
    POST /?Action=GetInferenceUsage&Version=2024-01-01      (service ark)

Every figure is a text. `Total` is -1 unless NeedRecordNum is 1. A call must be signed; the
signature is looked at and not verified. What the rows of real Ark bills hold in ConfigName and
Factor is not published; here Factor is JSON that names the band, so that a reader need not guess.
Errors have the form of the OpenAPI: ResponseMetadata.Error {CodeN, Code, Message}.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime, timedelta
from decimal import ROUND_FLOOR, Decimal
from typing import Any

import msgspec
from aiohttp import web

from backends.ark.emulator.billing import BEIJING, Bill, Detail, product_of
from backends.ark.emulator.settings import Billing

_LIMIT_MAX = 300
_DAYS_MAX = 31
_SIGNED = re.compile(
    r"HMAC-SHA256 Credential=(?P<key>[^/,\s]+)/\d{8}/[\w-]+/[\w-]+/request, "
    r"SignedHeaders=[\w;-]+, Signature=[0-9a-f]{64}"
)
_FIELDS = (
    "Time", "ModelName", "Endpoint", "InputTokens", "CacheTokensHit", "OutputTokens",
    "TotalTokens", "ReqCnt", "ImageCount",
)  # fmt: skip


class _No(Exception):
    """An error answer."""

    def __init__(self, status: int, number: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.number, self.code = status, number, code


class ControlPlane:
    """Handlers over one bill. `bill` is asked for anew at every call: the emulator may be reset."""

    def __init__(self, bill: Callable[[], Bill], settings: Billing) -> None:
        self._bill = bill
        self._settings = settings
        self._serial = 0

    def add_to(self, router: web.UrlDispatcher) -> None:
        router.add_post("/", self._handle)
        router.add_get("/", self._handle)

    async def _handle(self, request: web.Request) -> web.Response:
        self._serial += 1
        action, version = request.query.get("Action", ""), request.query.get("Version", "")
        said = {
            "RequestId": f"emulated-{self._serial:08d}",
            "Action": action,
            "Version": version,
            "Region": "cn-beijing",
        }
        try:
            self._check_signed(request)
            answer = self._act(action, version, await _asked(request))
        except _No as no:
            error = {"CodeN": no.number, "Code": no.code, "Message": str(no)}
            return _json({"ResponseMetadata": {**said, "Error": error}}, no.status)
        return _json({"ResponseMetadata": said, "Result": answer})

    def _check_signed(self, request: web.Request) -> None:
        """A signature must be there and have its form; its key must be known, if any is listed."""
        signed = _SIGNED.fullmatch(request.headers.get("Authorization", ""))
        if signed is None or "X-Date" not in request.headers:
            raise _No(401, 100010, "SignatureDoesNotMatch", "The request is not signed.")
        if self._settings.access_keys and signed["key"] not in self._settings.access_keys:
            raise _No(401, 100009, "InvalidAccessKey", "The access key is not known.")

    def _act(self, action: str, version: str, asked: dict[str, Any]) -> dict[str, Any]:
        if (action, version) == ("ListBillDetail", "2022-01-01"):
            rows = [_detail_row(row) for row in self._bill().details(*_span(asked))]
            return _page(asked, rows)
        if (action, version) == ("ListSplitBillDetail", "2022-01-01"):
            return _page(asked, self._split_rows(asked))
        if (action, version) == ("ListBill", "2022-01-01"):
            return _page(asked, self._month(asked))
        if (action, version) == ("QueryBalanceAcct", "2022-01-01"):
            return self._balance()
        if (action, version) == ("GetInferenceUsage", "2024-01-01"):
            return self._usage(asked)
        raise _No(404, 100008, "InvalidActionOrVersion", f"Unknown action {action!r} {version!r}.")

    def _split_rows(self, asked: dict[str, Any]) -> list[dict[str, Any]]:
        if not self._settings.split:
            return []
        rows = []
        for row, endpoint, tokens, amount in self._bill().splits(*_span(asked)):
            share = Decimal(tokens) / row.count
            rows.append(
                {
                    **_detail_row(row),
                    **_money(amount),
                    "Count": _thousands(tokens),
                    "ExpenseTime": _moment(row.item.start_s),
                    "SplitBillDetailId": f"{row.id}-{endpoint}",
                    "SplitItemID": endpoint,
                    "SplitItemName": endpoint,
                    "SplitItemAmount": _thousands(tokens),
                    "SplitItemRatio": f"{share:.6f}",
                }
            )
        wanted = asked.get("SplitItemID")
        return [row for row in rows if not wanted or row["SplitItemID"] == wanted]

    def _month(self, asked: dict[str, Any]) -> list[dict[str, Any]]:
        totals = self._bill().months(*_span({"BillPeriod": asked.get("BillPeriod")}))
        return [
            {
                "BillPeriod": asked["BillPeriod"],
                "Product": product,
                "BillingMode": "2",
                "BillCategoryParent": "consume",
                "OriginalBillAmount": f"{amount:.2f}",
                "DiscountBillAmount": f"{amount:.2f}",
                "PayableAmount": f"{amount:.2f}",
                "Currency": "CNY",
            }
            for product, amount in sorted(totals.items())
        ]

    def _balance(self) -> dict[str, Any]:
        spent = sum((row.amount for row in self._bill().details(0, 2**40)), Decimal(0))
        left = (Decimal(self._settings.balance_cny) - spent).quantize(Decimal("0.01"), ROUND_FLOOR)
        return {
            "AccountID": 2100000001,
            "AvailableBalance": f"{max(left, Decimal(0)):.2f}",
            "CashBalance": f"{left:.2f}",
            "CreditLimit": "0.00",
            "ArrearsBalance": f"{max(-left, Decimal(0)):.2f}",
            "FreezeAmount": "0.00",
        }

    def _usage(self, asked: dict[str, Any]) -> dict[str, Any]:
        start, end = _day(asked, "StartTime"), _day(asked, "EndTime") + timedelta(days=1)
        interval = asked.get("QueryInterval")
        if interval not in ("Hour", "Day"):
            raise _bad("QueryInterval must be Hour or Day")
        if not timedelta() < end - start <= timedelta(days=_DAYS_MAX):
            raise _bad(f"the range is 1 to {_DAYS_MAX} days")
        form = "%Y-%m-%d %H:00:00" if interval == "Hour" else "%Y-%m-%d"
        found: dict[tuple[str, str, str], list[int]] = {}
        for row in self._bill().usage(start.timestamp(), end.timestamp()):
            at = datetime.fromtimestamp(row.start_s, BEIJING).strftime(form)
            sums = found.setdefault((at, row.model, row.endpoint), [0] * 4)
            figures = (row.input_tokens, row.cached_tokens, row.output_tokens, row.requests)
            for i, figure in enumerate(figures):
                sums[i] += figure
        records = [
            [*key, str(i), str(c), str(o), str(i + o), str(n), "0"]
            for key, (i, c, o, n) in sorted(found.items())
        ]
        return {"Fields": list(_FIELDS), "Records": records}


async def _asked(request: web.Request) -> dict[str, Any]:
    """The parameters, from the body or from the query of a GET. Raises _No."""
    if request.method == "GET":
        return {k: v for k, v in request.query.items() if k not in ("Action", "Version")}
    try:
        body = msgspec.json.decode(await request.read() or b"{}")
    except msgspec.DecodeError:
        raise _bad("the body is not JSON") from None
    if not isinstance(body, dict):
        raise _bad("the body must be an object")
    return body


def _span(asked: dict[str, Any]) -> tuple[float, float]:
    """BillPeriod and perhaps ExpenseDate -> [start, end) in seconds since 1970. Raises _No."""
    try:
        month = datetime.strptime(str(asked.get("BillPeriod")), "%Y-%m").replace(tzinfo=BEIJING)
    except ValueError:
        raise _bad("BillPeriod must be a month such as 2026-11") from None
    if asked.get("GroupPeriod", 2) not in (2, "2") or asked.get("GroupTerm", 0) not in (0, "0"):
        raise _bad("the emulator answers GroupPeriod 2 (details) and GroupTerm 0 (items) only")
    if asked.get("ExpenseDate"):
        day = _day(asked, "ExpenseDate")
        if (day.year, day.month) != (month.year, month.month):
            raise _bad("ExpenseDate must be in the BillPeriod")
        return day.timestamp(), (day + timedelta(days=1)).timestamp()
    after = (month + timedelta(days=32)).replace(day=1)
    return month.timestamp(), after.timestamp()


def _page(asked: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    limit, offset = asked.get("Limit"), asked.get("Offset") or 0
    if not isinstance(limit, int) or not 1 <= limit <= _LIMIT_MAX:
        raise _bad(f"Limit is required, 1 to {_LIMIT_MAX}")
    if not isinstance(offset, int) or offset < 0:
        raise _bad("Offset must not be negative")
    if asked.get("Product"):
        rows = [row for row in rows if row["Product"] in asked["Product"]]
    if asked.get("IgnoreZero") == 1:
        rows = [row for row in rows if Decimal(row["PayableAmount"]) != 0]
    return {
        "List": rows[offset : offset + limit],
        "Limit": limit,
        "Offset": offset,
        "Total": len(rows) if asked.get("NeedRecordNum") == 1 else -1,
    }


def _detail_row(row: Detail) -> dict[str, Any]:
    """A row of the bill in the SDK's names; everything is a text."""
    band, start = row.item.band, datetime.fromtimestamp(row.item.start_s, BEIJING)
    factor = {
        "model": band.model,
        "service": band.service,
        "hours": band.hours,
        "input_over": str(band.input_over),
        "output_over": str(band.output_over),
    }
    return {
        "BillPeriod": start.strftime("%Y-%m"),
        "BillID": f"Bill{start:%Y%m}",
        "BillDetailId": row.id,
        "BillCategory": "consume-use",
        "BillingMode": "2",
        "Product": product_of(band.model),
        "ConfigName": f"{band.model} {row.item.element}",
        "ConfigurationCode": band.model,
        "Element": row.item.element,
        "ElementCode": row.item.element,
        "Factor": msgspec.json.encode(factor).decode(),
        "Count": _thousands(row.count),
        "Unit": "thousand tokens",
        "Price": str(band.price(row.item.element)),
        "PriceUnit": "CNY per thousand tokens",
        "ExpenseDate": start.strftime("%Y-%m-%d"),
        "ExpenseBeginTime": _moment(row.item.start_s),
        "ExpenseEndTime": _moment(row.item.start_s + row.item.width_s),
        "Project": "default",
        "Currency": "CNY",
        **_money(row.amount),
    }


def _moment(at_s: int) -> str:
    return datetime.fromtimestamp(at_s, BEIJING).strftime("%Y-%m-%d %H:%M:%S")


def _money(amount: Decimal) -> dict[str, str]:
    """Without discounts the list price is what is payable."""
    text, nothing = f"{amount:.6f}", "0.000000"
    return {
        "OriginalBillAmount": text,
        "PreferentialBillAmount": nothing,
        "DiscountBillAmount": text,
        "CouponAmount": nothing,
        "RoundAmount": nothing,
        "DeductionCount": "0",
        "PayableAmount": text,
    }


def _thousands(tokens: int) -> str:
    return str(Decimal(tokens) / 1000)


def _day(asked: dict[str, Any], name: str) -> datetime:
    try:
        return datetime.strptime(str(asked.get(name)), "%Y-%m-%d").replace(tzinfo=BEIJING)
    except ValueError:
        raise _bad(f"{name} must be a day such as 2026-11-25") from None


def _bad(message: str) -> _No:
    return _No(400, 100004, "InvalidParameter", f"{message}.")


def _json(value: object, status: int = 200) -> web.Response:
    return web.Response(
        status=status, body=msgspec.json.encode(value), content_type="application/json"
    )
