"""Ark's control plane: what was billed and what was used, through the vendor's SDK.

The SDK is synchronous and brings its own HTTP client, so every call runs in a thread, and only a
command that an operator starts imports this module: no request ever waits for it, and it carries
no text of anybody. It needs `volcenginesdk-billing` (the extra `reconcile`).

    bill     ListBillDetail of a day       -> rows by period of five minutes, band and kind of token
    splits   ListSplitBillDetail of a day  -> the same by endpoint
    usage    GetInferenceUsage of a day    -> tokens by hour, model and endpoint
    balance  QueryBalanceAcct

What a row of a real Ark bill says in its texts is not published. Everything that this module takes
for granted of them stands in `read_row` and `read_usage`; what they cannot read is not dropped but
counted under its product.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from datetime import date, datetime
from decimal import Decimal, InvalidOperation
from functools import partial
from typing import Any

import msgspec
import volcenginesdkbilling as billing
import volcenginesdkcore as core
from volcenginesdkcore.rest import ApiException

PAGE_ROWS = 300  # the most that the API gives at once
ROWS_MAX = 5_000_000  # a day has not that many: a server that never ends its pages is at fault
_ARK, _ARK_VERSION = "ark", "2024-01-01"


ELEMENTS = ("input", "cached_input", "output")


class ControlError(Exception):
    """The control plane said no, or cannot be reached. `code` is Ark's own, where it gave one."""

    def __init__(self, action: str, message: str, code: str = "") -> None:
        super().__init__(f"{action}: {message}")
        self.code = code


class BillRow(msgspec.Struct, frozen=True, kw_only=True):
    """One item of the bill. Money in CNY: by the list price, and what is really payable.

    start_s:     of the period, since 1970
    input_over, output_over: tokens above which the band begins
    endpoint:    of a row of the split bill; "": the whole item, or a Model ID's own endpoint
    """

    id: str
    start_s: int
    model: str
    service: str
    element: str  # input | cached_input | output
    input_over: int
    output_over: int
    tokens: int
    list_cny: Decimal
    payable_cny: Decimal
    endpoint: str = ""


class Bill(msgspec.Struct, kw_only=True):
    """Rows that are tokens of models, and what everything else costs, by product."""

    rows: list[BillRow] = []
    others: dict[str, Decimal] = {}


