"""One JSON object a line on stderr, and nothing in it that should not be there.

Both structlog and the standard library's loggers end here. Redaction is the last step before the
encoder, so no call site can forget it: keys that are known to hold secrets or a caller's data are
masked, tokens inside texts are masked, long texts are cut, and an object of an unknown class is
named but not printed. An exception from a foreign library is logged by its type and place only,
because its message may quote what it choked on, and that may be a prompt.
"""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Mapping, MutableMapping
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, cast

import msgspec
import structlog

MASK = "***"
DEPTH_MAX = 5
ITEMS_MAX = 50
FRAMES_MAX = 8
_LOOK_AHEAD = 8_192  # the longest token

# Compared in lower case with - as _. Not in it on purpose: prompt_tokens and its like, which count.
SECRET_KEYS = frozenset(
    "authorization proxy_authorization cookie set_cookie api_key apikey x_api_key token "
    "access_token refresh_token secret secret_key password passwd private_key credential "
    "credentials signature jwt claims headers redis_url environ "
    "prompt messages content reasoning_content text body raw_body arguments tool_calls "
    "image images image_url image_urls url_query answer completion".split()
)
_SECRET_ENDINGS = ("_token", "_secret", "_password", "_api_key", "_private_key")

# What a secret looks like in running text: JWTs, bearer and Ark keys, a password in a URL, and
# pictures, which are data and long.
_SECRET_TEXT = re.compile(
    r"eyJ[\w-]{8,}(?:\.[\w-]+){0,2}"
    r"|(?i:bearer)\s+[\w.~+/=-]{8,}"
    r"|\bsk-[\w-]{16,}"
    r"|(?<=://)[^\s/@:]*:[^\s/@]+(?=@)"
    r"|data:[\w.+/-]+;base64,[\w+/=-]*"
)
_MARKS = ("eyJ", "sk-", "://", ";base64,")  # without one of these the pattern cannot match
_SHORT = 10  # no text of this length holds a whole secret
_PLAIN = frozenset({type(None), bool, int, float})
_OURS = ("gateway", "backends", "policies")
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}

Event = dict[str, Any]


def setup(
    level: str = "info", *, text_chars_max: int = 1_000, stream: BinaryIO | None = None
) -> None:
    """Send everything from `level` up to `stream` (None: stderr).

    May be called again; a logger of structlog that was used before keeps its level.
    """
    writer = _WRITER
    writer.aim(stream or sys.stderr.buffer, text_chars_max)
    number = getattr(logging, level.upper())
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            writer.render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=lambda *_: writer,
        cache_logger_on_first_use=True,
    )
    root = logging.getLogger()
    root.handlers[:] = [_Bridge(writer)]
    root.setLevel(number)
    for noisy in ("aiohttp.access", "asyncio"):  # we write our own line; slow-callback chatter
        logging.getLogger(noisy).setLevel(logging.WARNING)


class _Writer:
    """Redacts, encodes and writes; the object that structlog calls a logger."""

    def __init__(self) -> None:
        self._encoder = msgspec.json.Encoder()
        self.aim(sys.stderr.buffer, 1_000)

    def aim(self, stream: BinaryIO, text_chars_max: int) -> None:
        self._stream = stream
        self._text_chars_max = text_chars_max

    def render(self, _logger: object, _method: str, event: MutableMapping[str, Any]) -> bytes:
        """The last processor: an event to one line."""
        line: dict[str, Any] = {"ts": _now(), "level": event.pop("level", "info")}
        error = event.pop("exc_info", None)
        for key, value in event.items():
            line[key] = self.redact(key, value)
        if error:
            line.update(_explain(error, self._text_chars_max))
        try:
            return self._encoder.encode(line) + b"\n"
        except (TypeError, ValueError, OverflowError, RecursionError):  # an int above 64 bits
            text = {"ts": line["ts"], "level": line["level"], "event": "unprintable log record"}
            return self._encoder.encode(text) + b"\n"

    def msg(self, line: bytes) -> None:
        """Write one finished line. A reader that has gone away is no reason to fail."""
        try:
            self._stream.write(line)
            self._stream.flush()
        except (OSError, ValueError):  # ValueError: the stream is closed
            return

    debug = info = warning = warn = error = critical = exception = fatal = log = msg

    def redact(self, key: str, value: object, depth: int = 0) -> object:
        """`value` as it may be shown under `key`."""
        kind = type(value)
        if kind in _PLAIN:
            return value
        if is_secret(key):
            return MASK
        if isinstance(value, str):
            return clean(value, self._text_chars_max)
        if isinstance(value, int | float):  # an IntEnum and its like
            return value
        if isinstance(value, bytes | bytearray | memoryview):
            return f"<{len(value)} bytes>"
        if depth >= DEPTH_MAX:
            return "..."
        if isinstance(value, msgspec.Struct):
            value = {name: getattr(value, name) for name in value.__struct_fields__}
        if isinstance(value, Mapping):
            pairs = list(value.items())[:ITEMS_MAX]
            return {clean(str(k), 100): self.redact(str(k), v, depth + 1) for k, v in pairs}
        if isinstance(value, list | tuple | set | frozenset):
            return [self.redact(key, item, depth + 1) for item in list(value)[:ITEMS_MAX]]
        if isinstance(value, BaseException):
            return _message(value, self._text_chars_max) or type(value).__name__
        if isinstance(value, Path | datetime):
            return clean(str(value), self._text_chars_max)
        return f"<{type(value).__name__}>"


