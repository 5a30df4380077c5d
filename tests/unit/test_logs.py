"""Log lines: one line each, with fields, for people or for machines."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Literal

import pytest

from sidecar import logs

Form = Literal["text", "json"]
LOG = logging.getLogger("sidecar.test")


@contextmanager
def configured(level: str, form: Form) -> Iterator[None]:
    """The log of this process, given back afterwards."""
    root = logging.getLogger()
    handlers, before = root.handlers[:], root.level
    root.handlers = []
    try:
        logs.configure(level, form)
        yield
    finally:
        root.handlers = handlers
        root.setLevel(before)


def test_a_line_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    with configured("info", "text"):
        LOG.warning("store closed", extra={"reason": "Redis is away", "target": "eu1", "count": 5})
    moment, rest = capsys.readouterr().err.split(" ", 1)
    assert datetime.fromisoformat(moment).tzinfo is not None
    assert rest == 'warning store closed reason="Redis is away" target=eu1 count=5\n'


def test_a_line_for_machines(capsys: pytest.CaptureFixture[str]) -> None:
    with configured("info", "json"):
        LOG.error("it broke", extra={"reason": "a\nb é", "node": None})
    (line,) = capsys.readouterr().err.splitlines()
    shown = json.loads(line)
    assert datetime.fromisoformat(shown.pop("time")).tzinfo is not None
    assert shown == {
        "level": "error",
        "message": "it broke",
        "logger": "sidecar.test",
        "reason": "a\nb é",
        "node": None,
    }


PLAIN = ["a\nb", "a\r\nERROR b", "a b", 'a"b', "x=1", ""]
STRANGE = ["a\rb", "a\u2028b", "a\x1b[31mb", "a\tb", "\ud800"]


@pytest.mark.parametrize(
    ("form", "said"),
    [(form, said) for form in ("json", "text") for said in PLAIN + STRANGE],
    ids=ascii,
)
def test_what_a_peer_said_stays_on_one_line(
    form: Form, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Or it could write lines of its own into the log, or move the cursor of a terminal."""
    with configured("info", form):
        LOG.warning("refused", extra={"reason": said})
    output = capsys.readouterr().err
    assert len(output.splitlines()) == 1
    assert output.rstrip("\n").isprintable()


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_failure_brings_its_traceback(form: Form, capsys: pytest.CaptureFixture[str]) -> None:
    failure = ValueError("because")
    with configured("info", form):
        LOG.error("it broke", exc_info=failure)
    assert "ValueError: because" in capsys.readouterr().err


def test_less_than_the_level_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    with configured("warning", "text"):
        LOG.info("quiet")
    assert capsys.readouterr().err == ""
