"""JSON logs: one object per line, with the Kubernetes object that it is about, never with its body."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Final, TextIO

_QUIET: Final = {
    "kopf.objects": logging.WARNING,  # one line per event and handler otherwise
    "kopf.activities": logging.WARNING,
    "asyncio": logging.WARNING,
    "aiohttp": logging.WARNING,
    "botocore": logging.WARNING,  # says the signatures that it makes
}


_STANDARD: Final = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "k8s_skip", "taskName"}


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON. kopf's records carry their object as `k8s_ref`, ours as `object`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC)
            .isoformat(timespec="milliseconds")
            .replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        about = getattr(record, "object", None) or getattr(record, "k8s_ref", None)
        if isinstance(about, dict):
            line["object"] = {key: about[key] for key in ("kind", "namespace", "name") if about.get(key)}
        for key, value in record.__dict__.items():  # what `extra` of the call holds
            if key not in _STANDARD and isinstance(value, str | int | float):
                line.setdefault(key, value)
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def configure(level: str, stream: TextIO | None = None) -> None:
    """Send the logs of this process from `level` ("debug", "info", …) up to `stream` (default: stderr) as JSON."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name, least in _QUIET.items():
        logging.getLogger(name).setLevel(least)


def about(kind: str, namespace: str, name: str) -> dict[str, Any]:
    """`extra` for a log call about this object."""
    return {"object": {"kind": kind, "namespace": namespace, "name": name}}
