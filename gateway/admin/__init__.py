"""The admin port: what the command line and the operator's tools ask of a running gateway.

`admin` and `budgets` answer there; `client` is the command line's side of it. Nothing of this room
is reached from the public port (`gateway.routes`).
"""
