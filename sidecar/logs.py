"""How log lines look, and where they go: text for people, JSON for machines; a change of state, one
line, fields.
"""

import json
import logging
import logging.handlers
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from sidecar.core.residency import GLOBAL
from sidecar.errors import Refused

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


_partition: ContextVar[str] = ContextVar("partition", default=GLOBAL)
_request: ContextVar[str] = ContextVar("request", default="")


def speak_of(partition: str) -> None:
    """What this task, and those it begins, log from now on is about this partition."""
    _partition.set(partition)


def speak_of_request(request_id: str) -> None:
    """What this task, and those it begins, log from now on is about this request."""
    _request.set(request_id)


def request_id() -> str:
    """The id of the request that this task serves; "" where it serves none."""
    return _request.get()


def configure(level: str, form: Literal["text", "json"], file: Path | None = None) -> None:
    """Send the log of this process to standard error, or to a file.

    A file that was moved away, as logrotate does, is begun anew with the next line. Raises
    Refused("cannot_log").
    """
    output = logging.StreamHandler(sys.stderr) if file is None else _file(file)
    output.setFormatter(_Json() if form == "json" else _Text())
    logging.basicConfig(level=level.upper(), handlers=[output], force=True)


def _file(path: Path) -> logging.Handler:
    try:
        return logging.handlers.WatchedFileHandler(path, encoding="utf-8")
    except OSError as error:
        raise Refused(
            "cannot_log",
            f"log.file: {path} cannot be written: {error.strerror or error}; its folder must be "
            "there, and writable for the user that the sidecar runs as",
        ) from error


def _fields(record: logging.LogRecord) -> dict[str, object]:
    fields = {name: value for name, value in vars(record).items() if name not in _STANDARD}
    # That of everywhere, for most the only one, goes without saying.
    if (partition := _partition.get()) != GLOBAL:
        fields["partition"] = partition
    if request := _request.get():
        fields["request"] = request
    return fields


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
