"""How log lines look: text for people, JSON for machines; a change of state, one line, fields."""

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Literal

from sidecar.core.residency import GLOBAL

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


_partition: ContextVar[str] = ContextVar("partition", default=GLOBAL)


def speak_of(partition: str) -> None:
    """What this task, and those it begins, log from now on is about this partition."""
    _partition.set(partition)


def configure(level: str, form: Literal["text", "json"]) -> None:
    """Send the log of this process to standard error."""
    stream = logging.StreamHandler(sys.stderr)
    stream.setFormatter(_Json() if form == "json" else _Text())
    logging.basicConfig(level=level.upper(), handlers=[stream], force=True)


def _fields(record: logging.LogRecord) -> dict[str, object]:
    fields = {name: value for name, value in vars(record).items() if name not in _STANDARD}
    # That of everywhere, for most the only one, goes without saying.
    about = {} if (partition := _partition.get()) == GLOBAL else {"partition": partition}
    return {**fields, **about}


def _moment(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {name}={_quoted(value)}" for name, value in _fields(record).items())
        line = f"{_moment(record)} {record.levelname.lower():7} {record.getMessage()}{fields}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": _moment(record),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            "logger": record.name,
            **_fields(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def _quoted(value: object) -> str:
    text = str(value)
    if text.isprintable() and " " not in text:
        return text
    # What others said must not begin lines of its own or move the cursor of a terminal.
    return json.dumps(text, ensure_ascii=not text.isprintable())
