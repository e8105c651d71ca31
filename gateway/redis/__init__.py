"""The connection to Redis or Valkey, and a server of our own for those who have none.

`link` is the only module that opens a connection to the books, and `embedded` the only one that
starts a server. What is said over the link is up to others: `gateway.ledger`, `gateway.pool`.
"""
