"""Every documented code, from the emulator through the backend to a Failure."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.ark.backend import ArkBackend
from backends.ark.emulator.faults import CODES
from backends.ark.emulator.server import Emulator
from backends.ark.errors import failure_of, in_band, meaning_of
from backends.base import Billed, Failure, Fault, Kind
from tests.backends.ark.kit import KEY, admin, call

# code -> kind, ask elsewhere, alert: the columns of the vendor's table that we act on.
_OUTPUT = [
    code
    for code in CODES
    if code.startswith("Output")
    and code.endswith(("Detected", "Detection", "Violation", "Information", "DeepFake"))
]
_INPUT = [
    code
    for code in CODES
    if ("Sensitive" in code or "RiskDetection" in code) and code not in _OUTPUT
]
EXPECTED: dict[str, tuple[Kind, bool, bool]] = {
    **dict.fromkeys(
        [
            "MissingParameter", "MissingParameter.model", "MissingParameter.messages",
            "InvalidParameter", "InvalidParameter.UnsupportedParameter",
            "InvalidParameter.TosURLInvalid", "InvalidArgumentError",
            "InvalidArgumentError.UnknownRole", "InvalidArgumentError.InvalidImageDetail",
            "InvalidArgumentError.InvalidPixelLimit", "InvalidImageURL.EmptyURL",
            "InvalidImageURL.InvalidFormat", "RequestTooLarge",
        ],
        (Kind.BAD_REQUEST, False, False),
    ),
    "OutofContextError": (Kind.CONTEXT, True, False),
    "InvalidEndpoint.ClosedEndpoint": (Kind.NOT_FOUND, True, True),
    **dict.fromkeys([*_INPUT, *_OUTPUT], (Kind.CONTENT_FILTER, False, False)),
    "ContentSecurityDetectionError": (Kind.SERVER_ERROR, True, False),
    **dict.fromkeys(
        ["InvalidSubscription", "AuthenticationError", "InvalidAccountStatus", "AccessDenied",
         "OperationDenied.PermissionDenied", "OperationDenied.ServiceNotOpen",
         "OperationDenied.InvalidState", "OperationDenied.UnsupportedPhase",
         "OperationDenied.FileQuotaExceeded", "OperationDenied.ArkAccessRoleNotFound",
         "OperationDenied.TosAccessDenied"],
        (Kind.AUTH, True, True),
    ),
    **dict.fromkeys(
        ["AccountOverdueError", "OperationDenied.ServiceOverdue", "SetLimitExceeded",
         "QuotaExceeded"],
        (Kind.QUOTA, True, True),
    ),
    **dict.fromkeys(
        ["InvalidEndpointOrModel.NotFound", "InvalidEndpointOrModel.ModelIDAccessDisabled",
         "ModelNotOpen", "UnsupportedModel", "NotFound.Model"],
        (Kind.NOT_FOUND, True, True),
    ),
    **dict.fromkeys(
        ["ModelAccountRpmRateLimitExceeded", "ModelAccountTpmRateLimitExceeded",
         "ModelAccountIpmRateLimitExceeded", "APIAccountRpmRateLimitExceeded",
         "AccountRateLimitExceeded", "RateLimitExceeded.EndpointRPMExceeded",
         "RateLimitExceeded.EndpointTPMExceeded", "RateLimitExceeded.EndpointFlexTPMExceeded"],
        (Kind.RATE_LIMITED, True, False),
    ),
    **dict.fromkeys(
        ["ServerOverloaded", "RequestBurstTooFast", "InflightBatchsizeExceeded"],
        (Kind.OVERLOADED, True, False),
    ),
    "InternalServiceError": (Kind.SERVER_ERROR, True, False),
}  # fmt: skip


async def test_every_documented_code_end_to_end(ark: ArkBackend, emulator: Emulator) -> None:
    assert EXPECTED.keys() == CODES.keys()
    for code, (kind, elsewhere, alert) in EXPECTED.items():
        rule = {"fault": {"code": code, "empty_type": True}, "next": 1}
        await admin(emulator.url, "faults", "POST", rule)
        with pytest.raises(Failure) as caught:
            await ark.open(call())
        failure = caught.value
        found = (failure.kind, failure.elsewhere, failure.alert)
        assert found == (kind, elsewhere, alert), code
        assert (failure.code, failure.status) == (code, CODES[code].status)
        row = emulator.books.received.rows[-1]
        assert row.server_id in failure.message
        assert KEY not in failure.message
        maybe = code in _OUTPUT or code == "InternalServiceError"
        assert failure.billed is (Billed.MAYBE if maybe else Billed.NO), code
        caller = kind in (Kind.BAD_REQUEST, Kind.CONTENT_FILTER, Kind.CONTEXT)
        assert (failure.fault is Fault.CALLER) == caller, code
    assert len(_OUTPUT) == 18
    assert emulator.books.charged.count == 0


async def test_a_limit_a_minute_waits_for_the_next_minute(
    ark: ArkBackend, emulator: Emulator
) -> None:
    code = "ModelAccountRpmRateLimitExceeded"
    await admin(emulator.url, "faults", "POST", {"fault": {"code": code}, "next": 1})
    with pytest.raises(Failure) as caught:
        await ark.open(call())
    assert caught.value.retry_after_s == 40
    fault = {"code": code, "retry_after_s": 7}
    await admin(emulator.url, "faults", "POST", {"fault": fault, "next": 1})
    with pytest.raises(Failure) as caught:
        await ark.open(call())
    assert caught.value.retry_after_s == 7


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("InferenceServiceConnetionTimeout", 504, Kind.SERVER_ERROR),
        ("EndpointAccountRpmRateLimitExceeded", 429, Kind.RATE_LIMITED),
        ("EndpointAccountTpmRateLimitExceeded", 429, Kind.RATE_LIMITED),
        ("EndpointRateLimitExceeded", 429, Kind.RATE_LIMITED),
        ("RequestTimeout", 408, Kind.SERVER_ERROR),
        ("ServiceConnectionRefused", 503, Kind.OVERLOADED),
        ("ServiceConnectionClosed", 502, Kind.SERVER_ERROR),
        ("EndpointIsNotEnable", 503, Kind.NOT_FOUND),
        ("EndpointIsPending", 503, Kind.OVERLOADED),
        ("ModelLoadingError", 503, Kind.OVERLOADED),
        ("ServiceResourceWaitQueueFull", 412, Kind.OVERLOADED),
        ("RateLimitExceeded.FoundationModelTPDExceeded", 429, Kind.RATE_LIMITED),
        # codes that nobody has documented, by their status
        ("Mystery", 400, Kind.BAD_REQUEST),
        ("Mystery", 401, Kind.AUTH),
        ("Mystery", 403, Kind.AUTH),
        ("Mystery", 404, Kind.NOT_FOUND),
        ("Mystery", 422, Kind.BAD_REQUEST),
        ("Mystery", 429, Kind.RATE_LIMITED),
        ("Mystery", 500, Kind.SERVER_ERROR),
        ("Mystery", 502, Kind.SERVER_ERROR),
        ("", 503, Kind.OVERLOADED),
        ("OutputTextSensitiveContentDetected.NewReason", 400, Kind.CONTENT_FILTER),
        ("InvalidParameter.Whatever", 400, Kind.BAD_REQUEST),
    ],
)
def test_old_names_and_unknown_codes(code: str, status: int, kind: Kind) -> None:
    assert meaning_of(code, status).kind is kind


def test_the_message_decides_nothing_and_is_not_passed_on() -> None:
    body = {
        "error": {
            "code": "QuotaExceeded",
            "message": f"account 2100001234 key {KEY} is queued, retry. Request id: "
            "0217953424546375a2b7f13fbb7d1a2c",
            "param": "",
            "type": "",
        }
    }
    failure = failure_of(429, {}, msgspec.json.encode(body), now_s=0)
    assert failure.message == (
        "the gateway's cloud allowance is used up (code QuotaExceeded, "
        "Ark request id 0217953424546375a2b7f13fbb7d1a2c)"
    )
    assert failure.retry_after_s is None


def test_the_header_names_the_request_when_there_is_one() -> None:
    failure = failure_of(500, {"x-request-id": "02179abcdef"}, b"", now_s=0)
    assert failure.message == "the cloud failed (Ark request id 02179abcdef)"
    failure = failure_of(500, {"x-request-id": "<script>alert(1)</script>"}, b"", now_s=0)
    assert failure.message == "the cloud failed"


@given(status=st.integers(400, 599), body=st.binary(max_size=200), retry=st.text(max_size=8))
def test_whatever_comes_is_a_failure(status: int, body: bytes, retry: str) -> None:
    failure = failure_of(status, {"retry-after": retry}, body, now_s=12.5)
    assert isinstance(failure, Failure)
    assert failure.retry_after_s is None or 0 <= failure.retry_after_s <= 300


def test_an_error_inside_of_an_answer_may_have_been_billed() -> None:
    generic = Failure(Kind.SERVER_ERROR, "?")
    data = b'{"error":{"code":"ServerOverloaded","message":"m","param":"","type":""}}'
    failure = in_band(generic, data, now_s=0)
    assert (failure.kind, failure.billed) == (Kind.OVERLOADED, Billed.MAYBE)
    assert in_band(generic, b"{", now_s=0) is generic
