"""Keys: loading those that verify tokens, making the private one, issuing tokens with it.

A key carries its algorithm (RFC 8725, 3.1): whoever made the key chose it, and a token can only
agree. Weak keys are refused when they are loaded, not when somebody has used them: an HMAC with
an empty secret is valid, and one neighbour's forged payments came from exactly that.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt import PyJWS, PyJWTError, get_algorithm_by_name

from gateway.config.schema import Algorithm, KeyConfig
from policies.types import Sensitivity, SloClass

SECRET_BYTES_MIN = 32  # RFC 7518, 3.2: a key at least as long as the hash of HS256
RSA_BITS_MIN = 2048  # RFC 7518, 3.3
FILE_BYTES_MAX = 65_536  # a key in PEM is at most a few thousand
KID_CHARS_MAX = 128
TTL_S_MAX = 10 * 366 * 86_400  # ten years; longer is a mistyped unit
PRIVATE_KEY_FILE = "signing-key.pem"

# The kinds of names that tokens carry. They become parts of Redis keys and of `kind:name` scopes,
# so neither colon nor brace nor control character may be in one. Letters of any script may.
NAME = re.compile(r"[^\W_][\w.@-]{0,127}")
SCOPE = re.compile(r"[a-z]{1,16}:[\w.@/*=-]{1,128}")
# A label is kind=value, and its budget's scope label:kind=value.
LABEL_KIND = re.compile(r"[A-Za-z][\w.-]{0,31}")
LABEL_VALUE = re.compile(r"[\w.@/*-]{1,80}")

JWS = PyJWS(algorithms=["HS256", "RS256", "ES256", "EdDSA"])
_OF_JWK: Mapping[str, Algorithm] = {  # by kty and crv
    "RSA": "RS256",
    "EC P-256": "ES256",
    "OKP Ed25519": "EdDSA",
}


class KeyUnusable(Exception):
    """A key that must not be used. The text names it and says why; it never holds the key."""


class VerifyKey(msgspec.Struct, frozen=True, kw_only=True):
    """One key that may have signed a token. `material` is the library's object, or the secret."""

    kid: str
    alg: Algorithm
    material: Any

    def __repr__(self) -> str:
        return f"VerifyKey(kid={self.kid!r}, alg={self.alg})"


class SigningKey(msgspec.Struct, frozen=True, kw_only=True):
    """One key that signs."""

    kid: str
    alg: Algorithm
    material: Any

    def __repr__(self) -> str:
        return f"SigningKey(kid={self.kid!r}, alg={self.alg})"

    def verify_key(self) -> VerifyKey:
        """Its public half (for HS256 the same secret)."""
        public = self.material if self.alg == "HS256" else self.material.public_key()
        return VerifyKey(kid=self.kid, alg=self.alg, material=public)


def from_secret(kid: str, secret: bytes) -> SigningKey:
    """An HS256 key. Raises KeyUnusable when the secret is empty or too short to be one."""
    if len(secret) < SECRET_BYTES_MIN:
        raise KeyUnusable(
            f"key {kid!r}: an HS256 secret of {len(secret)} bytes is refused; "
            f"it needs at least {SECRET_BYTES_MIN} (openssl rand -hex 32 makes one)"
        )
    return SigningKey(kid=kid, alg="HS256", material=secret)


def _start_of(file: Path) -> bytes:
    """As much as a key may have; a device has no end. Raises OSError."""
    with file.open("rb") as opened:
        return opened.read(FILE_BYTES_MAX)


def from_config(config: KeyConfig) -> VerifyKey:
    """The key that a section of `auth.keys` describes. Raises KeyUnusable."""
    if config.secret is not None:
        return from_secret(config.kid, config.secret.reveal().encode()).verify_key()
    file = config.secret_file or config.public_key_file
    if file is None:
        raise KeyUnusable(f"key {config.kid!r}: neither a secret nor a file is given")
    try:
        content = _start_of(file)
    except OSError as error:
        raise KeyUnusable(f"key {config.kid!r}: {file}: {error.strerror}") from None
    if config.secret_file is not None:
        return from_secret(config.kid, content.rstrip(b"\r\n")).verify_key()
    try:
        public = serialization.load_pem_public_key(content)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise KeyUnusable(f"key {config.kid!r}: {file} is not a public key in PEM") from None
    return VerifyKey(kid=config.kid, alg=config.alg, material=_fit(public, config.alg, config.kid))


def from_jwk(jwk: Mapping[str, object]) -> VerifyKey:
    """A public key from a JWKS. Raises KeyUnusable for whatever should not verify tokens."""
    kid = jwk.get("kid")
    if not isinstance(kid, str) or not 0 < len(kid) <= KID_CHARS_MAX:
        raise KeyUnusable("a key without a usable kid")
    kty, curve = jwk.get("kty"), jwk.get("crv", "")
    alg = (
        _OF_JWK.get(f"{kty} {curve}".strip())
        if isinstance(kty, str) and isinstance(curve, str)
        else None
    )
    if alg is None:  # among them `oct`: a secret in a public document is none
        raise KeyUnusable(f"key {kid!r}: not a kind of key that is used here")
    if jwk.get("alg", alg) != alg:
        raise KeyUnusable(f"key {kid!r}: its alg is not {alg}")
    if jwk.get("use", "sig") != "sig":
        raise KeyUnusable(f"key {kid!r}: not for signatures")
    operations = jwk.get("key_ops", ["verify"])
    if not isinstance(operations, list) or "verify" not in operations:
        raise KeyUnusable(f"key {kid!r}: not for verifying")
    if "d" in jwk:
        raise KeyUnusable(f"key {kid!r}: its private half is published; it can prove nothing")
    try:
        public = get_algorithm_by_name(alg).from_jwk(dict(jwk))
    except (PyJWTError, ValueError, TypeError, UnsupportedAlgorithm):
        raise KeyUnusable(f"key {kid!r}: cannot be read") from None
    return VerifyKey(kid=kid, alg=alg, material=_fit(public, alg, kid))


