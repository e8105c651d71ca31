"""SERVES. Listens, authenticates, meters, keeps the books; calls policies to decide.

At the top stands what one request passes through, in the order of `serve`. The rooms, each of which
knows only those before it (tests/arch holds that):

    config    settings                            wire      one module per client dialect
    redis     the connection to the books         admin     the admin port, and its client
    ledger    the books, and their Lua            archive   rows to Parquet, and back
    prices    price cards                         tco       buy or rent
    reports   figures over rows                   machine   what `yuzui up` starts
    pool      the waiting room, heartbeats        commands  one module per command of `yuzui`
"""
