"""Price cards: dated files (`*.yaml`, which ship with the package), and `cards`, which reads them.

What a request costs by a card is reckoned in `policies.price`.
"""
