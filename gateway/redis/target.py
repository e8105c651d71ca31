"""Where a Redis URL points."""

from __future__ import annotations

import re
from urllib.parse import parse_qs, unquote, urlsplit

from policies.types import Value


class Target(Value, frozen=True, kw_only=True):
    """Where a Redis URL points. `path` is a unix socket; else host and port, maybe with TLS."""

    path: str | None = None
    host: str = "localhost"
    port: int = 6379
    tls: bool = False
    ca_file: str | None = None
    username: str | None = None
    password: str | None = None
    db: int = 0

    def __repr__(self) -> str:
        return f"Target({self})"

    def __str__(self) -> str:
        """For people; a password has no business in a log."""
        return f"{self.path or f'{self.host}:{self.port}'}/{self.db}"


def parse_url(url: str) -> Target:
    """redis://[[user]:password@]host[:port][/db], rediss:// for TLS, unix:///path[?db=n].

    Options in the query: db, password, username, ssl_ca_certs. Raises ValueError without
    repeating the URL, which may hold a password.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("redis", "rediss", "unix"):
        raise ValueError("a Redis URL begins with redis://, rediss:// or unix://")
    options = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    unknown = options.keys() - {"db", "password", "username", "ssl_ca_certs"}
    if unknown:
        raise ValueError(f"unknown option in the Redis URL: {', '.join(sorted(unknown))}")
    path = unquote(parts.path) if parts.scheme == "unix" else None
    db = options.get("db") or ("" if path else parts.path.strip("/")) or "0"
    if path == "" or not re.fullmatch("[0-9]{1,9}", db):
        raise ValueError("a Redis URL names a socket path, and its database by number")
    try:
        (parts.hostname or "").encode("idna")
    except UnicodeError:
        raise ValueError("the host in the Redis URL is no name") from None
    if parts.port == 0:
        raise ValueError("a port in a Redis URL is 1 to 65535")
    return Target(
        path=path,
        host=parts.hostname or "localhost",
        port=parts.port or 6379,
        tls=parts.scheme == "rediss",
        ca_file=options.get("ssl_ca_certs"),
        username=unquote(parts.username) if parts.username else options.get("username"),
        password=unquote(parts.password) if parts.password else options.get("password"),
        db=int(db),
    )
