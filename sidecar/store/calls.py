"""What callers hand to the store, and what they get back."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from sidecar.core.relationship import Change, Relationship
from sidecar.core.vector import Vector


class MergeOutcome(StrEnum):
    """What became of a batch; with all but the first the rest of it was not applied."""

    APPLIED = "applied"
    GAP = "gap"
    SKEW = "skew"
    LOST = "lost"
    CONTRADICTION = "contradiction"


class WriteRequest(NamedTuple):
    """One write: all its changes, or none.

    expected_revision: refuse if a tuple of the request changed on this node after it.
    idempotency_key: a repeat with the same `request_hash` gets the first answer again.
    """

    tenant: str
    changes: Sequence[Change]
    expected_revision: int | None = None
    idempotency_key: str | None = None
    request_hash: str = ""


class Written(NamedTuple):
    """revision: of the write; written, deleted: relationships; vector: the node's after it."""

    revision: int
    written: int
    deleted: int
    vector: Vector
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class Merged:
    """transactions: how many were new. vector: this node's after."""

    outcome: MergeOutcome
    detail: str
    transactions: int
    vector: Vector


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
