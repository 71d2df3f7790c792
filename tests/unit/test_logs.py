"""JSON logs: the object, never its body."""

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from poolfleet.controller import logs


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in logs._QUIET}
    text = io.StringIO()
    logs.configure("info", text)
    yield text
    root.handlers[:], root.level = handlers, level
    for name, before in levels.items():
        logging.getLogger(name).setLevel(before)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_names_its_object(stream: io.StringIO) -> None:
    logging.getLogger("poolfleet.x").info("made %d", 3, extra={**logs.about("pgpools", "demo", "shop"), "pod": "a"})
    (line,) = lines(stream)
    assert line["message"] == "made 3"
    assert line["level"] == "info"
    assert line["object"] == {"kind": "pgpools", "namespace": "demo", "name": "shop"}
    assert line["pod"] == "a"


def test_of_kopfs_records_only_the_reference_is_kept(stream: io.StringIO) -> None:
    reference = {"kind": "Secret", "namespace": "demo", "name": "app", "uid": "u", "data": {"password": "geheim"}}
    extra = {"k8s_ref": reference, "k8s_skip": True, "settings": object(), "body": {"data": "geheim"}}
    logging.getLogger("kopf.reactor").warning("trouble", extra=extra)
    (line,) = lines(stream)
    assert line["object"] == {"kind": "Secret", "namespace": "demo", "name": "app"}
    assert "geheim" not in stream.getvalue()


def test_every_event_that_kopf_handles_is_no_line(stream: io.StringIO) -> None:
    logging.getLogger("kopf.objects").info("Handler 'pods' succeeded.")
    logging.getLogger("poolfleet.x").debug("details")
    assert lines(stream) == []


def test_an_exception_is_one_line(stream: io.StringIO) -> None:
    try:
        raise ValueError("wrong")
    except ValueError:
        logging.getLogger("poolfleet.x").exception("failed")
    (line,) = lines(stream)
    assert "ValueError: wrong" in line["error"]