class UsageRow(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of one hour, model and endpoint. input_tokens includes those from the cache."""

    start_s: int
    model: str
    endpoint: str
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    requests: int


class ArkControl:
    """One account's control plane. Use it from one event loop; it keeps no state between calls."""

    def __init__(
        self,
        *,
        access_key: str,
        secret_key: str,
        region: str = "cn-beijing",
        host: str | None = None,
    ) -> None:
        """host: where to ask instead of the vendor's own address, such as http://127.0.0.1:18080.
        Raises ValueError without keys."""
        if not access_key or not secret_key:
            raise ValueError("the control plane needs an access key and a secret key")
        configuration = core.Configuration()
        configuration.ak = access_key
        configuration.sk = secret_key
        configuration.region = region
        if host is not None:
            scheme, _, rest = host.rpartition("://")
            configuration.host = rest
            configuration.scheme = scheme or "https"
        # not the process-wide default: two accounts may be asked from one process
        client = core.ApiClient(configuration)
        self._billing = billing.BILLINGApi(client)
        self._universal = core.UniversalApi(client)

    async def bill(self, day: date) -> Bill:
        """Everything that was billed for a day in Beijing. Raises ControlError."""
        return await self._pages("ListBillDetail", day, self._billing.list_bill_detail,
                                 billing.ListBillDetailRequest)  # fmt: skip

    async def splits(self, day: date) -> Bill:
        """The same by endpoint; empty when splitting is not switched on, or not done yet."""
        return await self._pages("ListSplitBillDetail", day, self._billing.list_split_bill_detail,
                                 billing.ListSplitBillDetailRequest)  # fmt: skip

    async def usage(self, day: date) -> list[UsageRow]:
        """What Ark counted in a day, by the hour. Raises ControlError."""
        info = core.UniversalInfo(
            method="POST", service=_ARK, version=_ARK_VERSION, action="GetInferenceUsage",
            content_type="application/json",
        )  # fmt: skip
        asked = {
            "QueryInterval": "Hour",
            "StartTime": day.isoformat(),
            "EndTime": day.isoformat(),
            "ShowWindowDetail": True,
        }
        answer = await _call("GetInferenceUsage", lambda: self._universal.do_call(info, asked))
        return list(read_usage(answer))

    async def balance(self) -> Decimal:
        """What the account has left, in CNY. Raises ControlError."""
        request = billing.QueryBalanceAcctRequest()
        answer = await _call("QueryBalanceAcct", lambda: self._billing.query_balance_acct(request))
        return _decimal(answer.available_balance)

    async def _pages(
        self, action: str, day: date, call: Callable[[Any], Any], kind: Callable[..., Any]
    ) -> Bill:
        found = Bill(rows=[], others={})
        seen: set[str] = set()
        for offset in range(0, ROWS_MAX, PAGE_ROWS):
            request = kind(
                bill_period=f"{day:%Y-%m}",
                expense_date=day.isoformat(),
                group_period=2,
                limit=PAGE_ROWS,
                offset=offset,
            )
            page = (await _call(action, partial(call, request))).list or []
            for row in page:
                if getattr(row, "expense_date", None) == day.isoformat():
                    _take(found, row, seen)
            if len(page) < PAGE_ROWS:
                return found
        raise ControlError(action, f"more than {ROWS_MAX} rows for one day")


def _take(found: Bill, row: Any, seen: set[str]) -> None:
    """A row into the bill, once: a page may repeat one when rows arrive while it is read."""
    name = getattr(row, "split_bill_detail_id", None) or row.bill_detail_id or ""
    if name in seen:
        return
    seen.add(name)
    item = read_row(row)
    if item is not None:
        found.rows.append(item)
        return
    product = str(row.product or "unknown")
    found.others[product] = found.others.get(product, Decimal(0)) + _decimal(row.payable_amount)


def read_row(row: Any) -> BillRow | None:
    """What a row of either bill says of tokens; None: it is about something else.

    Taken for granted: Factor is JSON with model, service and the thresholds of the band in thousand
    tokens; ElementCode names the kind of tokens; Count is in thousand tokens.
    """
    try:
        factor = msgspec.json.decode(row.factor or "", type=_Factor)
        # a row of the split bill has one time where the other has two
        time = getattr(row, "expense_begin_time", None) or getattr(row, "expense_time", None) or ""
        start_s, element = _beijing(time), str(row.element_code)
        if element not in ELEMENTS:
            return None
        return BillRow(
            id=str(row.bill_detail_id),
            start_s=start_s,
            model=factor.model,
            service=factor.service,
            element=element,
            input_over=_tokens(factor.input_over),
            output_over=_tokens(factor.output_over),
            tokens=_tokens(row.count),
            list_cny=_decimal(row.original_bill_amount),
            payable_cny=_decimal(row.payable_amount),
            endpoint=_endpoint(getattr(row, "split_item_id", None)),
        )
    except (msgspec.DecodeError, ValueError):
        return None


def read_usage(answer: Any) -> Iterator[UsageRow]:
    """Records of GetInferenceUsage, which stand under the names in Fields. Raises ControlError for
    an answer in another form."""
    try:
        fields = list(answer["Fields"])
        for record in answer["Records"]:
            row = dict(zip(fields, record, strict=True)) if isinstance(record, list) else record
            yield UsageRow(
                start_s=_beijing(row["Time"]),
                model=row["ModelName"],
                endpoint=_endpoint(row["Endpoint"]),
                input_tokens=int(row["InputTokens"]),
                cached_tokens=int(row["CacheTokensHit"]),
                output_tokens=int(row["OutputTokens"]),
                requests=int(row["ReqCnt"]),
            )
    except (KeyError, TypeError, ValueError) as error:
        raise ControlError("GetInferenceUsage", f"an answer in another form: {error!r}") from None


class _Factor(msgspec.Struct):
    model: str
    service: str
    input_over: str
    output_over: str


async def _call(action: str, call: Callable[[], Any]) -> Any:
    """One synchronous call, in a thread. Raises ControlError; the SDK's own text may hold headers
    and is not passed on."""
    try:
        return await asyncio.to_thread(call)
    except ApiException as error:
        raise _refused(action, error) from None
    # The SDK lets through what urllib3, json and its own models raise; the command ends with it.
    except Exception as error:
        raise ControlError(action, f"cannot be asked ({type(error).__name__})") from None


def _refused(action: str, error: ApiException) -> ControlError:
    try:
        said = msgspec.json.decode(error.body or b"", type=_Refusal).ResponseMetadata.Error
    except msgspec.DecodeError:
        return ControlError(action, f"HTTP {error.status}")
    return ControlError(action, f"{said.Code}: {said.Message}", said.Code)


class _Said(msgspec.Struct):
    Code: str = ""
    Message: str = ""


class _Metadata(msgspec.Struct):
    Error: _Said


class _Refusal(msgspec.Struct):
    ResponseMetadata: _Metadata


def _endpoint(name: str | None) -> str:
    """A custom endpoint; the one behind a Model ID (ep-m-...) is nobody's choice and counts as
    none."""
    return "" if not name or name.startswith("ep-m-") else name


def _beijing(text: str) -> int:
    """A moment as the bill writes it -> seconds since 1970. Raises ValueError."""
    return int(datetime.strptime(text + "+0800", "%Y-%m-%d %H:%M:%S%z").timestamp())


def _tokens(thousands: Any) -> int:
    tokens = 1000 * _decimal(thousands)
    if tokens != int(tokens):
        raise ValueError(f"{thousands!r} thousand tokens are not a whole number of tokens")
    return int(tokens)


def _decimal(text: Any) -> Decimal:
    try:
        number = Decimal(str(text))
    except InvalidOperation:
        raise ValueError(f"{text!r} is not a number") from None
    if not number.is_finite():
        raise ValueError(f"{text!r} is not a number")
    return number
