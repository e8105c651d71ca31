"""`python -m backends.ark.emulator`: the emulator as a process."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from typing import Any

import msgspec
import uvloop

from backends.ark.emulator.server import Emulator
from backends.ark.emulator.settings import Settings, SettingsError, load
from backends.listen import ListenError

_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_EPILOG = """\
examples
  %(prog)s                                 answers at http://127.0.0.1:18080/api/v3
  %(prog)s --port 0                        a free port; the first line of the output names it
  %(prog)s --first-ms 0:0 --token-ms 0     no waiting: for tests
  %(prog)s --rpm 60 --tpm 20000 --seed 7   tight limits, the same run every time

  curl http://127.0.0.1:18080/api/v3/chat/completions -H 'Authorization: Bearer any' \\
    -H 'Content-Type: application/json' \\
    -d '{"model": "glm-5-3-flash-260828", "messages": [{"role": "user", "content": "Hello"}]}'

inject a fault into one request
  -H 'X-Emulator-Inject: code=ServerOverloaded;retry_after_s=3'
  -H 'X-Emulator-Inject: cut_after=5'
or into the next three, or a tenth of all
  curl -X POST .../emulator/faults -d '{"fault": {"code": "InternalServiceError"}, "next": 3}'
  curl -X POST .../emulator/faults -d '{"fault": {"stall_after": 2}, "rate": 0.1}'

the bill, as `yuzui reconcile --emulator http://127.0.0.1:18080` reads it
  %(prog)s --bill-delay-s 0 --bill-faults 0.01   billed at once after a period, 1 %% wrong

look
  GET /emulator            all routes, fault fields and error codes
  GET /emulator/stats      counters          GET /emulator/requests   what came (no texts)
  GET /emulator/usage      what was charged  POST /emulator/reset     start again

A file (--config) may set more: keys and accounts, endpoints (ep-...) with their caps, limits of a
model, latency, bursts, retired models, rules for faults.

What it answers is made up: nothing here has asked a model.
"""


def main(argv: list[str] | None = None) -> int:
    """Runs until SIGINT or SIGTERM. 0: stopped; 1: the port is taken; 2: the settings are wrong."""
    parser = _parser()
    options = vars(parser.parse_args(argv))
    path = options.pop("config")
    try:
        settings = load(path, _flags(options))
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_run(settings))
    except SettingsError as error:
        sys.stderr.write(f"{parser.prog}: {error}\n")
        return 2
    except ListenError as error:
        sys.stderr.write(f"{parser.prog}: {error}\n")
        return error.code
    return 0


def _parser() -> argparse.ArgumentParser:
    called = sys.argv[0]  # `yuzui ark-emulator` sets it; with -m it is the path of this file
    parser = argparse.ArgumentParser(
        prog=called if called.startswith("yuzui ") else "python -m backends.ark.emulator",
        description="A server that behaves as Volcano Engine Ark is documented to. It needs no "
        "key and no network, and everything it answers is marked as emulated.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--config", metavar="FILE", help="settings in YAML; flags count before it")
    add("--host", help="address to bind (127.0.0.1); the admin routes have no key")
    add("--port", type=int, help="port (18080); 0: a free one")
    add("--seed", type=int, help="same seed, same latencies and same random faults (0)")
    add("--api-key", action="append", help="accept only this key; may be repeated (any key)")
    add("--rpm", type=int, help="requests a minute of every model (what Ark publishes)")
    add("--tpm", type=int, help="tokens a minute of every model (what Ark publishes)")
    add("--concurrency", type=int, help="requests at once of an account (no cap)")
    add(
        "--first-ms", metavar="A:B", help="time to the first token, drawn between A and B (200:800)"
    )
    add("--token-ms", type=float, help="time between tokens (20)")
    add("--answer-tokens", type=int, help="length of an answer (as long as its sentence)")
    add("--bill-delay-s", type=float, metavar="S", help="until a period is billed (600)")
    add("--bill-faults", type=float, metavar="SHARE", help="how much of the bill is wrong (0)")
    add("--retry-after", action="store_true", help="send Retry-After with rate limits")
    return parser


def _flags(options: dict[str, Any]) -> dict[str, Any]:
    """Flags that were given -> settings. Raises SettingsError."""
    given = {name: value for name, value in options.items() if value is not None}
    flags: dict[str, Any] = {
        name: given[name]
        for name in ("host", "port", "seed", "concurrency", "answer_tokens")
        if name in given
    }
    latency: dict[str, float] = {}
    if "first_ms" in given:
        least, _, most = given["first_ms"].partition(":")
        try:
            latency = {"first_ms_min": float(least), "first_ms_max": float(most or least)}
        except ValueError as error:
            raise SettingsError("--first-ms: expected A:B in milliseconds") from error
    if "token_ms" in given:
        latency["token_ms"] = given["token_ms"]
    if latency:
        flags["latency"] = latency
    limits = {name: given[name] for name in ("rpm", "tpm") if name in given}
    if limits:
        flags["limits"] = {"*": limits}
    billing = _billing(given)
    if billing:
        flags["billing"] = billing
    if "api_key" in given:
        flags["keys"] = [{"key": key} for key in given["api_key"]]
    if given["retry_after"]:
        flags["send_retry_after"] = True
    return flags


def _billing(given: dict[str, Any]) -> dict[str, Any]:
    """Flags of the bill: split and count are delayed like it, faults are of every kind."""
    billing: dict[str, Any] = {}
    if "bill_delay_s" in given:
        names = ("delay_s", "split_delay_s", "usage_delay_s")
        billing.update(dict.fromkeys(names, given["bill_delay_s"]))
    if "bill_faults" in given:
        kinds = ("missing", "changed", "doubled", "foreign")
        billing["faults"] = dict.fromkeys(kinds, given["bill_faults"] / 4)
    return billing


async def _run(settings: Settings) -> None:
    """Serves until a signal. The first line on stdout is JSON and names the address."""
    emulator = Emulator(settings)
    url = await emulator.start()
    try:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        sys.stdout.write(msgspec.json.encode({"listening": url}).decode() + "\n")
        sys.stdout.flush()
        sys.stderr.write(
            f"ark-emulator: clients use base URL {url} and any key; answers are made up. "
            f"--help shows how to inject faults.\n"
        )
        if settings.host not in _LOOPBACK:
            sys.stderr.write("ark-emulator: others can reach it, and /emulator has no key.\n")
        await stop.wait()
    finally:
        await emulator.close()


if __name__ == "__main__":
    sys.exit(main())
