"""A server that behaves as Volcano Engine Ark is documented to: for tests, demos and people
without a key.

It listens on HTTP, checks keys, counts tokens, holds the rate limits, streams in Ark's shape and
fails in Ark's ways. What it answers is made up and says so, in the text and in a header.

    settings   what can be configured, and how it is read
    faults     every error that Ark documents, and when one is injected
    asked      body of a request -> what is asked, or the error that Ark would answer
    pictures   type and size of a picture from its first bytes
    tokens     an estimate of the tokenizer, and the implicit prefix cache
    limits     requests and tokens a minute, bursts, concurrency
    answer     what is answered, and its length in tokens
    books      what was received and what was charged
    pricing    what an answer costs, reckoned apart from the gateway's price cards
    billing    the bill: periods of five minutes, its delay, and what may be wrong with it
    control    bills, balance and usage as the vendor's SDK asks for them
    speak      an answer on the wire, plain or streamed, with its faults
    server     checks in their order, start and stop
    admin      the routes under /emulator/
"""
