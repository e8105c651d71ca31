from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, rsa
from hypothesis import given
from hypothesis import strategies as st
from jwt import get_algorithm_by_name

from gateway import jwks
from gateway.auth import AuthError
from gateway.jwks import Jwks, JwksError, KeyRing, file_fetch, parse
from gateway.keys import SigningKey, public_jwk
from tests.gateway.auth_kit import NOW, authenticator, keys, token


def entry(kid: str) -> dict[str, Any]:
    return public_jwk(keys()[kid].verify_key())


def document(*entries: object) -> bytes:
    return json.dumps({"keys": entries}).encode()


class Issuer:
    """Serves a key set, or fails, and counts."""

    def __init__(self, *kids: str) -> None:
        self.answer: bytes | Exception = document(*(entry(kid) for kid in kids))
        self.asked = 0
        self.now_s = 0.0
        self.gate: asyncio.Event | None = None

    async def fetch(self) -> bytes:
        self.asked += 1
        if self.gate is not None:
            await self.gate.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def jwks(self) -> Jwks:
        return Jwks(self.fetch, clock=lambda: self.now_s)


def foreign(key: Any, algorithm: str) -> dict[str, Any]:
    made = get_algorithm_by_name(algorithm).to_jwk(key.public_key(), as_dict=True)
    return {**made, "kid": "x"}


LEFT_OUT: list[tuple[str, dict[str, Any]]] = [
    ("a secret in a public document", {"kty": "oct", "k": "c2VjcmV0", "kid": "x"}),
    ("for encryption", {**entry("rs"), "use": "enc"}),
    ("for signing only", {**entry("rs"), "key_ops": ["sign"]}),
    ("key_ops not a list", {**entry("rs"), "key_ops": "verify"}),
    ("another algorithm", {**entry("rs"), "alg": "RS512"}),
    ("HS256 on an RSA key", {**entry("rs"), "alg": "HS256"}),
    ("no kid", {k: v for k, v in entry("ed").items() if k != "kid"}),
    ("kid too long", {**entry("ed"), "kid": "k" * 129}),
    ("kid a number", {**entry("ed"), "kid": 7}),
    ("its private half", {**entry("ed"), "d": "AAAA"}),
    ("RSA of 1024 bits", foreign(rsa.generate_private_key(65537, 1024), "RS256")),  # noqa: S505
    ("P-384", foreign(ec.generate_private_key(ec.SECP384R1()), "ES384")),
    ("Ed448", foreign(ed448.Ed448PrivateKey.generate(), "EdDSA")),
    ("a point off the curve", {**entry("es"), "x": entry("es")["y"]}),
    ("a part missing", {k: v for k, v in entry("rs").items() if k != "n"}),
    ("a part of another type", {**entry("es"), "x": 7}),
    ("kty unknown", {**entry("ed"), "kty": "RSA2"}),
    ("kty a list", {**entry("ed"), "kty": ["OKP"]}),
]


@pytest.mark.parametrize("bad", [row[1] for row in LEFT_OUT], ids=[row[0] for row in LEFT_OUT])
def test_a_key_that_is_not_for_us_is_left_out_and_its_neighbour_stays(bad: dict[str, Any]) -> None:
    good = {**entry("ed"), "kid": "good"}
    assert list(parse(document(bad, good))) == ["good"]


_ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9) | st.just("EdDSA"),
    lambda some: (
        st.lists(some, max_size=2) | st.dictionaries(st.text(max_size=3), some, max_size=2)
    ),
    max_leaves=4,
)


@given(st.dictionaries(st.sampled_from(sorted(entry("rs") | entry("es"))), _ANY))
def test_any_key_set_is_read_or_refused(more: dict[str, object]) -> None:
    for kid in ("rs", "es", "ed"):
        assert len(parse(document({**entry(kid), **more}))) <= 1


REFUSED: list[tuple[str, bytes]] = [
    ("not JSON", b"<html>"),
    ("not UTF-8", b'{"keys":["\xff"]}'),
    ("a list", b"[]"),
    ("no keys", b"{}"),
    ("keys not a list", b'{"keys":{}}'),
    ("a key that is none", b'{"keys":[1]}'),
    ("nested 100,000 deep", b'{"keys":' + b"[" * 100_000),
    ("too large", b" " * (jwks.BYTES_MAX + 1)),
    ("too many", document(*([{}] * 101))),
    ("one kid twice", document(entry("ed"), {**entry("es"), "kid": "ed"})),
]


@pytest.mark.parametrize("text", [row[1] for row in REFUSED], ids=[row[0] for row in REFUSED])
async def test_a_document_that_is_refused_leaves_the_keys_in_use(text: bytes) -> None:
    with pytest.raises(JwksError):
        parse(text)
    issuer = Issuer("ed")
    source = issuer.jwks()
    await source.refresh()
    issuer.answer = text
    await source.refresh()
    assert list(source.keys) == ["ed"]
    assert source.version == 1


def test_all_three_kinds_are_read_and_their_algorithm_is_theirs() -> None:
    without_alg = [
        {k: v for k, v in entry(kid).items() if k != "alg"} for kid in ("rs", "es", "ed")
    ]
    found = parse(document(*without_alg))
    assert {key.kid: key.alg for key in found.values()} == {
        "rs": "RS256",
        "es": "ES256",
        "ed": "EdDSA",
    }


