"""The worker's refusals, in the shape of the OpenAI API.

    WorkerError                  carries status, type, code and the field at fault
      |- bad_request()           400, the caller's fault; never worth repeating
      |- model_not_found()       404, nothing here answers to this name
      |- WorkerBusy              503, every place is taken; Retry-After says when to come back
      `- WorkerUnavailable       503, the model is loading, the worker is draining, or it is lost

Messages name fields and limits. They never quote a prompt or a picture, because errors are logged
along the way and prompts must not be.
"""

from __future__ import annotations

import traceback
from typing import Any


class WorkerError(Exception):
    """A refusal that the caller sees as `{"error": {...}}` with the HTTP status `status`."""

    def __init__(
        self,
        message: str,
        *,
        status: int,
        kind: str,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.kind = kind
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s

    def body(self) -> dict[str, Any]:
        """The JSON object of the reply: `{"error": {"message", "type", "param", "code"}}`."""
        return {
            "error": {
                "message": self.message,
                "type": self.kind,
                "param": self.param,
                "code": self.code,
            }
        }


class WorkerBusy(WorkerError):
    """Raised at admission when the slots and the queue are full (503 `worker_busy`)."""

    def __init__(self, *, waiting: int, retry_after_s: int) -> None:
        super().__init__(
            f"This worker is busy: {waiting} requests are waiting already.",
            status=503,
            kind="server_error",
            code="worker_busy",
            retry_after_s=retry_after_s,
        )


class WorkerUnavailable(WorkerError):
    """Raised while the model loads (`worker_loading`), while the worker drains (`worker_draining`),
    and by one whose engine is over (`worker_failed`)."""

    def __init__(self, *, code: str, message: str) -> None:
        super().__init__(message, status=503, kind="server_error", code=code, retry_after_s=1)


def bad_request(message: str, *, param: str | None = None, code: str | None = None) -> WorkerError:
    """The 400 of one request; `param` is the field at fault, as the caller wrote it."""
    return WorkerError(message, status=400, kind="invalid_request_error", code=code, param=param)


def worker_draining() -> WorkerUnavailable:
    """The 503 of who comes to a worker that finishes what it has, and then ends."""
    return WorkerUnavailable(code="worker_draining", message="This worker is shutting down.")


def worker_failed() -> WorkerUnavailable:
    """The 503 of every request inside of a worker whose engine is over; the process ends now."""
    return WorkerUnavailable(
        code="worker_failed", message="This worker's engine has failed; it has to be restarted."
    )


def place_of(error: BaseException) -> str:
    """Kind and place of an error. Its text is left out: it may quote a prompt."""
    at = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {at.name}:{at.lineno}"


def engine_failure(message: str) -> WorkerError:
    """The 500 of one request whose generation broke; the worker itself goes on."""
    return WorkerError(message, status=500, kind="server_error", code="engine_error")


def model_not_found(name: str, *, served: str) -> WorkerError:
    """The 404 of a name that nothing here answers to."""
    return WorkerError(
        f"The model `{name[:80]}` does not exist here; this worker serves `{served}`.",
        status=404,
        kind="invalid_request_error",
        code="model_not_found",
        param="model",
    )
