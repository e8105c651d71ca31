"""Does a gateway keep its budget? Aim this at any OpenAI-compatible one and see.

    python -m tests.bench.overspend --target http://127.0.0.1:8080 --token T --model M \
        --budget-cny 0.5

It sends a burst of chat requests, more than the budget can pay: many at once, some streamed, some
whose client leaves in the middle. That is how budgets leak: checked before and added to after, so a
burst passes the check together; booked at the end of an answer that nobody waits for. Then it adds
up.

What was spent is read, in this order of trust:
  Yuzui   --admin URL --admin-token T --scope tenant:NAME: its budget and rows, to the nano-CNY
  others  --spend-url URL --spend-field a.b.c: the target's own figure, before and after
  always  --price-in, --price-out (CNY per million tokens) and --fee: what the usage figures of the
          answers come to; of answers that were left, what had arrived: a lower bound

It reports overspend (spent above the budget) and lost rows (answers that the books do not know),
ends with one JSON line, and exits with 1 when one of them is not 0. Bounded in count and time.
Without --allow-remote only this machine is a target: it spends money on purpose.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from decimal import Decimal, InvalidOperation
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from gateway.commands.tables import table

NANO = 10**9
REQUESTS_MAX = 100_000
SECONDS_MAX = 3_600.0
REQUEST_TIMEOUT_S = 60.0
SETTLE_S = 15.0  # for holds of clients that left to be settled
REFUSALS = (402, 403, 429)  # how gateways say that there is no money


@dataclass(frozen=True, kw_only=True)
class Aim:
    """What is attacked, and how hard. Shares are 0 to 1, prices nano-CNY per token."""

    target: str
    token: str
    model: str
    budget_nano: int
    requests: int = 300
    concurrency: int = 50
    seconds: float = 60.0
    streams: float = 0.5
    leavers: float = 0.3
    prompt_words: int = 200
    output_tokens: int = 64
    seed: int = 0
    price_in_nano: int = 0
    price_out_nano: int = 0
    fee_nano: int = 0
    admin: str | None = None
    admin_token: str = ""
    scope: str = ""
    spend_url: str | None = None
    spend_field: str = ""
    spend_token: str = ""


@dataclass(kw_only=True)
class Found:
    """The result. Money in nano-CNY; None: nobody told it.

    own_nano: what the target says it spent meanwhile.  usage_nano: by the answers' usage figures
    lost_rows: answered or left requests that its books do not know (Yuzui alone tells)
    unbooked_nano: what the usage figures come to above what the target says
    """

    target: str
    sent: int = 0
    answered: int = 0
    refused: int = 0
    left: int = 0
    failed: int = 0
    seconds: float = 0.0
    budget_nano: int = 0
    own_nano: int | None = None
    usage_nano: int = 0
    overspend_nano: int = 0
    lost_rows: int | None = None
    unbooked_nano: int | None = None
    ids: set[str] = field(default_factory=set)
    trouble: dict[str, int] = field(default_factory=dict)

    @property
    def kept(self) -> bool:
        return not self.overspend_nano and not self.lost_rows


async def attack(aim: Aim) -> Found:
    """Sends the burst, waits for the books to settle, adds up."""
    found = Found(target=aim.target, budget_nano=aim.budget_nano)
    timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as http:
        before = await _own_spend(http, aim)
        began = time.monotonic()
        numbers = iter(range(aim.requests))
        callers = [_caller(http, aim, found, numbers, began) for _ in range(aim.concurrency)]
        await asyncio.gather(*callers)
        found.seconds = round(time.monotonic() - began, 3)
        await _settled(http, aim)
        after = await _own_spend(http, aim)
        if before is not None and after is not None:
            found.own_nano = after - before
            found.unbooked_nano = max(0, found.usage_nano - found.own_nano)
        if aim.admin is not None:
            found.lost_rows = await _lost_rows(http, aim, found)
    spent = max(found.usage_nano, found.own_nano or 0)
    if aim.admin is not None and found.own_nano is not None:
        spent = found.own_nano  # exact; a local answer has usage and no price per token
    found.overspend_nano = max(0, spent - aim.budget_nano)
    return found


# ------------------------------------------------------------------ the burst


async def _caller(
    http: aiohttp.ClientSession, aim: Aim, found: Found, numbers: Any, began: float
) -> None:
    for number in numbers:
        if time.monotonic() - began > aim.seconds:
            return
        rng = random.Random(aim.seed * REQUESTS_MAX + number)
        found.sent += 1
        try:
            await _ask(http, aim, found, rng)
        except (aiohttp.ClientError, TimeoutError) as error:
            found.failed += 1
            name = type(error).__name__
            found.trouble[name] = found.trouble.get(name, 0) + 1


async def _ask(http: aiohttp.ClientSession, aim: Aim, found: Found, rng: random.Random) -> None:
    stream, leaves = rng.random() < aim.streams, rng.random() < aim.leavers
    text = " ".join(
        rng.choice(("river", "levee", "flood", "plain")) for _ in range(aim.prompt_words)
    )
    body: dict[str, Any] = {
        "model": aim.model,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": aim.output_tokens,
    }
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    headers = {"Authorization": f"Bearer {aim.token}"}
    url = aim.target.rstrip("/") + "/v1/chat/completions"
    if leaves and not stream:
        await _leave_unanswered(http, url, body, headers, rng, found)
        return
    async with http.post(url, json=body, headers=headers) as response:
        if response.status != 200:
            found.refused += response.status in REFUSALS
            found.failed += response.status not in REFUSALS
            if response.status not in REFUSALS:
                name = f"HTTP {response.status}"
                found.trouble[name] = found.trouble.get(name, 0) + 1
            return
        _note_id(found, response)
        if not stream:
            found.answered += 1
            found.usage_nano += _price(aim, (await response.json()).get("usage"))
            return
        await _read_stream(response, aim, found, leave_after=rng.randrange(1, 6) if leaves else 0)


async def _leave_unanswered(
    http: aiohttp.ClientSession,
    url: str,
    body: dict[str, Any],
    headers: dict[str, str],
    rng: random.Random,
    found: Found,
) -> None:
    """A plain request whose client hangs up while it waits. Nobody knows what it cost."""
    try:
        async with asyncio.timeout(rng.uniform(0.001, 0.08)):
            async with http.post(url, json=body, headers=headers) as response:
                found.refused += response.status in REFUSALS
                found.answered += response.status == 200
                if response.status == 200:
                    _note_id(found, response)
                await response.read()
    except TimeoutError:
        found.left += 1


async def _read_stream(
    response: aiohttp.ClientResponse, aim: Aim, found: Found, *, leave_after: int
) -> None:
    """leave_after: chunks after which the client hangs up; 0: it stays to the end."""
    usage, chunks = None, 0
    async for line in response.content:
        if not line.startswith(b"data: {"):
            continue
        chunks += 1
        usage = json.loads(line[6:]).get("usage") or usage
        if leave_after and chunks >= leave_after:
            response.close()
            found.left += 1
            least = {"prompt_tokens": 0, "completion_tokens": max(0, chunks - 1)}
            found.usage_nano += _price(aim, usage or least)
            return
    found.answered += 1
    found.usage_nano += _price(aim, usage)


def _note_id(found: Found, response: aiohttp.ClientResponse) -> None:
    if name := response.headers.get("x-yuzui-request-id"):
        found.ids.add(name)


def _price(aim: Aim, usage: dict[str, Any] | None) -> int:
    if not usage:
        return aim.fee_nano
    tokens_in, tokens_out = usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0
    return aim.fee_nano + tokens_in * aim.price_in_nano + tokens_out * aim.price_out_nano


# ------------------------------------------------------------------ what the target says


async def _own_spend(http: aiohttp.ClientSession, aim: Aim) -> int | None:
    """Nano-CNY that the target says it has spent so far; None when it was not told how to ask."""
    if aim.admin is not None:
        for budget in await _admin(http, aim, "/admin/budgets"):
            if budget["scope"] == aim.scope:
                return int(budget["posted_nano"])
        raise LookupError(f"the target has no budget {aim.scope!r}")
    if aim.spend_url is None:
        return None
    headers = {"Authorization": f"Bearer {aim.spend_token or aim.token}"}
    async with http.get(aim.spend_url, headers=headers) as response:
        value: Any = json.loads(await response.text(), parse_float=Decimal)
    for part in aim.spend_field.split("."):
        value = value[int(part)] if isinstance(value, list) else value[part]
    return int(Decimal(value) * NANO)


async def _settled(http: aiohttp.ClientSession, aim: Aim) -> None:
    """Waits until nothing is held any more, or for others until the figure stands still."""
    last, deadline = None, time.monotonic() + SETTLE_S
    while time.monotonic() < deadline:
        if aim.admin is not None:
            if not (await _admin(http, aim, "/admin/till"))["held_nano"]:
                return
        else:
            now = await _own_spend(http, aim)
            if now is None or now == last:
                return
            last = now
        await asyncio.sleep(0.5)


async def _lost_rows(http: aiohttp.ClientSession, aim: Aim, found: Found) -> int:
    rows = await _admin(http, aim, "/admin/rows")
    return len(found.ids - {row["request_id"] for row in rows})


async def _admin(http: aiohttp.ClientSession, aim: Aim, path: str) -> Any:
    headers = {"Authorization": f"Bearer {aim.admin_token}"}
    async with http.get(f"{(aim.admin or '').rstrip('/')}{path}", headers=headers) as response:
        if response.status != 200:
            raise LookupError(f"{path} answers {response.status}: {(await response.text())[:200]}")
        return await response.json()


# ------------------------------------------------------------------ the command line


def main(argv: Sequence[str] | None = None) -> int:
    aim = _aim(argv)
    try:
        found = asyncio.run(attack(aim))
    except (LookupError, aiohttp.ClientError, OSError) as error:
        print(f"overspend: {error}", file=sys.stderr)
        return 2
    print(as_table(found))
    plain = {name: value for name, value in asdict(found).items() if name != "ids"}
    print(json.dumps({"overspend": plain["overspend_nano"], **plain}))
    return 0 if found.kept else 1


def as_table(found: Found) -> str:
    rows = [
        ["requests sent", str(found.sent)],
        ["answered", str(found.answered)],
        ["refused (402, 403, 429)", str(found.refused)],
        ["clients that left", str(found.left)],
        ["failed", f"{found.failed} {found.trouble or ''}".strip()],
        ["budget CNY", _cny(found.budget_nano)],
        ["spent CNY, as the target says", _cny(found.own_nano)],
        ["spent CNY, by usage figures (at least)", _cny(found.usage_nano)],
        ["overspend CNY", _cny(found.overspend_nano)],
        ["lost rows", "unknown" if found.lost_rows is None else str(found.lost_rows)],
        ["not booked CNY (at least)", _cny(found.unbooked_nano)],
        ["seconds", f"{found.seconds:.1f}"],
    ]
    return table([found.target, ""], rows)


def _cny(nano: int | None) -> str:
    return "unknown" if nano is None else f"{Decimal(nano) / NANO:f}"


def _aim(argv: Sequence[str] | None) -> Aim:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.overspend",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--target", required=True, metavar="URL", help="the gateway, without /v1")
    add("--token", required=True, metavar="T", help="bearer token or key of a caller")
    add("--model", required=True, metavar="M")
    add("--budget-cny", required=True, metavar="X", help="what the target allows this caller")
    add("--requests", type=int, default=300, metavar="N", help=f"at most {REQUESTS_MAX} (300)")
    add("--concurrency", type=int, default=50, metavar="N", help="at once (50)")
    add("--seconds", type=float, default=60.0, metavar="S", help="no new request after it (60)")
    add("--streams", type=float, default=0.5, metavar="SHARE", help="of requests (0.5)")
    add("--leavers", type=float, default=0.3, metavar="SHARE", help="clients that leave (0.3)")
    add("--prompt-words", type=int, default=200, metavar="N")
    add("--output-tokens", type=int, default=64, metavar="N")
    add("--seed", type=int, default=0, metavar="N")
    add("--price-in", default="0", metavar="CNY", help="per million input tokens")
    add("--price-out", default="0", metavar="CNY", help="per million output tokens")
    add("--fee", default="0", metavar="CNY", help="per request")
    add("--admin", metavar="URL", help="Yuzui's admin port")
    add("--admin-token", default="", metavar="T")
    add("--scope", default="", metavar="KIND:NAME", help="of Yuzui's budget, such as tenant:demo")
    add("--spend-url", metavar="URL", help="where another gateway says what was spent (JSON)")
    add("--spend-field", default="spend", metavar="A.B", help="the number in it, in CNY (spend)")
    add("--spend-token", default="", metavar="T", help="bearer token for it (that of the caller)")
    add("--allow-remote", action="store_true", help="a target beyond this machine: costs money")
    args = vars(parser.parse_args(argv))
    try:
        args["budget_nano"] = _money(args.pop("budget_cny"), "--budget-cny", NANO)
        args["fee_nano"] = _money(args.pop("fee"), "--fee", NANO)
        args["price_in_nano"] = _money(args.pop("price_in"), "--price-in", 1_000)
        args["price_out_nano"] = _money(args.pop("price_out"), "--price-out", 1_000)
        _check(args, allow_remote=args.pop("allow_remote"))
    except ValueError as error:
        parser.error(str(error))
    return Aim(**args)


def _money(text: str, name: str, unit: int) -> int:
    try:
        value = Decimal(text) * unit
    except InvalidOperation:
        raise ValueError(f"{name} {text!r} is not an amount") from None
    if value < 0 or value != int(value):
        raise ValueError(f"{name} {text!r} is not a whole number of nano-CNY")
    return int(value)


def _check(args: dict[str, Any], *, allow_remote: bool) -> None:
    """Raises ValueError that names the option."""
    if not 1 <= args["requests"] <= REQUESTS_MAX:
        raise ValueError(f"--requests is 1 to {REQUESTS_MAX}")
    if not 1 <= args["concurrency"] <= 1_000 or not 0 < args["seconds"] <= SECONDS_MAX:
        raise ValueError(f"--concurrency is 1 to 1000, --seconds up to {SECONDS_MAX:.0f}")
    if not 0 <= args["streams"] <= 1 or not 0 <= args["leavers"] <= 1:
        raise ValueError("--streams and --leavers are shares from 0 to 1")
    if args["admin"] is not None and not args["scope"]:
        raise ValueError("--admin needs --scope")
    for name in ("target", "admin", "spend_url"):
        url = args[name]
        if url is not None and not allow_remote and not _is_here(urlsplit(url).hostname or ""):
            raise ValueError(
                f"--{name.replace('_', '-')} {url} is not this machine; --allow-remote "
                "if its owner agrees: this spends a budget on purpose"
            )


def _is_here(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


if __name__ == "__main__":
    sys.exit(main())