def _fit(public: object, alg: Algorithm, kid: str) -> object:
    """`public` if it is a strong key of `alg`. ES256 means P-256, and EdDSA Ed25519 alone."""
    if alg == "RS256" and isinstance(public, RSAPublicKey):
        if public.key_size < RSA_BITS_MIN:
            raise KeyUnusable(f"key {kid!r}: RSA of {public.key_size} bits, below {RSA_BITS_MIN}")
        return public
    if alg == "ES256" and isinstance(public, EllipticCurvePublicKey):
        if isinstance(public.curve, SECP256R1):
            return public
    elif alg == "EdDSA" and isinstance(public, Ed25519PublicKey):
        return public
    raise KeyUnusable(f"key {kid!r}: not a key for {alg}")


def make_private_key(data_dir: Path) -> SigningKey:
    """The installation's own Ed25519 key, made on the first call and read ever after.

    It lies in `data_dir`/signing-key.pem with mode 0600 in a folder of mode 0700. Several
    processes may call at once: the file appears whole or not at all, and the first one wins.
    Raises KeyUnusable when the file is not a key or others may read it.
    """
    file = data_dir / PRIVATE_KEY_FILE
    if not file.exists():
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        pem = Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        draft = data_dir / f".{PRIVATE_KEY_FILE}.{secrets.token_hex(8)}"
        write_private(draft, pem)
        with contextlib.suppress(FileExistsError):
            os.link(draft, file)  # unlike rename, it never replaces a key that is already there
        draft.unlink()
    return load_private_key(file)


def load_private_key(file: Path) -> SigningKey:
    """An Ed25519 signing key in PEM. Its kid is the RFC 7638 thumbprint. Raises KeyUnusable."""
    try:
        mode = file.stat().st_mode
        content = _start_of(file)
    except OSError as error:
        raise KeyUnusable(f"{file}: {error.strerror}") from None
    if mode & 0o077:
        raise KeyUnusable(f"{file}: others may read it; run `chmod 600 {file}`")
    try:
        private = serialization.load_pem_private_key(content, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise KeyUnusable(f"{file}: not a private key in PEM") from None
    if not isinstance(private, Ed25519PrivateKey):
        raise KeyUnusable(f"{file}: not an Ed25519 key")
    jwk = public_jwk(VerifyKey(kid="", alg="EdDSA", material=private.public_key()))
    canonical = json.dumps(
        {name: jwk[name] for name in ("crv", "kty", "x")}, separators=(",", ":"), sort_keys=True
    )
    return SigningKey(
        kid=_b64url(hashlib.sha256(canonical.encode()).digest()), alg="EdDSA", material=private
    )


def public_jwk(key: VerifyKey) -> dict[str, object]:
    """The key as an entry of a JWKS. Raises KeyUnusable for a secret one."""
    if key.alg == "HS256":
        raise KeyUnusable("a shared secret has no public form")
    jwk = cast(
        "dict[str, object]", get_algorithm_by_name(key.alg).to_jwk(key.material, as_dict=True)
    )
    jwk.pop("key_ops", None)
    return {**jwk, "kid": key.kid, "alg": key.alg, "use": "sig"}


def write_private(file: Path, content: bytes) -> None:
    """Write `content` so that only this user can read it, from the first byte on."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        os.fchmod(descriptor, 0o600)  # the file may have been there, with a wider mode
        stream.write(content)


def issue(
    key: SigningKey,
    *,
    tenant: str,
    subject: str,
    ttl_s: int,
    issuer: str,
    audience: str,
    org: str | None = None,
    models: Sequence[str] = (),
    budgets: Sequence[str] = (),
    sensitivity: Sensitivity | None = None,
    slo: SloClass | None = None,
    now_s: float | None = None,
) -> str:
    """A signed token that `auth` accepts for `ttl_s` seconds from `now_s` (None: the clock).

    models: public names that may be asked for; empty: all. budgets: further scopes, kind:name.
    Raises ValueError for claims that would be refused when the token is used.
    """
    if not 0 < ttl_s <= TTL_S_MAX:
        raise ValueError(f"a token of {ttl_s} s is refused; 1 to {TTL_S_MAX} are possible")
    for what, name in (("tenant", tenant), *([] if org is None else [("org", org)])):
        if not NAME.fullmatch(name):
            wanted = "letters, digits, . _ @ and -, at most 128"
            raise ValueError(f"{what} {name[:140]!r} is not a name: {wanted}")
    for scope in budgets:
        if not SCOPE.fullmatch(scope):
            raise ValueError(f"budget {scope[:140]!r} is not a scope such as team:search")
    now = int(time.time() if now_s is None else now_s)
    claims: dict[str, object] = {
        "iss": issuer,
        "aud": audience,
        "sub": subject,
        "iat": now,
        "exp": now + ttl_s,
        "jti": secrets.token_hex(8),
        "tenant": tenant,
        "org": org,
        "models": list(models) or None,
        "budgets": list(budgets) or None,
        "sensitivity": None if sensitivity is None else sensitivity.name.lower(),
        "slo": None if slo is None else slo.value,
    }
    payload = msgspec.json.encode({k: v for k, v in claims.items() if v is not None})
    return JWS.encode(payload, key.material, algorithm=key.alg, headers={"kid": key.kid})


def _b64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
