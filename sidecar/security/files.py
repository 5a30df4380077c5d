"""Files that hold secrets: read at start, and again whenever they have changed on disk.

Owns what is refused of such a file, and that nothing of what it holds is said: not in a message,
not in a log, not by `repr`.
"""

import logging
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from sidecar.errors import Refused

log = logging.getLogger(__name__)

MAX_BYTES = 1 << 20
"""More than any key or bundle of authorities needs; a larger file is refused."""

Made = TypeVar("Made")
Signature = tuple[tuple[int, ...], ...]


class Watched(Generic[Made]):
    """What is made of some files, and made anew when one of them is another than before.

    make: raises Refused for what cannot be used: at start it ends the start, later what was made
    before stays in use, and the log says so.
    """

    def __init__(self, setting: str, paths: Sequence[Path], make: Callable[[], Made]) -> None:
        self._setting, self._paths, self._make = setting, tuple(paths), make
        # Before they are read: what is written meanwhile is noticed at the next look.
        self._seen = self._signature()
        self._made = make()

    def current(self) -> Made:
        """As the files are now."""
        seen = self._signature()
        if seen != self._seen:
            self._seen = seen
            try:
                self._made = self._make()
                log.info("changed files are taken up", extra={"setting": self._setting})
            except Refused as refused:
                log.warning(
                    "changed files cannot be used; what they held before stays in use",
                    extra={"setting": self._setting, "reason": refused.message},
                )
        return self._made

    def _signature(self) -> Signature:
        return tuple(map(_look_of, self._paths))


def _look_of(path: Path) -> tuple[int, ...]:
    """What changes whenever a file is written or replaced, also behind a symbolic link."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def read_file(setting: str, path: Path) -> bytes:
    """All of a file. Raises Refused("bad_secret_file") with the name of the setting."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise bad_file(setting, path, f"cannot be read: {error.strerror or error}") from None
    if len(content) > MAX_BYTES:
        raise bad_file(setting, path, f"is larger than {MAX_BYTES} bytes")
    if not content.strip():
        raise bad_file(setting, path, "is empty")
    return content


def read_lines(setting: str, path: Path, least: int) -> tuple[bytes, ...]:
    """The secrets of a file, one a line, of printable ASCII and at least so many characters.

    Raises Refused("bad_secret_file").
    """
    lines = tuple(line.strip() for line in read_file(setting, path).splitlines() if line.strip())
    for line in lines:
        text = line.decode("ascii", "replace")
        if not text.isascii() or not text.isprintable():
            raise bad_file(setting, path, "holds something else than printable ASCII")
        if len(line) < least:
            raise bad_file(
                setting,
                path,
                f"holds a secret of fewer than {least} characters; make one with `openssl rand "
                "-hex 32`",
            )
    return lines


def bad_file(setting: str, path: Path, what: str) -> Refused:
    return Refused("bad_secret_file", f"{setting}: {path} {what}")


def warn_if_open(setting: str, path: Path) -> None:
    """Say in the log that everybody on this machine may read a secret."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return
    if mode & stat.S_IROTH:
        log.warning(
            "a file with a secret may be read by everybody on this machine; chmod o-r helps",
            extra={"setting": setting, "file": str(path), "mode": f"{stat.S_IMODE(mode):04o}"},
        )
