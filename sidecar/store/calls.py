"""What callers hand to the store, and what they get back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from sidecar.core.epoch import Epoch
from sidecar.core.relationship import Change, Relationship
from sidecar.core.vector import Vector, Version


class MergeOutcome(StrEnum):
    """What became of a batch; with all but the first the rest of it was not applied."""

    APPLIED = "applied"
    GAP = "gap"
    LOST = "lost"
    CONTRADICTION = "contradiction"


class Phase(StrEnum):
    """How far the incarnation of a node may be trusted.

    unproven: Redis was restarted while nobody watched; peers may prove that nothing is missing.
    exposed: it serves, and what it writes can be set aside should a peer know that it lacks
    something. behind: it lacks something; it takes no writes until it has caught up.
    """

    UNPROVEN = "unproven"
    EXPOSED = "exposed"
    SERVING = "serving"
    BEHIND = "behind"


class WriteRequest(NamedTuple):
    """One write: all its changes, or none.

    expected_revision: refuse if a tuple of the request changed on this node after it.
    idempotency_key: a repeat with the same `request_hash` gets the first answer again.
    is_again: it was accepted before, and no fence keeps it out. intent: the id under which it was
    noted before the database did it. is_late: that was found out by looking, and the database is
    told once more.
    """

    tenant: str
    changes: Sequence[Change]
    expected_revision: int | None = None
    idempotency_key: str | None = None
    request_hash: str = ""
    is_again: bool = False
    intent: str = ""
    is_late: bool = False


class Written(NamedTuple):
    """revision: of the write; written, deleted: relationships; vector: the node's after it."""

    revision: int
    written: int
    deleted: int
    vector: Vector
    replayed: bool = False


class Orphan(NamedTuple):
    """A tuple with a write from above the end of its incarnation, which no feed has.

    again: what the tuple shows, as a change. revision: where that came. lost: the write.
    """

    again: Change
    revision: int
    lost: Version


class LetGo(NamedTuple):
    """orphans: tuples to be written again before all can go. has_more: call again."""

    orphans: Sequence[Orphan] = ()
    has_more: bool = False


@dataclass(frozen=True, slots=True)
class Merged:
    """transactions: how many were new. vector: this node's after.

    parked: origin -> why its next transaction waits, and all that follow it.
    """

    outcome: MergeOutcome
    detail: str
    transactions: int
    vector: Vector
    parked: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Bucket:
    """All stored tuples of one bucket, hidden ones included.

    digest: as maintained by every write. beyond: what was taken over with pages and the vector has
    not reached. tuples: (tenant/resource, relation#subject, text of the state).
    """

    number: int
    digest: int
    beyond: Vector
    tuples: Sequence[tuple[str, str, str]]


@dataclass(frozen=True, slots=True)
class States:
    """Buckets and the vector they were read at. following: the bucket to go on with."""

    following: int
    vector: Vector
    buckets: Sequence[Bucket]


class Way(StrEnum):
    """How a page is taken in: as two states together, or as the truth about all it has seen."""

    JOIN = "join"
    REPLACE = "replace"


class AbsorbOutcome(StrEnum):
    """What became of a page; with all but the first nothing was written."""

    ABSORBED = "absorbed"
    SKEW = "skew"


@dataclass(frozen=True, slots=True)
class Absorbed:
    """appeared, disappeared: how many tuples became visible or changed, and how many went."""

    outcome: AbsorbOutcome
    appeared: int = 0
    disappeared: int = 0


class Raised(NamedTuple):
    """epoch: the highest that is stored. vector: of this node; a fence lets nothing be added."""

    epoch: Epoch | None
    vector: Vector


class Reported(NamedTuple):
    """A step of listing what was not shipped. is_more: there are further steps.

    transactions, changes: how many this step has listed. is_trimmed: some have left the feed.
    """

    is_more: bool
    transactions: int
    changes: int
    is_trimmed: bool


class Trimmed(NamedTuple):
    """gone: how many entries went. is_more: others that might go are left."""

    gone: int
    is_more: bool


@dataclass(frozen=True, slots=True)
class Filter:
    """Which tuples of a tenant; None is any."""

    tenant: str
    resource: str | None = None
    resource_type: str | None = None
    relation: str | None = None
    subject: str | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """Tuples, where to go on (None: that was all), and what they were read at.

    A page may be short, even empty, and still have a cursor.
    """

    relationships: list[Relationship]
    cursor: str | None
    revision: int
    vector: Vector
