"""What can go wrong between the operator and the API server: one small tree, all under ApiError."""

from collections.abc import Mapping
from typing import Any


class ApiError(Exception):
    """The API server answered with an error, or not at all.

    `status` is the HTTP status (0: no answer); the message is the Status object's own words;
    `details` is the Status object's `details`.
    """

    def __init__(self, message: str, status: int = 0, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.details: Mapping[str, Any] = details or {}


class NotFound(ApiError):
    """404: the object, its namespace or its whole kind does not exist."""


class Conflict(ApiError):
    """409, or a JSON patch whose `test` failed: somebody else was faster. Read again, then try again."""


class Invalid(ApiError):
    """400 or 422: the object is not acceptable; the same request will fail for ever."""


class Forbidden(ApiError):
    """403: RBAC, a quota or an admission policy refused it."""


class TooManyRequests(ApiError):
    """429: try again after `retry_after` seconds."""

    def __init__(self, message: str, retry_after: float, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message, 429, details)
        self.retry_after = retry_after


class Unavailable(ApiError):
    """5xx, a lost connection or a timeout: whether a write has happened is not known."""


class NotLeader(Exception):
    """A write was refused here, before it was sent: this process does not (or no longer) hold the Lease."""


class LostLease(Exception):
    """The Lease could not be renewed in time, or another process has it. The process must exit."""


def from_response(
    status: int, body: Mapping[str, Any], retry_after: str | None = None, *, patch: bool = False
) -> ApiError:
    """The error for an HTTP `status` of at least 400 and its parsed Status object (empty if it was none).

    `retry_after` is the header, in seconds. `patch`: the request was a JSON patch; a failing operation answers 422
    like an invalid object does, but names no causes.
    """
    message = str(body.get("message") or body.get("reason") or f"HTTP status {status}")
    details = body.get("details") or {}
    match status:
        case 404:
            return NotFound(message, status, details)
        case 409:
            return Conflict(message, status, details)
        case 422 if patch and not details.get("causes"):
            return Conflict(message, status, details)
        case 400 | 422:
            return Invalid(message, status, details)
        case 500 if message.startswith("failed to create typed patch object"):
            return Invalid(message, status, details)  # what server-side apply says of a field that no schema knows
        case 403:
            return Forbidden(message, status, details)
        case 429:
            return TooManyRequests(message, _seconds(retry_after, details), details)
        case _ if status >= 500:
            return Unavailable(message, status, details)
        case _:
            return ApiError(message, status, details)


def _seconds(header: str | None, details: Mapping[str, Any]) -> float:
    try:
        return max(0.0, float(header if header is not None else details.get("retryAfterSeconds", 1)))
    except (TypeError, ValueError):
        return 1.0
