"""The errors that Ark documents (docs 82379/1299023), and the injection of errors and faults.

An injection is one `Fault`. It comes with a request, in the header `X-Emulator-Inject` as
`name=value` pairs separated by semicolons (`code=ServerOverloaded;retry_after_s=3`), or from a rule
that was posted to `/emulator/faults` or stands in the configuration: for the next N requests, or
for a share of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

INJECT_HEADER = "X-Emulator-Inject"


class ErrorRow(msgspec.Struct, frozen=True):
    """HTTP status, `type` and message of one code."""

    status: int
    type: str
    message: str


_BAD = "BadRequest"
_MANY = "TooManyRequests"
_SENSITIVE = "may contain sensitive information"

# status, type, message, codes
_TABLE: tuple[tuple[int, str, str, str], ...] = (
    (400, _BAD, "The request misses a required parameter.",
     "MissingParameter MissingParameter.model MissingParameter.messages"),
    (400, _BAD, "A parameter in the request is not valid.",
     "InvalidParameter InvalidParameter.UnsupportedParameter InvalidParameter.TosURLInvalid "
     "InvalidArgumentError InvalidArgumentError.UnknownRole "
     "InvalidArgumentError.InvalidImageDetail InvalidArgumentError.InvalidPixelLimit"),
    (400, _BAD, "The image in the request cannot be read.",
     "InvalidImageURL.EmptyURL InvalidImageURL.InvalidFormat"),
    (400, _BAD, "Total tokens of text and images exceed the context of the model.",
     "OutofContextError"),
    (400, _BAD, "The endpoint is closed.", "InvalidEndpoint.ClosedEndpoint"),
    (400, _BAD, f"The request {_SENSITIVE}.",
     "SensitiveContentDetected SensitiveContentDetected.SevereViolation "
     "SensitiveContentDetected.Violence"),
    *(
        (400, _BAD, f"The {noun} {_SENSITIVE}.",
         " ".join(f"{side}{medium}SensitiveContentDetected{end}" for end in
                  ("", ".PolicyViolation", ".PrivacyInformation", ".DeepFake")))
        for side, noun in (("Input", "request"), ("Output", "answer"))
        for medium in ("Text", "Image", "Video", "Audio")
    ),
    (400, _BAD, "The request may be risky.", "InputTextRiskDetection InputImageRiskDetection"),
    (400, _BAD, "The answer may be risky.", "OutputTextRiskDetection OutputImageRiskDetection"),
    (400, _BAD, "The content check failed.", "ContentSecurityDetectionError"),
    (400, "Forbidden", "No valid subscription.", "InvalidSubscription"),
    (401, "Unauthorized", "The API key is missing or not valid.", "AuthenticationError"),
    (401, "Forbidden", "The account is not in a valid state.", "InvalidAccountStatus"),
    (403, "Forbidden", "The account is overdue.",
     "AccountOverdueError OperationDenied.ServiceOverdue"),
    (403, "Forbidden", "Access is denied.", "AccessDenied"),
    (403, "Forbidden", "The operation is denied.",
     "OperationDenied.PermissionDenied OperationDenied.ServiceNotOpen "
     "OperationDenied.InvalidState OperationDenied.UnsupportedPhase "
     "OperationDenied.FileQuotaExceeded OperationDenied.ArkAccessRoleNotFound "
     "OperationDenied.TosAccessDenied"),
    (404, "NotFound", "The model or endpoint does not exist or is not open to you.",
     "InvalidEndpointOrModel.NotFound InvalidEndpointOrModel.ModelIDAccessDisabled "
     "ModelNotOpen UnsupportedModel NotFound.Model"),
    (413, _BAD, "The request is too large.", "RequestTooLarge"),
    (429, _MANY, "The requests a minute are used up.",
     "ModelAccountRpmRateLimitExceeded ModelAccountIpmRateLimitExceeded "
     "APIAccountRpmRateLimitExceeded AccountRateLimitExceeded "
     "RateLimitExceeded.EndpointRPMExceeded"),
    (429, _MANY, "The tokens a minute are used up.",
     "ModelAccountTpmRateLimitExceeded RateLimitExceeded.EndpointTPMExceeded "
     "RateLimitExceeded.EndpointFlexTPMExceeded"),
    (429, _MANY, "The service is overloaded, try later.", "ServerOverloaded"),
    (429, _MANY, "Requests grow too fast.", "RequestBurstTooFast"),
    (429, _MANY, "Too many requests at once.", "InflightBatchsizeExceeded"),
    (429, _MANY, "The inference limit that was set is reached.", "SetLimitExceeded"),
    (429, _MANY, "The quota is used up.", "QuotaExceeded"),
    (500, "InternalServerError", "Internal error.", "InternalServiceError"),
)  # fmt: skip

CODES: Mapping[str, ErrorRow] = {
    code: ErrorRow(status, kind, message)
    for status, kind, message, codes in _TABLE
    for code in codes.split()
}
"""Every code of the documented table."""


class Fault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What goes wrong with one request. Counts are chunks of the stream that are sent before it."""

    code: str | None = None  # answer this error; in a stream, see error_after
    status: int | None = None  # HTTP status in place of the documented one
    empty_type: bool = False  # `type` is "", as has been seen
    message: str | None = None
    retry_after_s: float | None = None  # send Retry-After
    should_retry: bool | None = None  # send x-should-retry
    drop: bool = False  # close the connection without a word
    first_ms: float | None = None  # time to the first token
    token_ms: float | None = None  # time between tokens
    answer_tokens: int | None = None  # length of the answer
    reasoning_tokens: int | None = None
    cut_after: int | None = None  # connection lost in mid-stream
    stall_after: int | None = None  # silence until the client leaves
    error_after: int | None = None  # an error object inside the stream
    garbage_after: int | None = None  # an event that is not JSON
    no_done: bool = False  # clean end without [DONE]
    no_finish: bool = False  # clean end without finish_reason, usage or [DONE]
    no_usage: bool = False
    moderation: str | None = None  # finish with content_filter and this moderation_hit_type
    usage: dict[str, Any] | None = None  # reported in place of the true figures

    @property
    def refuses(self) -> bool:
        """Whether the request is answered with an error instead of an answer."""
        return self.code is not None and self.error_after is None


