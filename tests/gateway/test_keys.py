from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from gateway import keys
from gateway.config.read import Secret
from gateway.config.schema import KeyConfig
from gateway.keys import KeyUnusable, from_config, from_secret, issue, make_private_key, public_jwk
from tests.gateway.auth_kit import keys as kit_keys
from tests.gateway.auth_kit import public_pem


def test_the_private_key_is_made_once_and_is_for_its_owner_alone(tmp_path: Path) -> None:
    data_dir = tmp_path / "a" / "data"
    first = make_private_key(data_dir)
    second = make_private_key(data_dir)
    file = data_dir / keys.PRIVATE_KEY_FILE
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(data_dir.stat().st_mode) == 0o700
    assert [p.name for p in data_dir.iterdir()] == [keys.PRIVATE_KEY_FILE]
    assert first.kid == second.kid
    assert first.material.public_key() == second.material.public_key()
    assert len(first.kid) == 43  # a SHA-256 thumbprint


def test_processes_that_start_together_agree_on_one_key(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(make_private_key, [tmp_path] * 8))
    assert len({key.kid for key in made}) == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_a_private_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    make_private_key(tmp_path)
    file = tmp_path / keys.PRIVATE_KEY_FILE
    file.chmod(0o640)
    with pytest.raises(KeyUnusable, match="chmod 600"):
        make_private_key(tmp_path)


def test_what_is_no_private_key_of_ours_is_refused(tmp_path: Path) -> None:
    file = tmp_path / keys.PRIVATE_KEY_FILE
    keys.write_private(file, b"nonsense")
    with pytest.raises(KeyUnusable, match="not a private key"):
        make_private_key(tmp_path)
    other = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    keys.write_private(file, other)
    with pytest.raises(KeyUnusable, match="Ed25519"):
        make_private_key(tmp_path)
    with pytest.raises(KeyUnusable, match="No such file"):
        keys.load_private_key(tmp_path / "absent")


def test_writing_a_private_file_narrows_the_mode_it_had(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("old")
    file.chmod(0o644)
    keys.write_private(file, b"new")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.read_bytes() == b"new"


@pytest.mark.parametrize("secret", [b"", b"short", b"x" * 31])
def test_an_empty_or_short_secret_is_refused_wherever_it_comes_from(
    secret: bytes, tmp_path: Path
) -> None:
    file = tmp_path / "secret"
    file.write_bytes(secret + b"\n")
    with pytest.raises(KeyUnusable, match="at least 32"):
        from_secret("k", secret)
    with pytest.raises(KeyUnusable, match="at least 32"):
        from_config(KeyConfig(kid="k", alg="HS256", secret_file=file))
    if secret:
        with pytest.raises(KeyUnusable, match="at least 32"):
            from_config(KeyConfig(kid="k", alg="HS256", secret=Secret(secret.decode())))


def test_the_newline_at_the_end_of_a_secret_file_is_not_part_of_it(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_bytes(b"s" * 32 + b"\r\n")
    assert from_config(KeyConfig(kid="k", alg="HS256", secret_file=file)).material == b"s" * 32


@pytest.mark.parametrize(("kid", "alg"), [("rs", "RS256"), ("es", "ES256"), ("ed", "EdDSA")])
def test_a_public_key_file_must_fit_its_algorithm(kid: str, alg: str, tmp_path: Path) -> None:
    file = tmp_path / "key.pem"
    file.write_bytes(public_pem(kid))
    for wanted in ("RS256", "ES256", "EdDSA"):
        config = KeyConfig(kid=kid, alg=wanted, public_key_file=file)  # type: ignore[arg-type]
        if wanted == alg:
            assert from_config(config).alg == alg
        else:
            with pytest.raises(KeyUnusable, match=f"not a key for {wanted}"):
                from_config(config)


def test_weak_absent_and_private_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "key.pem"
    config = KeyConfig(kid="k", alg="RS256", public_key_file=file)
    with pytest.raises(KeyUnusable, match="No such file"):
        from_config(config)
    endless = KeyConfig(kid="k", alg="RS256", public_key_file=Path("/dev/zero"))
    with pytest.raises(KeyUnusable, match="is not a public key in PEM"):
        from_config(endless)
    weak = rsa.generate_private_key(65537, 1024)  # noqa: S505
    file.write_bytes(
        weak.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    with pytest.raises(KeyUnusable, match="1024 bits"):
        from_config(config)
    file.write_bytes(
        weak.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    with pytest.raises(KeyUnusable, match="not a public key"):
        from_config(config)


def test_no_key_prints_itself() -> None:
    for key in kit_keys().values():
        assert "material" not in f"{key!r} {key} {key.verify_key()!r}"
    assert b"secret" not in repr(kit_keys()["hs"]).encode()


def test_a_secret_has_no_public_form() -> None:
    with pytest.raises(KeyUnusable, match="no public form"):
        public_jwk(kit_keys()["hs"].verify_key())


@pytest.mark.parametrize(
    "wrong",
    [
        {"ttl_s": 0},
        {"ttl_s": -1},
        {"ttl_s": 10**10},
        {"tenant": ""},
        {"tenant": "a:b"},
        {"tenant": "a\nb"},
        {"org": ""},
        {"budgets": ["acme"]},
        {"budgets": ["team:a{b}"]},
    ],
)
def test_a_token_that_would_be_refused_is_not_issued(wrong: dict[str, object]) -> None:
    good: dict[str, object] = {"tenant": "acme", "ttl_s": 60}
    with pytest.raises(ValueError, match=r"refused|not a"):
        issue(
            kit_keys()["ed"],
            subject="s",
            issuer="i",
            audience="a",
            **{**good, **wrong},  # type: ignore[arg-type]
        )
