"""What the emulated cloud charges for one answer, in its own reckoning.

This is not the gateway's price card, on purpose: another table, in the unit of bills (CNY for a
thousand tokens), looked up another way, reckoned in decimals. What the gateway books and what the
emulator bills are two readings of the same published prices, so a mistake in one of them shows.

Published rules (docs 82379/1544106): the band is chosen by the input of the single request, within
some by its output as well; all of its tokens are charged in that band; tokens that the cache knew
have a price of their own; of one model the price goes by the hour.
"""

from __future__ import annotations

from decimal import Decimal

import msgspec

INPUT, CACHED, OUTPUT = "input", "cached_input", "output"

# CNY per thousand tokens. "in>" and "out>": the band begins above so many thousand tokens.
# State of October 2026. A dash: no such price, the tokens count as input.
_TABLE = """
model                         service  hours   in>  out>  input    cached   output
doubao-seed-2-1-pro           online   all     0    0     0.006    0.0012   0.03
doubao-seed-evolving          online   all     0    0     0.006    0.0012   0.03
doubao-seed-2-1-turbo         online   all     0    0     0.003    0.0006   0.015
doubao-seed-2-1-turbo         fast     all     0    0     0.006    -        0.03
doubao-seed-2-1-lite          online   all     0    0     0.0008   0.00016  0.0027
doubao-seed-2-0-pro           online   all     0    0     0.0032   0.00064  0.016
doubao-seed-2-0-pro           online   all     32   0     0.0048   0.00096  0.024
doubao-seed-2-0-pro           online   all     128  0     0.0096   0.00192  0.048
doubao-seed-2-0-pro           fast     all     0    0     0.0096   -        0.048
doubao-seed-2-0-pro           fast     all     32   0     0.0144   -        0.072
doubao-seed-2-0-pro           fast     all     128  0     0.0288   -        0.144
doubao-seed-2-0-code          online   all     0    0     0.0032   0.00064  0.016
doubao-seed-2-0-code          online   all     32   0     0.0048   0.00096  0.024
doubao-seed-2-0-code          online   all     128  0     0.0096   0.00192  0.048
doubao-seed-2-0-code-preview  online   all     0    0     0.0032   0.00064  0.016
doubao-seed-2-0-code-preview  online   all     32   0     0.0048   0.00096  0.024
doubao-seed-2-0-code-preview  online   all     128  0     0.0096   0.00192  0.048
doubao-seed-2-0-lite          online   all     0    0     0.0006   0.00012  0.0036
doubao-seed-2-0-lite          online   all     32   0     0.0009   0.00018  0.0054
doubao-seed-2-0-lite          online   all     128  0     0.0018   0.00036  0.0108
doubao-seed-2-0-mini          online   all     0    0     0.0002   0.00004  0.002
doubao-seed-2-0-mini          online   all     32   0     0.0004   0.00008  0.004
doubao-seed-2-0-mini          online   all     128  0     0.0008   0.00016  0.008
doubao-seed-1-8               online   all     0    0     0.0008   0.00016  0.002
doubao-seed-1-8               online   all     0    0.2   0.0008   0.00016  0.008
doubao-seed-1-8               online   all     32   0     0.0012   0.00016  0.016
doubao-seed-1-8               online   all     128  0     0.0024   0.00016  0.024
doubao-seed-1-6               online   all     0    0     0.0008   0.00016  0.002
doubao-seed-1-6               online   all     0    0.2   0.0008   0.00016  0.008
doubao-seed-1-6               online   all     32   0     0.0012   0.00016  0.016
doubao-seed-1-6               online   all     128  0     0.0024   0.00016  0.024
doubao-seed-1-6-vision        online   all     0    0     0.0008   0.00016  0.008
doubao-seed-1-6-vision        online   all     32   0     0.0012   0.00016  0.016
doubao-seed-1-6-vision        online   all     128  0     0.0024   0.00016  0.024
doubao-seed-1-6-flash         online   all     0    0     0.00015  0.00003  0.0015
doubao-seed-1-6-flash         online   all     32   0     0.0003   0.00003  0.003
doubao-seed-1-6-flash         online   all     128  0     0.0006   0.00003  0.006
doubao-seed-1-6-lite          online   all     0    0     0.0003   0.00006  0.0006
doubao-seed-1-6-lite          online   all     0    0.2   0.0003   0.00006  0.0024
doubao-seed-1-6-lite          online   all     32   0     0.0006   0.00006  0.004
doubao-seed-1-6-lite          online   all     128  0     0.0012   0.00006  0.012
doubao-1-5-vision-pro-32k     online   all     0    0     0.003    -        0.009
doubao-1-5-pro-32k            online   all     0    0     0.0008   0.00016  0.002
doubao-1-5-lite-32k           online   all     0    0     0.0003   0.00006  0.0006
glm-5-3-flash                 online   all     0    0     0.0008   0.00023  0.0028
glm-5-2                       online   all     0    0     0.008    0.002    0.028
glm-4-7                       online   all     0    0     0.002    0.0004   0.008
glm-4-7                       online   all     0    0.2   0.003    0.0006   0.014
glm-4-7                       online   all     32   0     0.004    0.0008   0.016
deepseek-v4-1-flash           online   peak    0    0     0.002    0.00004  0.008
deepseek-v4-1-flash           online   off     0    0     0.001    0.00002  0.004
deepseek-v4-pro-ga            online   all     0    0     0.009    0.0003   0.027
"""