_WRITER = _Writer()


class _Bridge(logging.Handler):
    """Records of the standard library's loggers, as the same lines."""

    def __init__(self, writer: _Writer) -> None:
        super().__init__()
        self._writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        try:
            event: Event = {"event": record.getMessage()}
        except (TypeError, ValueError):  # arguments that do not fit the format
            event = {"event": str(record.msg)}
        event |= {"level": record.levelname.lower(), "logger": record.name}
        event |= {k: v for k, v in vars(record).items() if k not in _STANDARD}
        event["exc_info"] = record.exc_info
        self._writer.msg(self._writer.render(None, "", event))


@lru_cache(maxsize=4_096)  # a program has few keys, but a logged mapping may bring others
def is_secret(key: str) -> bool:
    """Whether what stands under this key must not be shown."""
    name = key.lower().replace("-", "_")
    return name in SECRET_KEYS or name.endswith(_SECRET_ENDINGS)


def clean(text: str, chars_max: int) -> str:
    """`text` without anything that looks like a secret, and not longer than `chars_max`."""
    if len(text) <= _SHORT:
        return text if text.isascii() else text.encode("utf-8", "replace").decode()
    # Masked before it is cut, or the cut could leave a part that no longer looks like a secret;
    # what lies far behind the cut is not worth the search.
    shown = text[: chars_max + _LOOK_AHEAD]
    if any(mark in shown for mark in _MARKS) or "bearer" in shown.lower():
        shown = _SECRET_TEXT.sub(MASK, shown)
    if len(shown) > chars_max:
        shown = f"{shown[:chars_max]}... ({len(text)} characters)"
    # half a surrogate pair cannot be encoded; header values may hold one
    return shown if shown.isascii() else shown.encode("utf-8", "replace").decode()


def _now() -> str:
    seconds = time.time()
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{whole}.{int(seconds * 1000) % 1000:03d}Z"


_Caught = tuple[type[BaseException], BaseException, TracebackType | None]


def _explain(error: object, chars_max: int) -> dict[str, object]:
    """An exception as fields: its type, where it came from, and its text if it is ours."""
    if error is True:
        error = sys.exc_info()
    if isinstance(error, BaseException):
        error = (type(error), error, error.__traceback__)
    if not isinstance(error, tuple) or error[1] is None:
        return {}
    _, raised, trace = cast("_Caught", error)
    frames = []
    while trace is not None:
        code = trace.tb_frame.f_code
        frames.append(f"{'/'.join(Path(code.co_filename).parts[-2:])}:{trace.tb_lineno}")
        trace = trace.tb_next
    fields: dict[str, object] = {
        "error": type(raised).__name__,
        "error_at": frames[-FRAMES_MAX:],
    }
    if text := _message(raised, chars_max):
        fields["error_text"] = text
    return fields


def _message(error: BaseException, chars_max: int) -> str | None:
    """The text of an error of ours or of the operating system; None for a foreign one."""
    if type(error).__module__.split(".")[0] in _OURS:
        return clean(str(error), chars_max)
    if isinstance(error, OSError) and error.strerror:
        return clean(error.strerror, chars_max)
    return None
