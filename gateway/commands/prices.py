"""`yuzui prices`: check, compare and show price cards, and what a request costs by them."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import msgspec

from gateway.commands.options import add_config, exit_code, load_config
from gateway.commands.tables import table
from gateway.config import Config
from gateway.gateway import rules_of, unpriced, with_endpoints
from gateway.prices.cards import SHIPPED, PriceCardError, load_book, load_card, read_card
from gateway.reports.reconcile import BEIJING
from policies.budget import cny
from policies.pictures import cloud_image_tokens_likely, cloud_image_tokens_max
from policies.price import (
    DAY_MIN,
    NO_CARD,
    TOKENS_MAX,
    Hours,
    ModelPrice,
    PriceBook,
    PriceCard,
    Rate,
    Unpriced,
    cost,
    quote,
)
from policies.types import Facts, ImageSize, Label, Sensitivity, Usage

_EPILOG = """\
examples
  yuzui prices check                               the cards that are in use
  yuzui prices check my-card.yaml                  one that is to be used
  yuzui prices diff ark-2026-09 ark-2026-10        by version, or by file
  yuzui prices show doubao-seed-1-6-vision
  yuzui prices quote glm-4-7 --prompt 32000 --output 201
  yuzui prices quote doubao-seed-1-8 --image 1920x1080 --prompt 300 --output 150

