"""What clients remember: every request they made, and what became of it as far as they know."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from tests.world import Triple


class Outcome(StrEnum):
    """What a client knows of its request."""

    DONE = "done"
    REFUSED = "refused"
    """Nothing was done."""
    UNKNOWN = "unknown"
    """It was sent, and no answer says whether it was done."""


class Version(NamedTuple):
    """The name of a write; its origin is `<node>.<incarnation>`."""

    timestamp: int
    origin: str


class Change(NamedTuple):
    """One change of a request; `mark` is the payload, by which an insert is known again."""

    triple: Triple
    is_insert: bool
    mark: str | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """One request of a client and its outcome.

    began_us, ended_us: when it was sent and when the client knew, microseconds since 1970 by the
    clock that the nodes have too. version, vector: only of one that is DONE; the vector is the
    node's right after it.
    """

    client: str
    number: int
    node: str
    changes: tuple[Change, ...]
    began_us: int
    ended_us: int
    outcome: Outcome
    version: Version | None = None
    vector: Mapping[str, int] = field(default_factory=dict)
    answer: str = ""

    def __str__(self) -> str:
        changes = ", ".join(
            f"{'insert' if c.is_insert else 'delete'} {c.triple[0]}#{c.triple[1]}@{c.triple[2]}"
            + (f" ({c.mark})" if c.mark else "")
            for c in self.changes
        )
        what = f"{self.version.timestamp} {self.version.origin}" if self.version else self.outcome
        seen = " ".join(f"{origin}:{t}" for origin, t in sorted(self.vector.items()))
        return (
            f"{self.began_us}-{self.ended_us} {self.client}/{self.number} at {self.node}: "
            f"{changes} -> {what} [{seen}] {self.answer}".rstrip()
        )


class Restored(NamedTuple):
    """A node began again at this time, with an older state of its data or what may be one."""

    node: str
    at_us: int


class Lost(NamedTuple):
    """A node has said that one of its incarnations ended here, and that its later writes are lost.

    is_aside: they were set aside, because the incarnation knew too little, and written again.
    """

    origin: str
    after: int
    is_aside: bool = False


@dataclass(frozen=True, slots=True)
class Final:
    """What one node says in the end.

    visible: tuple -> its mark (None: an insert without one). digest: bucket -> sum. vector: origin
    -> timestamp. allowed: what `evaluation` answered for the tuples it was asked for.
    """

    node: str
    visible: Mapping[Triple, str | None]
    digest: Mapping[str, str]
    vector: Mapping[str, int]
    allowed: Mapping[Triple, bool] = field(default_factory=dict)
