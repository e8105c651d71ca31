"""Keys and tokens for the tests of authentication: honest ones, and any forgery one can spell."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from functools import lru_cache
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt import PyJWS

from gateway.auth import Authenticator
from gateway.jwks import KeyRing
from gateway.keys import SigningKey, from_secret

NOW = 1_800_000_000.0
ANY = PyJWS()  # unlike ours, it signs with every algorithm there is
SECRET = b"a-secret-of-at-least-32-bytes-of-length"


@lru_cache
def keys() -> dict[str, SigningKey]:
    """One key of each algorithm; RSA is slow to make, so they are made once."""
    return {
        "hs": from_secret("hs", SECRET),
        "rs": SigningKey(kid="rs", alg="RS256", material=rsa.generate_private_key(65537, 2048)),
        "es": SigningKey(kid="es", alg="ES256", material=ec.generate_private_key(ec.SECP256R1())),
        "ed": SigningKey(kid="ed", alg="EdDSA", material=ed25519.Ed25519PrivateKey.generate()),
    }


def authenticator(ring: KeyRing | None = None, **options: Any) -> Authenticator:
    ring = ring or KeyRing([key.verify_key() for key in keys().values()])
    return Authenticator(ring, issuer="yuzui", audience="yuzui", **options)


def claims(**more: object) -> dict[str, object]:
    """Good claims; a value of ... takes one away."""
    base: dict[str, object] = {
        "iss": "yuzui",
        "aud": "yuzui",
        "sub": "app",
        "exp": NOW + 600,
        "iat": NOW,
        "tenant": "acme",
    }
    return {k: v for k, v in {**base, **more}.items() if v is not ...}


def token(kid: str = "ed", header: dict[str, Any] | None = None, **more: object) -> str:
    """A token that is honestly signed by our key `kid`, whatever it claims."""
    return signed_bytes(kid, json.dumps(claims(**more)).encode(), header)


def signed_bytes(kid: str, payload: bytes, header: dict[str, Any] | None = None) -> str:
    key = keys()[kid]
    headers = {"kid": kid, **(header or {})}
    return ANY.encode(payload, key.material, algorithm=key.alg, headers=headers)


def b64(data: bytes | dict[str, Any] | str) -> str:
    raw = json.dumps(data).encode() if isinstance(data, dict) else data
    raw = raw.encode() if isinstance(raw, str) else raw
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def raw(header: dict[str, Any] | str, body: dict[str, Any] | str, signature: bytes = b"x") -> str:
    """Three parts exactly as given."""
    return f"{b64(header)}.{b64(body)}.{b64(signature)}"


def hmac_signed(header: dict[str, Any] | str, body: dict[str, Any] | str, secret: bytes) -> str:
    """An HS256 signature with any secret, under any header."""
    signed = f"{b64(header)}.{b64(body)}"
    return f"{signed}.{b64(hmac.new(secret, signed.encode(), hashlib.sha256).digest())}"


def public_pem(kid: str) -> bytes:
    public = keys()[kid].material.public_key()
    return bytes(
        public.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )


def flip_last(text: str) -> str:
    """The token with one bit of its signature changed."""
    head, _, signature = text.rpartition(".")
    data = bytearray(base64.urlsafe_b64decode(signature + "=" * (-len(signature) % 4)))
    data[0] ^= 1
    return f"{head}.{b64(bytes(data))}"
