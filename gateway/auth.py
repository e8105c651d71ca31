"""Who asks: a signed token in, a Principal out, or an AuthError; there is no third way.

The order of the checks is the defence. Size and shape first, on bytes nobody has vouched for.
Then the key, by kid alone, and the key's own algorithm, which the token may only repeat. Then the
signature; and only then does a claim mean anything. What was proven once is remembered under the
SHA-256 of the whole token: a neighbour's cache that used the first 20 characters as its key gave
one caller another's identity (CVE-2026-35030).
"""

from __future__ import annotations

import binascii
import json
import math
import re
from base64 import urlsafe_b64decode
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

from jwt import PyJWTError

from gateway.config.schema import AuthConfig
from gateway.jwks import FILE_INTERVAL_S, Fetch, Jwks, KeyRing, file_fetch
from gateway.keys import (
    JWS,
    KID_CHARS_MAX,
    LABEL_KIND,
    LABEL_VALUE,
    NAME,
    SCOPE,
    VerifyKey,
    from_config,
)
from policies.sensitivity import NAMES
from policies.types import Principal, Sensitivity, SloClass

MODELS_MAX = 256
BUDGETS_MAX = 16  # each one is a key of the same Redis script
LABELS_MAX = 8
TEXT_CHARS_MAX = 256

_COMPACT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
# Headers that name or carry a key would let the token choose what it is checked with; crit, b64
# and zip change what the signature means; cty announces a token inside the token.
_REFUSED_HEADERS = frozenset(
    {"crit", "jku", "jwk", "x5u", "x5c", "b64", "zip", "enc", "cty", "epk", "url"}
)
_TYPES = frozenset({"jwt", "at+jwt", "application/jwt", "application/at+jwt"})


