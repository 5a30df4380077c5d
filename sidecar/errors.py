"""The three kinds of failure, and nothing else: refused, unavailable, broken.

Each carries a code in snake_case, which is the contract, and a message for people. The edge (HTTP,
command line) turns them into answers; foreign exceptions are translated into them once, in the
adapter that meets them.
"""

from collections.abc import Iterator
from contextlib import contextmanager


class SidecarError(Exception):
    """A failure with a `code` that programs may rely on and a `message` that says what to do."""

    status = 500

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Refused(SidecarError):
    """Bad input: the message says what, where, and what is allowed.

    `status` is the HTTP status of the answer: 400 unless told otherwise.
    """

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(code, message)
        self.status = status


class Unavailable(SidecarError):
    """The outside world does not answer; trying again after `retry_after_s` seconds makes sense."""

    status = 503

    def __init__(self, code: str, message: str, retry_after_s: int = 1) -> None:
        super().__init__(code, message)
        self.retry_after_s = retry_after_s


class Broken(SidecarError):
    """One of our own invariants does not hold: fail loudly, never continue."""

    def __init__(self, message: str) -> None:
        super().__init__("broken", message)


@contextmanager
def ungrouped() -> Iterator[None]:
    """Raise the one failure of ours that ended a task group, instead of the group.

    A group that also holds something else is raised as it is.
    """
    try:
        yield
    except BaseExceptionGroup as group:
        ours, others = group.split(SidecarError)
        if ours is None or others is not None:
            raise
        raise _first(ours) from group


def _first(group: BaseExceptionGroup[SidecarError]) -> SidecarError:
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
