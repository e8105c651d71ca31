"""The key ring: fixed keys from the settings and, beside them, a JWKS that may change.

An issuer that cannot be reached must not lock everybody out, so the last good set stays in use;
an unknown kid may mean a rotation, so it asks for a fresh set, but at most once per interval, or
a stream of invented kids would become a stream of fetches. A key that leaves the set stops
working with the next good answer. Nothing here opens a socket: how to fetch is handed in.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from gateway.keys import KID_CHARS_MAX, KeyUnusable, VerifyKey, from_jwk
from gateway.tasks import spawn

URL_INTERVAL_S = 60.0  # between two fetches, whatever asks for them
FILE_INTERVAL_S = 2.0  # a look at a file's date costs nothing
FIRST_RETRY_S = 5.0  # while there is no good set at all
FETCH_TIMEOUT_S = 10.0
WAIT_S = 2.0  # how long a request with an unknown kid waits for a fetch
BYTES_MAX = 262_144  # a set of a hundred RSA keys is 60 kB
KEYS_MAX = 100

Fetch = Callable[[], Awaitable[bytes | None]]  # None: not changed since the last call
_log = logging.getLogger(__name__)


class JwksError(Exception):
    """A document that is not a usable key set. The set in use stays."""


def parse(document: bytes) -> dict[str, VerifyKey]:
    """The keys of a JWKS by kid; entries that are not for us are left out.

    Raises JwksError when the document is too large, not a key set, or names a kid twice.
    """
    if len(document) > BYTES_MAX:
        raise JwksError(f"the key set is larger than {BYTES_MAX} bytes")
    try:
        content = json.loads(document)
    except (ValueError, RecursionError):
        raise JwksError("the key set is not JSON") from None
    entries = content.get("keys") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise JwksError("the key set has no list of keys")
    if len(entries) > KEYS_MAX:
        raise JwksError(f"the key set has more than {KEYS_MAX} keys")
    found: dict[str, VerifyKey] = {}
    for entry in entries:
        if not isinstance(entry, dict):
            raise JwksError("the key set holds something that is not a key")
        try:
            key = from_jwk(entry)
        except KeyUnusable as error:
            _log.info("key of the set left out: %s", error)
            continue
        if key.kid in found:  # which of the two an issuer means, nobody can know
            raise JwksError(f"the key set names the kid {key.kid!r} twice")
        found[key.kid] = key
    return found


def file_fetch(path: Path) -> Fetch:
    """Reads the file when its date, size or place on disk has changed since the last good read."""
    seen: tuple[int, int, int] | None = None

    def read() -> bytes | None:
        nonlocal seen
        stat = path.stat()
        now = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        if now == seen:
            return None
        with path.open("rb") as file:
            content = file.read(BYTES_MAX + 1)
        seen = now
        return content

    async def fetch() -> bytes | None:
        return await asyncio.to_thread(read)

    return fetch


class Jwks:
    """A key set that is fetched again and again.

    `version` grows whenever the keys have changed. `clock` is monotonic and in seconds.
    """

    def __init__(
        self,
        fetch: Fetch,
        *,
        interval_s: float = URL_INTERVAL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.keys: Mapping[str, VerifyKey] = {}
        self.version = 0
        self.loaded = False  # whether there has ever been a good set
        self._fetch = fetch
        self._interval_s = interval_s
        self._clock = clock
        self._tried_s: float | None = None
        self._running: asyncio.Task[None] | None = None

    async def find(self, kid: str) -> VerifyKey | None:
        """The key, after a new fetch if it is not known and one is due. Waits 2 s at most."""
        key = self.keys.get(kid)
        if key is None and (self._running is not None or self._due()):
            await asyncio.wait([self._refresh()], timeout=WAIT_S)
            key = self.keys.get(kid)
        return key

    async def refresh(self) -> None:
        """Fetch now, or join the fetch that is under way. Failures are logged, never raised."""
        await asyncio.shield(self._refresh())

    async def run(self) -> None:
        """Keep the set fresh until cancelled."""
        while True:
            if self._due():
                await self.refresh()
            await asyncio.sleep(self._pause_s())

    def _pause_s(self) -> float:
        return self._interval_s if self.loaded else min(FIRST_RETRY_S, self._interval_s)

    def _due(self) -> bool:
        return self._tried_s is None or self._clock() - self._tried_s >= self._pause_s()

    def _refresh(self) -> asyncio.Task[None]:
        if self._running is None:
            self._tried_s = self._clock()
            self._running = spawn(self._load(), name="jwks")
        return self._running

    async def _load(self) -> None:
        try:
            async with asyncio.timeout(FETCH_TIMEOUT_S):
                document = await self._fetch()
            if document is not None:
                self._take(parse(document))
        except JwksError as error:
            _log.error("%s; the keys in use stay", error)
        except Exception as error:  # the fetcher is injected: whatever it raises means "not now"
            _log.error(
                "the key set cannot be fetched (%s); the keys in use stay", type(error).__name__
            )
        finally:
            self._running = None

    def _take(self, fresh: dict[str, VerifyKey]) -> None:
        self.loaded = True
        if not fresh:  # the issuer's word counts, but it is rarely meant
            _log.warning("the key set holds no usable key; its tokens are refused from now on")
        if {k: _print(v) for k, v in fresh.items()} != {k: _print(v) for k, v in self.keys.items()}:
            self.keys = fresh
            self.version += 1
            _log.info("key set: %d keys", len(fresh))


def _print(key: VerifyKey) -> tuple[str, object]:
    return (key.alg, key.material.public_numbers() if key.alg != "EdDSA" else _raw(key))


def _raw(key: VerifyKey) -> bytes:
    return bytes(key.material.public_bytes_raw())


class KeyRing:
    """All keys that may have signed a token. A fixed key goes before one of the same kid."""

    def __init__(self, fixed: Sequence[VerifyKey] = (), jwks: Jwks | None = None) -> None:
        self._fixed = {key.kid: key for key in fixed}
        self._jwks = jwks
        self._watch: asyncio.Task[None] | None = None

    @property
    def version(self) -> int:
        """Changes when any key has changed: what was proven with the old ones counts no more."""
        return 0 if self._jwks is None else self._jwks.version

    @property
    def ready(self) -> bool:
        """Whether a token could be accepted now."""
        return bool(self._fixed) or (self._jwks is not None and bool(self._jwks.keys))

    async def find(self, kid: str) -> VerifyKey | None:
        """The key named `kid`, or None."""
        key = self._fixed.get(kid)
        if key is not None or self._jwks is None or len(kid) > KID_CHARS_MAX:
            return key
        return await self._jwks.find(kid)

    async def start(self) -> None:
        """Load the set once, and keep it fresh until `stop`."""
        if self._jwks is not None and self._watch is None:
            await self._jwks.refresh()
            self._watch = spawn(self._jwks.run(), name="jwks-watch")

    async def stop(self) -> None:
        """End the watch that `start` began."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait([self._watch])
            self._watch = None