Cards of one's own: `prices: {cards: [FILE or FOLDER]}` in yuzui.yaml.
"""


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="yuzui prices",
        description="Price cards say what Ark charges for a token, from which day on. Requests are "
        "held and booked by them; a model that no card prices is refused.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    act = parser.add_subparsers(dest="act", required=True, metavar="check | diff | show | quote")
    check = act.add_parser("check", help="is a card complete, exact and without contradiction?")
    check.add_argument("cards", nargs="*", type=Path, metavar="FILE", help="(default: in use)")
    diff = act.add_parser("diff", help="what changed from one card to another")
    diff.add_argument("old", metavar="A", help="a version, or a file")
    diff.add_argument("new", metavar="B")
    show = act.add_parser("show", help="every price of a model, and where it was read")
    show.add_argument("model")
    ask = act.add_parser("quote", help="what a request may cost at most, and what it will")
    _quote_options(ask)
    for each in (show, ask):
        each.add_argument("--at", metavar="MOMENT", help="2026-10-05 or 2026-10-05T09:30 (now)")
    for each in (check, diff, show, ask):
        add_config(each)
        each.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(argv)
    config = load_config(parser, args)
    try:
        code, found, text = _ACTS[args.act](args, config)
    except (PriceCardError, Unpriced, ValueError) as error:
        print(f"yuzui prices: {error.args[0]}", file=sys.stderr)
        return exit_code(error)
    if args.json:
        print(msgspec.json.format(msgspec.json.encode(found), indent=2).decode())
    else:
        print(text)
    return code


def _quote_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model")
    add("--prompt", type=_count, default=0, metavar="N", help="tokens of text")
    add("--cached", type=_count, default=0, metavar="N", help="of them, from the cache")
    add("--output", type=_count, default=0, metavar="N", help="tokens of the answer")
    add("--image", type=_size, action="append", default=[], metavar="WxH", help="a picture")
    add("--rate", type=Rate, choices=list(Rate), default=Rate.ONLINE, help="(default: online)")


def _count(text: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", text) or int(text) > TOKENS_MAX:
        wanted = f"a number of tokens from 0 to {TOKENS_MAX}"
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is not {wanted}")
    return int(text)


def _size(text: str) -> ImageSize:
    found = re.fullmatch("([1-9][0-9]{0,6})x([1-9][0-9]{0,6})", text.lower())
    if found is None:
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is not a size such as 1280x720")
    return ImageSize(width=int(found[1]), height=int(found[2]))


# ------------------------------------------------------------ check


def _check(args: argparse.Namespace, config: Config) -> tuple[int, Any, str]:
    files = args.cards or config.prices.cards or SHIPPED
    found, lines = [], []
    for path in files:
        for file in sorted(path.glob("*.yaml")) if path.is_dir() else [path]:
            card, problems = read_card(file)
            notes = [] if card is None else list(_remarks(card))
            found.append({"file": str(file), "problems": problems, "notes": notes})
            lines += problems
            if card is not None and not problems:
                lines.append(f"{file}: {card.version}, {len(card.models)} models, {_valid(card)}")
                lines += [f"  {note}" for note in notes]
    bad = any(each["problems"] for each in found)
    if not bad:
        book = load_book(files)  # cards that are right alone may contradict each other
        if not args.cards:
            missing = list(_unpriced(config, book))
            lines += missing
            bad = bool(missing)
            found.append({"file": "yuzui.yaml", "problems": missing, "notes": []})
    return int(bad), found, "\n".join(lines)


def _unpriced(config: Config, book: PriceBook) -> Iterator[str]:
    """Cloud models of the settings that no card prices now."""
    rules = rules_of(config, book, int(time.time() * 1000))
    for model in unpriced(rules):
        yield f"{model} (models.*.cloud) has no price in {rules.prices.version}: it is refused"


def _remarks(card: PriceCard) -> Iterator[str]:
    """What is allowed, and worth knowing."""
    for name, price in sorted(card.models.items()):
        if any(each.hours is None for each in price.lists):
            yield f"{name}: the hours of a price are unknown; the dearer is held and charged"
        if not price.sources:
            yield f"{name}: no source is named"


def _valid(card: PriceCard) -> str:
    start = f"valid from {_day(card.from_ms)}" if card.from_ms > 0 else "always valid"
    return start if card.to_ms is None else f"{start} to {_day(card.to_ms - 1)}"


def _day(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).astimezone(BEIJING).date().isoformat()


# ------------------------------------------------------------ diff


def _diff(args: argparse.Namespace, config: Config) -> tuple[int, Any, str]:
    book = load_book(config.prices.cards)
    old, new = (_card(name, book) for name in (args.old, args.new))
    rows = list(changes(old, new))
    if not rows:
        return 0, rows, f"{old.version} and {new.version} have the same prices"
    head = ["model", "what", old.version, new.version]
    text = table(
        head, [[row["model"], row["what"], row["old"], row["new"]] for row in rows], left=4
    )
    return 0, rows, text


def _card(name: str, book: PriceBook) -> PriceCard:
    known = book.version(name)
    if known is not None:
        return known
    if not Path(name).is_file():
        versions = ", ".join(card.version for card in book.cards)
        raise ValueError(f"{name!r} is neither a file nor a version in use ({versions})")
    return load_card(Path(name))


def changes(old: PriceCard, new: PriceCard) -> Iterator[dict[str, str]]:
    """Everything by which two cards charge differently, one price at a time."""
    for model in sorted(old.models.keys() | new.models.keys()):
        before, after = old.models.get(model), new.models.get(model)
        if before is None or after is None:
            words = ("-", "added") if before is None else ("priced", "removed")
            yield {"model": model, "what": "model", "old": words[0], "new": words[1]}
            continue
        was, now = _figures(before), _figures(after)
        for what in [*was, *(name for name in now if name not in was)]:
            if was.get(what) != now.get(what):
                yield {
                    "model": model,
                    "what": what,
                    "old": was.get(what, "-"),
                    "new": now.get(what, "-"),
                }


def _figures(price: ModelPrice) -> dict[str, str]:
    found = {"image rule": price.image_family, "fee per request": cny(price.request_nano)}
    for row in _tiers(price):
        name = f"{row['rate']} {row['tier']}" + (f" {row['hours']}" if row["hours"] else "")
        for kind in ("input", "cached", "output"):
            found[f"{name}, {kind}"] = row[kind]
        found[f"{name}, band"] = f"{row['prompt_to']} / {row['output_to']}"
    return found


# ------------------------------------------------------------ show


def _show(args: argparse.Namespace, config: Config) -> tuple[int, Any, str]:
    card = _card_at(args, config)
    price = card.price_of(args.model)
    rows = _tiers(price)
    names = ("rate", "hours", "tier", "prompt_to", "output_to", "input", "cached", "output")
    head = ["rate", "hours", "tier", "prompt to", "output to", "input", "cached", "output"]
    lines = [f"{args.model} by {card.version} ({_valid(card)}), CNY per million tokens", ""]
    lines.append(table(head, [[row[name] or "-" for name in names] for row in rows], left=3))
    if price.request_nano:
        lines.append(f"and {cny(price.request_nano)} CNY for each request")
    lines += ["", f"pictures  {price.image_family}", f"sources   {', '.join(price.sources) or '-'}"]
    if price.note:
        lines.append(f"note      {price.note}")
    found = {
        "model": args.model,
        "card": card.version,
        "tiers": rows,
        "request_cny": cny(price.request_nano),
        "image_family": price.image_family,
        "sources": price.sources,
        "note": price.note,
    }
    return 0, found, "\n".join(lines)


def _tiers(price: ModelPrice) -> list[dict[str, str]]:
    return [
        {
            "rate": each.rate.value,
            "hours": _hours(each.hours),
            "tier": tier.name,
            "prompt_to": str(tier.prompt_tokens_to or ""),
            "output_to": str(tier.output_tokens_to or ""),
            "input": _million(tier.input_nano),
            "cached": _million(tier.cache_nano),
            "output": _million(tier.output_nano),
        }
        for each in price.all_lists()
        for tier in each.tiers
    ]


def _hours(hours: tuple[Hours, ...] | None) -> str:
    if hours is None:
        return "unknown"
    return ", ".join(f"{_clock(each.from_min)}-{_clock(each.to_min)}" for each in hours)


def _clock(minute: int) -> str:
    return "24:00" if minute == DAY_MIN else f"{minute // 60:02d}:{minute % 60:02d}"


def _million(nano: int) -> str:
    """Nano-CNY per token as CNY per million tokens."""
    return f"{nano // 1000}.{nano % 1000:03d}"


def _card_at(args: argparse.Namespace, config: Config) -> PriceCard:
    """The card of a moment that prices the model, with the endpoints of the settings.

    Raises ValueError that says what is in force then, and when the model has a price.
    """
    book = load_book(config.prices.cards)
    at_ms = int(_moment(args.at).timestamp() * 1000)
    card = with_endpoints(book.at(at_ms), config.ark.endpoints)
    try:
        card.price_of(args.model)
    except Unpriced:
        raise ValueError(_why_unpriced(args.model, book, at_ms, config)) from None
    return card


def _why_unpriced(model: str, book: PriceBook, at_ms: int, config: Config) -> str:
    cards = [with_endpoints(card, config.ark.endpoints) for card in book.cards]
    pricing = [card for card in cards if _prices(card, model)]
    if not pricing:
        names = sorted({name for card in cards for name in card.models})
        begun = [name for name in names if model and name.startswith(model)]
        near = begun[:3] or difflib.get_close_matches(model, names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "`yuzui prices check` lists cards"
        return f"no card has a price for the model {model!r}; {hint}"
    in_force = book.at(at_ms)
    day = _day(at_ms)
    spans = " and ".join(f"{card.version} ({_valid(card)})" for card in pricing)
    if in_force is NO_CARD:
        return f"no price was in force on {day}; {model!r} has one in {spans}"
    return f"{model!r} had no price on {day} (by {in_force.version}); it has one in {spans}"


def _prices(card: PriceCard, model: str) -> bool:
    try:
        card.price_of(model)
    except Unpriced:
        return False
    return True


def _moment(text: str | None) -> datetime:
    if text is None:
        return datetime.now(UTC)
    try:
        if len(text) == len("2026-10-05"):
            day = date.fromisoformat(text)
            return datetime(day.year, day.month, day.day, 12, tzinfo=BEIJING)
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=BEIJING)
        return moment.astimezone(BEIJING)  # which the very first and last moments have not
    except (ValueError, OverflowError):
        raise ValueError(f"--at {text!r} is not a moment such as 2026-10-05T09:30") from None


# ------------------------------------------------------------ quote


def _quote(args: argparse.Namespace, config: Config) -> tuple[int, Any, str]:
    card = _card_at(args, config)
    pictures = _described(tuple(args.image))
    most = cloud_image_tokens_max(card, args.model, pictures)
    likely = cloud_image_tokens_likely(card, args.model, pictures) or most
    bound = quote(
        card,
        args.model,
        prompt_tokens_max=args.prompt + most,
        output_tokens_max=args.output,
        rate=args.rate,
    )
    usage = Usage(
        prompt_tokens=args.prompt + likely,
        completion_tokens=args.output,
        cached_tokens=args.cached,
        image_tokens=likely,
    )
    at_ms = int(_moment(args.at).timestamp() * 1000)
    real = cost(card, args.model, usage, at_ms=at_ms, rate=args.rate)
    found = {
        "model": args.model,
        "card": card.version,
        "bound_cny": msgspec.Raw(cny(bound.nano).encode()),
        "bound_tier": bound.tier,
        "cost_cny": msgspec.Raw(cny(real.nano).encode()),
        "cost_nano": real.nano,
        "tier": real.tier,
        "image_tokens": likely,
        "image_tokens_max": most,
        "flags": real.flags,
    }
    lines = [
        f"cost   {cny(real.nano)} CNY in tier {real.tier!r} of {card.version}",
        f"held   {cny(bound.nano)} CNY, the most that so many tokens can cost "
        f"(tier {bound.tier!r})",
    ]
    if args.image:
        lines.append(f"images {likely} tokens expected, {most} held")
    lines += [f"note   {flag}" for flag in real.flags]
    return 0, found, "\n".join(lines)


def _described(images: tuple[ImageSize, ...]) -> Facts:
    """A request of which only the pictures matter."""
    return Facts(
        request_id="quote",
        tenant="",
        scopes=(),
        model="",
        side=None,
        label=Label(level=Sensitivity.PUBLIC, source="none"),
        images=images,
        prompt_tokens_max=0,
        prompt_tokens_likely=0,
        output_tokens_max=0,
        output_tokens_likely=0,
    )


_ACTS = {"check": _check, "diff": _diff, "show": _show, "quote": _quote}
