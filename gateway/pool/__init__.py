"""The gateway's side of the pool of workers.

Who announces itself (`heartbeats`), where requests wait for a slot (`waiting`), and the keys by
which a worker's memory of a prompt is known (`prefixes`). Which worker is chosen is decided in
`policies`; who is in the pool, and how each of them is, is kept in `backends.pool`.
"""