async def test_known_keys_work_while_the_issuer_is_down_for_a_day() -> None:
    issuer = Issuer("ed")
    source = issuer.jwks()
    await source.refresh()
    issuer.answer = ConnectionError("down")
    for hour in range(1, 25):
        issuer.now_s = hour * 3600
        await source.refresh()
    auth = authenticator(KeyRing([], source))
    assert (await auth.principal([f"Bearer {token('ed')}"], NOW)).tenant == "acme"


async def test_a_rotation_brings_the_new_key_and_takes_the_old_one() -> None:
    issuer = Issuer("ed")
    source = issuer.jwks()
    ring = KeyRing([], source)
    auth = authenticator(ring)
    await source.refresh()
    old, new = [f"Bearer {token('ed')}"], [f"Bearer {token('es')}"]
    await auth.principal(old, NOW)
    assert auth.cached(old, NOW) is not None
    issuer.answer = document(entry("es"))
    issuer.now_s = 61
    assert (await auth.principal(new, NOW)).key_id == "es"  # the unknown kid asked for it
    assert auth.cached(old, NOW) is None
    with pytest.raises(AuthError) as caught:
        await auth.principal(old, NOW)
    assert caught.value.why == "kid"


async def test_a_key_replaced_under_its_old_name_ends_the_old_tokens() -> None:
    issuer = Issuer("ed")
    source = issuer.jwks()
    auth = authenticator(KeyRing([], source))
    values = [f"Bearer {token('ed')}"]
    await auth.principal(values, NOW)
    await auth.principal(values, NOW)
    assert auth.cached(values, NOW) is not None
    fresh = SigningKey(kid="ed", alg="ES256", material=ec.generate_private_key(ec.SECP256R1()))
    issuer.answer = document(public_jwk(fresh.verify_key()))
    await source.refresh()
    assert source.version == 2
    assert auth.cached(values, NOW) is None


async def test_a_storm_of_unknown_kids_fetches_once_a_minute() -> None:
    issuer = Issuer("ed")
    source = issuer.jwks()
    await source.refresh()
    assert issuer.asked == 1
    for second in range(1, 121):
        issuer.now_s = second
        for i in range(20):
            assert await source.find(f"invented-{second}-{i}") is None
    assert issuer.asked == 3  # at 0, 60 and 120 seconds


async def test_those_who_wait_share_one_fetch_and_do_not_wait_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(jwks, "WAIT_S", 0.05)
    issuer = Issuer("ed")
    issuer.gate = asyncio.Event()
    source = issuer.jwks()
    assert await asyncio.gather(*(source.find("ed") for _ in range(50))) == [None] * 50
    assert issuer.asked == 1
    issuer.gate.set()
    found = await source.find("ed")
    assert found is not None
    assert issuer.asked == 1


async def test_until_the_first_good_set_it_tries_more_often() -> None:
    issuer = Issuer("ed")
    issuer.answer, good = OSError("down"), issuer.answer
    source = issuer.jwks()
    ring = KeyRing([], source)
    await source.refresh()
    assert not ring.ready
    issuer.answer, issuer.now_s = good, jwks.FIRST_RETRY_S
    assert await ring.find("ed") is not None
    assert ring.ready


async def test_the_watch_loads_keeps_fresh_and_ends() -> None:
    issuer = Issuer("ed")
    source = Jwks(issuer.fetch, interval_s=0.01)
    ring = KeyRing([], source)
    await ring.start()
    await ring.start()  # a second call starts no second watch
    assert "ed" in source.keys
    issuer.answer = document(entry("es"))
    async with asyncio.timeout(30):
        while "es" not in source.keys:  # noqa: ASYNC110 - the watch has no event
            await asyncio.sleep(0.01)
    assert list(source.keys) == ["es"]
    await ring.stop()
    asked = issuer.asked
    await asyncio.sleep(0.05)
    assert issuer.asked == asked
    await ring.stop()
    await KeyRing([]).start()


async def test_a_fixed_key_goes_before_one_of_the_set() -> None:
    other = SigningKey(kid="ed", alg="ES256", material=ec.generate_private_key(ec.SECP256R1()))
    issuer = Issuer("ed")
    ring = KeyRing([other.verify_key()], issuer.jwks())
    found = await ring.find("ed")
    assert found is not None
    assert found.alg == "ES256"
    assert await ring.find("k" * 200) is None
    assert issuer.asked == 0


async def test_a_file_is_read_again_when_it_has_changed(tmp_path: Path) -> None:
    file = tmp_path / "jwks.json"
    file.write_bytes(document(entry("ed")))
    fetch = file_fetch(file)
    assert await fetch() == document(entry("ed"))
    assert await fetch() is None
    replacement = tmp_path / "new"
    replacement.write_bytes(document(entry("es")))
    os.replace(replacement, file)
    assert await fetch() == document(entry("es"))
    file.unlink()
    source = Jwks(fetch)
    await source.refresh()
    assert not source.loaded
