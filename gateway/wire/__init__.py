"""One module per client dialect: its bytes to a ChatRequest, and the answer back.

`base` says what a dialect is. A dialect reads an allow-list of typed fields and knows neither who
asks nor where the answer comes from.
"""