class AuthError(Exception):
    """No Principal. `message` is for the caller and holds nothing of the token.

    code: missing_api_key, invalid_api_key or token_expired
    why:  one word for the log: which check refused
    """

    status = 401

    def __init__(self, code: str, message: str, why: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.why = why


def _invalid(why: str, message: str = "The token is not valid.") -> AuthError:
    return AuthError("invalid_api_key", message, why)


def bearer(authorization: Sequence[str]) -> str:
    """The token from all values of the Authorization header. Raises AuthError.

    Two headers are refused: a proxy in front may have checked the other one.
    """
    if not authorization:
        raise AuthError("missing_api_key", "Send `Authorization: Bearer <token>`.", "no_header")
    if len(authorization) > 1:
        raise _invalid("two_headers", "Send one Authorization header, not several.")
    scheme, _, token = authorization[0].partition(" ")
    token = token.strip(" ")
    if scheme.lower() != "bearer" or not token:
        raise _invalid("scheme", "Send `Authorization: Bearer <token>`.")
    return token


class Authenticator:
    """Verifies tokens against a key ring. `names` are the spellings of the sensitivity levels."""

    def __init__(
        self,
        keys: KeyRing,
        *,
        issuer: str,
        audience: str,
        leeway_s: float = 60.0,
        token_bytes_max: int = 8_192,
        cache_entries_max: int = 10_000,
        names: Mapping[str, Sensitivity] = NAMES,
    ) -> None:
        self.keys = keys
        self._issuer = issuer
        self._audience = audience
        self._leeway_s = leeway_s
        self._token_bytes_max = token_bytes_max
        self._entries_max = cache_entries_max
        self._names = names
        self._proven: OrderedDict[bytes, tuple[float, Principal]] = OrderedDict()
        self._version = keys.version

    @classmethod
    def from_config(
        cls,
        config: AuthConfig,
        *,
        extra: Sequence[VerifyKey] = (),
        fetch: Fetch | None = None,
        names: Mapping[str, Sensitivity] = NAMES,
    ) -> Authenticator:
        """As the settings say.

        extra: keys that no setting names, such as the private one of `make up`
        fetch: gets the document at config.jwks_url; needed when that is set
        Raises KeyUnusable; ValueError when there is no key at all, or no fetch for the URL.
        """
        jwks = None
        if config.jwks_file is not None:
            jwks = Jwks(file_fetch(config.jwks_file), interval_s=FILE_INTERVAL_S)
        elif config.jwks_url is not None:
            if fetch is None:
                raise ValueError("auth.jwks_url is set, but nothing to fetch it with was given")
            jwks = Jwks(fetch)
        fixed = [*extra, *(from_config(key) for key in config.all_keys())]
        if jwks is None and not fixed:
            raise ValueError(
                "no key is configured (auth.keys, auth.secret, auth.jwks_file or auth.jwks_url), "
                "so no caller could be told from another"
            )
        return cls(
            KeyRing(fixed, jwks),
            issuer=config.issuer,
            audience=config.audience,
            leeway_s=config.leeway_s,
            token_bytes_max=config.token_bytes_max,
            cache_entries_max=config.cache_entries_max,
            names=names,
        )

    def cached(self, authorization: Sequence[str], now_s: float) -> Principal | None:
        """The Principal of a token that was proven before and is still good; None: ask again.

        The fast path of every request: no await, no parsing. `now_s` is the wall clock.
        """
        if self._version != self.keys.version:
            self._version = self.keys.version
            self._proven.clear()
        if len(authorization) != 1:
            return None
        value = authorization[0]
        # 7 = len("Bearer "); whatever else stands there takes the slow path and is refused there
        if not value.isascii() or value[:7].lower() != "bearer ":
            return None
        digest = sha256(value[7:].encode()).digest()
        entry = self._proven.get(digest)
        if entry is None:
            return None
        if now_s >= entry[0]:
            del self._proven[digest]
            return None
        self._proven.move_to_end(digest)
        return entry[1]

    async def principal(self, authorization: Sequence[str], now_s: float) -> Principal:
        """Who asks. `now_s` is the wall clock in seconds. Raises AuthError."""
        hit = self.cached(authorization, now_s)
        if hit is not None:
            return hit
        token = bearer(authorization)
        if len(token) > self._token_bytes_max:
            raise _invalid("too_long", f"A token has at most {self._token_bytes_max} bytes.")
        if not _COMPACT.fullmatch(token):
            raise _invalid("shape")
        kid, alg = _header(token)
        key = await self.keys.find(kid)
        if key is None:
            raise _invalid("kid", "No key is known for this token.")
        if alg != key.alg:
            raise _invalid("alg")
        version = self.keys.version
        claims = _verified(token, key)
        good_until_s = self._times(claims, now_s)
        self._addressed(claims)
        principal = read_claims(claims, kid, self._names)
        # A rotation during find() may have taken the key away: remember nothing of before.
        if self._entries_max and version == self._version:
            self._proven[sha256(token.encode()).digest()] = (good_until_s, principal)
            if len(self._proven) > self._entries_max:
                self._proven.popitem(last=False)
        return principal

    def _times(self, claims: Mapping[str, object], now_s: float) -> float:
        """Until when the token is good, by the wall clock. Raises AuthError."""
        expires_s = _moment(claims, "exp")
        if expires_s is None:
            raise _invalid("no_exp", "The token has no exp claim.")
        for name in ("nbf", "iat"):
            starts_s = _moment(claims, name)
            if starts_s is not None and starts_s > now_s + self._leeway_s:
                raise _invalid(name, "The token is not valid yet.")
        if now_s >= expires_s + self._leeway_s:
            raise AuthError("token_expired", "The token has expired.", "exp")
        return expires_s + self._leeway_s

    def _addressed(self, claims: Mapping[str, object]) -> None:
        if claims.get("iss") != self._issuer:
            raise _invalid("iss", "The token comes from another issuer.")
        audience = claims.get("aud")
        if audience != self._audience and not (
            isinstance(audience, list) and self._audience in audience
        ):
            raise _invalid("aud", "The token is meant for another audience.")


def _header(token: str) -> tuple[str, str]:
    """kid and alg of a header that asks for nothing unusual. Raises AuthError."""
    encoded = token.partition(".")[0]
    try:
        header = _json(urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)))
    except (ValueError, RecursionError, binascii.Error):
        raise _invalid("header") from None
    if not isinstance(header, dict):
        raise _invalid("header")
    if not _REFUSED_HEADERS.isdisjoint(header):
        raise _invalid("header_refused")
    typ = header.get("typ", "JWT")
    if not isinstance(typ, str) or typ.lower() not in _TYPES:
        raise _invalid("typ")
    kid, alg = header.get("kid"), header.get("alg")
    if not isinstance(kid, str) or not 0 < len(kid) <= KID_CHARS_MAX:
        raise _invalid("kid", "The token names no key (kid).")
    if not isinstance(alg, str):
        raise _invalid("alg")
    return kid, alg


def _verified(token: str, key: VerifyKey) -> dict[str, object]:
    """The claims of a token that `key` has signed. Raises AuthError."""
    try:
        payload = JWS.decode(token, key.material, algorithms=[key.alg])
    except (PyJWTError, ValueError, TypeError, NotImplementedError):
        raise _invalid("signature") from None
    try:
        claims = _json(payload)
    except (ValueError, RecursionError):
        raise _invalid("claims") from None
    if not isinstance(claims, dict):
        raise _invalid("claims")
    return claims


