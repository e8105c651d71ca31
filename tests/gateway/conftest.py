"""Fixtures for every test of the gateway."""

from tests.gateway.redis_servers import (
    _redis6,
    _valkey,
    books_url,
    own_server,
    redis6_url,
    redis_url,
    valkey_url,
)

__all__ = [
    "_redis6", "_valkey", "books_url", "own_server", "redis6_url", "redis_url", "valkey_url",
]  # fmt: skip
