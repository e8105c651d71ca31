"""The ledger's long memory: rows flow exactly once from Redis to Parquet, and are read together.

Only `files` and `query` need pyarrow and DuckDB (the extra `archive`); `extra` loads them when an
archive is worked with, so that a gateway neither needs nor imports them.
"""
