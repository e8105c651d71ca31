"""The books. Money is held before a request is sent and posted after it, in Redis, by Lua.

`ledger.Ledger` is what a request talks to; it is put together, half by half, from `watch` (whether
the server still has our books), `control` (leases, sweeping, reading rows) and `budgets` (defined,
changed, audited). `rows` says what one attempt leaves behind, `spool` notes on disk what the books
could not take. Knows Redis through `gateway.redis` alone, and nothing of HTTP or of an exchange.
"""