class Band(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the table: prices in CNY per thousand tokens, thresholds in thousand tokens."""

    model: str
    service: str  # online | fast
    hours: str  # all | peak | off
    input_over: Decimal
    output_over: Decimal
    input: Decimal
    cached_input: Decimal | None  # None: such tokens count as input
    output: Decimal

    def price(self, element: str) -> Decimal:
        found: Decimal = getattr(self, element)
        return found


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One item of one answer: so many tokens of a kind, in a band."""

    band: Band
    element: str  # input | cached_input | output
    tokens: int

    @property
    def amount_cny(self) -> Decimal:
        """Not rounded."""
        return self.band.price(self.element) * self.tokens / 1000


def bands() -> list[Band]:
    """The whole table."""
    return [band for rows in _BANDS.values() for band in rows]


def lines(
    model: str, service: str, hours: str, *, prompt: int, cached: int, completion: int
) -> list[Line]:
    """What is charged for one answer; items without tokens are left out.

    model: without its date. hours: peak or off, for the models that ask. A model that the table
    does not have is billed at nothing, and the bill shows it with a price of nothing.
    """
    band = _band(model, service, hours, prompt, completion)
    if band.cached_input is not None:
        counts = {INPUT: prompt - cached, CACHED: cached, OUTPUT: completion}
    else:
        counts = {INPUT: prompt, OUTPUT: completion}
    return [Line(band=band, element=kind, tokens=n) for kind, n in counts.items() if n > 0]


def _band(model: str, service: str, hours: str, prompt: int, completion: int) -> Band:
    rows = _BANDS.get((model, service), [])
    fit = [
        row
        for row in rows
        if row.hours in ("all", hours)
        and (row.input_over == 0 or prompt > 1000 * row.input_over)
        and (row.output_over == 0 or completion > 1000 * row.output_over)
    ]
    if not fit:
        nothing = Decimal(0)
        return Band(
            model=model, service=service, hours="all", input_over=nothing, output_over=nothing,
            input=nothing, cached_input=nothing, output=nothing,
        )  # fmt: skip
    return max(fit, key=lambda row: (row.input_over, row.output_over))


def _read() -> dict[tuple[str, str], list[Band]]:
    found: dict[tuple[str, str], list[Band]] = {}
    for row in _TABLE.strip().splitlines()[1:]:
        model, service, hours, over_in, over_out, price_in, cached, price_out = row.split()
        band = Band(
            model=model,
            service=service,
            hours=hours,
            input_over=Decimal(over_in),
            output_over=Decimal(over_out),
            input=Decimal(price_in),
            cached_input=None if cached == "-" else Decimal(cached),
            output=Decimal(price_out),
        )
        found.setdefault((model, service), []).append(band)
    return found


_BANDS = _read()
