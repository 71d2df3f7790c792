"""Times as Kubernetes writes them."""

from datetime import UTC, datetime


def seconds(timestamp: str | None) -> float:
    """An RFC 3339 time as seconds since the epoch; 0.0 for none. Raises ValueError."""
    if not timestamp:
        return 0.0
    return datetime.fromisoformat(timestamp).timestamp()


def timestamp(when: float) -> str:
    """Seconds since the epoch as RFC 3339 with microseconds, as Kubernetes' MicroTime."""
    return datetime.fromtimestamp(when, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