NO_FAULT = Fault()


class Refused(Exception):
    """The request is answered with an error."""

    def __init__(self, code: str, message: str | None = None, fault: Fault = NO_FAULT) -> None:
        super().__init__(code)
        known = CODES.get(code)
        self.code = code
        self.status = fault.status or (known.status if known else 400)
        self.type = "" if fault.empty_type else (known.type if known else "")
        self.message = fault.message or message or (known.message if known else code)
        self.fault = fault

    def body(self, server_id: str) -> bytes:
        """Ark's error body; `param` is present and empty, the request id ends the message."""
        return msgspec.json.encode(
            {
                "error": {
                    "code": self.code,
                    "message": f"{self.message} Request id: {server_id}",
                    "param": "",
                    "type": self.type,
                }
            }
        )


def parse(header: str) -> Fault:
    """Header value -> Fault. Raises Refused(InvalidParameter) and says what is wrong."""
    fields: dict[str, str] = {}
    for pair in header.split(";"):
        name, _, value = pair.strip().partition("=")
        if name:
            fields[name.strip()] = value.strip() or "true"
    try:
        # strict=False: the header has only strings; numbers and booleans are read from them.
        return msgspec.convert(fields, Fault, strict=False)
    except msgspec.ValidationError as error:
        raise Refused("InvalidParameter", f"{INJECT_HEADER}: {error}.") from error


class FaultRule(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """When a fault strikes: the next N requests that match, or a share of them for good."""

    fault: Fault
    next: int | None = None
    rate: float | None = None
    model: str | None = None  # only this model or endpoint
    skip: int = 0  # let so many matching requests pass first

    def __post_init__(self) -> None:
        if (self.next is None) == (self.rate is None):
            raise ValueError("a rule needs either `next` (a count) or `rate` (a share)")
        if self.rate is not None and not 0 <= self.rate <= 1:
            raise ValueError("`rate` is a share between 0 and 1")


class FaultBook:
    """The rules in force, asked in the order in which they were added."""

    def __init__(self, rules: Sequence[FaultRule], chance: Callable[[], float]) -> None:
        self.rules = list(rules)
        self._chance = chance

    def strike(self, model: str) -> Fault:
        """The fault for one request, or NO_FAULT. Counts the request."""
        for rule in self.rules:
            if rule.model not in (None, model):
                continue
            if rule.skip > 0:
                rule.skip -= 1
                continue
            if rule.rate is not None:
                if self._chance() < rule.rate:
                    return rule.fault
            elif rule.next is not None and rule.next > 0:
                rule.next -= 1
                return rule.fault
        return NO_FAULT
