"""What a request asks: bytes of JSON in; a checked request, its prompt and plans of answers out.

`prepare` is the whole way, and the other modules are its stages. Nothing here knows the engine or
torch; what a caller can get wrong is refused here.
"""
