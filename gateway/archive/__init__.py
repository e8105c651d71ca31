"""The ledger's long memory: rows flow exactly once from Redis to Parquet, and are read together.

How rows stand in the stream, and how far the archive is, the ledger knows (`ledger.entries`,
`ledger.marks`). Only `files`, `tidy` and `query` need pyarrow and DuckDB (the extra `archive`);
`extra` loads them when an archive is worked with, so that a gateway neither needs nor imports them.
"""
