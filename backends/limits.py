"""What one chat request may ask for, wherever it is read: at the gateway, and at our own worker.

One that is taken here can be sent to any engine. Ranges are OpenAI's and Ark's documented ones, the
narrower of the two, or those of vLLM where OpenAI has no such field. What only one of the two
programs bounds stands there: the gateway holds money and reads pictures for Ark as well
(`gateway.wire.chat`, `backends.media`), a worker has slots and a cache (`glm.request.limits`).
"""

from __future__ import annotations

TOOLS_MAX = 128
STOPS_MAX = 4
STOP_CHARS_MAX = 1_000  # of one: an engine compares the end of its text with it at every token
STOP_IDS_MAX = 64
TOP_LOGPROBS_MAX = 20
LOGIT_BIAS_MAX = 1_024  # entries; OpenAI's own limit is about 300
LOGIT_BIAS_ABS_MAX = 100.0  # enough to forbid or to force a token
TEMPERATURE_MAX = 2.0  # above it the text is noise
TOP_K_MAX = 1_000_000  # more than any vocabulary
PENALTY_ABS_MAX = 2.0
REPETITION_MIN, REPETITION_MAX = 0.01, 10.0
SEED_MIN, SEED_MAX = -(2**63), 2**63 - 1  # what JSON integers of the SDKs and torch both accept
FORM_BYTES_MAX = 64 * 1024  # of a schema or pattern: some 300 fields, and compiled in 10 ms

# The next two are defaults of our worker, whose operator may set others (`--max-choices`).
CHOICES_MAX = 8  # each takes a slot of its own, and money is held for each
IMAGES_MAX = 64  # a bound on work per request; the context ends most requests earlier
IMAGE_PIXELS_MAX = 36_000_000  # of one, Ark's limit: 108 MB as RGB; a 6000 x 6000 scan still passes