def _json(data: bytes) -> Any:
    """JSON as the standard means it. Raises ValueError for a name given twice, NaN and bad text.

    Which of two equal names counts differs between parsers, so a token with two has two meanings.
    """
    return json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_refuse)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is given twice")
    return found


def _refuse(constant: str) -> object:
    raise ValueError(f"{constant} is not JSON")


def _moment(claims: Mapping[str, object], name: str) -> float | None:
    value = claims.get(name)
    if value is None and name not in claims:
        return None
    # bool is an int in Python, and 1e999 is read as infinity: a token that never expires
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _invalid(name, f"The claim {name} is not a number.")
    try:
        seconds = float(value)
    except OverflowError:
        raise _invalid(name, f"The claim {name} is not a date.") from None
    if not math.isfinite(seconds):
        raise _invalid(name, f"The claim {name} is not a date.")
    return seconds


def read_claims(
    claims: Mapping[str, Any], kid: str, names: Mapping[str, Sensitivity] = NAMES
) -> Principal:
    """The Principal that verified claims describe. Raises AuthError for claims we cannot honour.

    A claim that limits and cannot be read must not be dropped. `models`, `budgets` and `labels`
    refuse the token; `sensitivity` counts as the strictest. `models: []` is refused as well: to
    the issuer it may mean none, while to a Principal it would mean all.
    """
    tenant = _text(claims, "tenant")
    if tenant is None:
        raise _invalid("tenant", "The token has no tenant claim.")
    org = _text(claims, "org")
    for name, value in (("tenant", tenant), ("org", org)):
        if value is not None and not NAME.fullmatch(value):
            raise _invalid(name, f"The claim {name} is not a plain name.")
    level = claims.get("sensitivity")
    floor = names.get(level.strip().lower()) if isinstance(level, str) else None
    try:
        slo = SloClass(_text(claims, "slo") or SloClass.INTERACTIVE)
    except ValueError:
        raise _invalid("slo", "The claim slo is neither interactive nor batch.") from None
    budgets = _texts(claims, "budgets", BUDGETS_MAX)
    if not all(SCOPE.fullmatch(scope) for scope in budgets):
        raise _invalid("budgets", "The claim budgets holds something that is not kind:name.")
    return Principal(
        tenant=tenant,
        subject=_text(claims, "sub") or tenant,
        key_id=kid,
        org=org,
        models=_texts(claims, "models", MODELS_MAX),
        sensitivity_floor=floor,
        label_malformed="sensitivity" in claims and floor is None,
        slo=slo,
        budgets=(*budgets, *_labels(claims)),
    )


def _text(claims: Mapping[str, Any], name: str) -> str | None:
    """A text claim; None when absent. Raises AuthError for anything else."""
    if name not in claims:
        return None
    value = claims[name]
    if not isinstance(value, str) or not 0 < len(value) <= TEXT_CHARS_MAX or not _clean(value):
        raise _invalid(name, f"The claim {name} is not a text of 1 to {TEXT_CHARS_MAX} characters.")
    return value


def _texts(claims: Mapping[str, Any], name: str, most: int) -> tuple[str, ...]:
    """A list of texts without repetitions; empty when absent. Raises AuthError."""
    if name not in claims:
        return ()
    values = claims[name]
    if not isinstance(values, list) or not 0 < len(values) <= most:
        raise _invalid(name, f"The claim {name} is not a list of 1 to {most} texts.")
    for value in values:
        if not isinstance(value, str) or not 0 < len(value) <= TEXT_CHARS_MAX or not _clean(value):
            raise _invalid(name, f"The claim {name} is not a list of texts.")
    return tuple(dict.fromkeys(values))


def _labels(claims: Mapping[str, Any]) -> tuple[str, ...]:
    """The claim `labels`, {"team": "vision"}, as scopes: label:team=vision. Raises AuthError."""
    if "labels" not in claims:
        return ()
    labels = claims["labels"]
    if not isinstance(labels, dict) or not 0 < len(labels) <= LABELS_MAX:
        raise _invalid("labels", f"The claim labels is not an object of 1 to {LABELS_MAX} labels.")
    for kind, value in labels.items():
        readable = isinstance(value, str) and LABEL_VALUE.fullmatch(value)
        if not readable or not LABEL_KIND.fullmatch(kind):
            raise _invalid("labels", "The claim labels holds something that is not a plain name.")
    return tuple(f"label:{kind}={labels[kind]}" for kind in sorted(labels))


def _clean(text: str) -> bool:
    """No control characters and no half of a surrogate pair: such text breaks logs and keys."""
    return text.isprintable()
