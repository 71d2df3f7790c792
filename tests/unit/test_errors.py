"""HTTP answers and the errors that they become."""

from typing import Any

import pytest

from poolfleet.kube.errors import (
    ApiError,
    Conflict,
    Forbidden,
    Invalid,
    NotFound,
    TooManyRequests,
    Unavailable,
    from_response,
)


@pytest.mark.parametrize(
    ("status", "body", "patch", "wanted"),
    [
        (404, {"message": "gone"}, False, NotFound),
        (409, {"message": "moved on"}, False, Conflict),
        (422, {"details": {"causes": [{"field": "spec"}]}}, False, Invalid),
        (422, {"details": {"causes": [{"field": "spec"}]}}, True, Invalid),
        (422, {"message": "test failed"}, True, Conflict),
        (400, {"message": "strict decoding error"}, False, Invalid),
        (403, {"message": "may not"}, False, Forbidden),
        (500, {"message": "failed to create typed patch object (a/b): .spec.x"}, False, Invalid),
        (500, {}, False, Unavailable),
        (503, {}, False, Unavailable),
        (401, {}, False, ApiError),
    ],
)
def test_each_status_has_its_error(status: int, body: dict[str, Any], patch: bool, wanted: type[ApiError]) -> None:
    error = from_response(status, body, patch=patch)
    assert type(error) is wanted
    assert error.status == status


def test_the_message_is_the_servers() -> None:
    words = 'pgpools.poolfleet.dev "shop" not found'
    assert str(from_response(404, {"message": words})) == words
    assert str(from_response(418, {})) == "HTTP status 418"


@pytest.mark.parametrize(
    ("header", "body", "seconds"),
    [("7", {}, 7.0), (None, {"details": {"retryAfterSeconds": 3}}, 3.0), (None, {}, 1.0), ("Wed, 21 Oct", {}, 1.0)],
)
def test_too_many_requests_says_for_how_long(header: str | None, body: dict[str, Any], seconds: float) -> None:
    error = from_response(429, body, header)
    assert isinstance(error, TooManyRequests)
    assert error.retry_after == seconds
