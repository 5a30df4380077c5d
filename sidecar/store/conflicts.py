"""Reading the log of conflicts: one entry for each conflict that a merge on this node has counted,
and one for each change that a promotion found unshipped.

`lua/lib/conflicts.lua` writes the entries and caps the log near 10,000; the oldest go first.
"""

import json
import re
from dataclasses import dataclass
from typing import Any, NamedTuple

from sidecar.core.conflict import ConflictResolutionStrategy, Sibling
from sidecar.core.relationship import Identity, Operation
from sidecar.core.state import Winner
from sidecar.core.vector import Version
from sidecar.errors import Refused

# A revision is never 0; the server refuses an exclusive range that ends there.
_CURSOR = re.compile(r"[1-9][0-9]{0,15}-(0|[1-9][0-9]{0,8})", re.ASCII)


class Versioned(NamedTuple):
    """A sibling with its version. Origin and timestamp also name the transaction that wrote it."""

    version: Version
    sibling: Sibling


@dataclass(frozen=True, slots=True)
class ConflictEntry:
    """Two versions of one tuple that did not know each other and differ.

    cursor: names the entry in this node's log, and no other. revision: in this node's feed, where
    the transaction that arrived was merged, at `merged_us` (microseconds since 1970, this node's
    clock). resolved: as counted; local where what was stored here stayed. winner: what readers saw
    from then on, which may be a third version.
    """

    cursor: str
    revision: int
    merged_us: int
    tuple: Identity
    strategy: ConflictResolutionStrategy
    stored: Versioned
    arrived: Versioned
    winner: Versioned
    resolved: Winner


@dataclass(frozen=True, slots=True)
class FencedEntry:
    """A change that this node had accepted and the new primary had not got when it was promoted.

    cursor, tuple: as above. listed_us: when this node heard of it and listed the change. written:
    the change; its timestamp is its revision in this node's feed. number, primary: of the epoch.
    """

    cursor: str
    listed_us: int
    tuple: Identity
    written: Versioned
    number: int
    primary: str


Entry = ConflictEntry | FencedEntry


def check_cursor(text: str) -> str:
    """Return `text` if it is spelled like a cursor, or raise Refused("invalid_cursor")."""
    if not _CURSOR.fullmatch(text):
        raise Refused(
            "invalid_cursor",
            "the cursor is not one of the conflict log; send one as it was given, or none",
        )
    return text


def conflict_entries_of(reply: list[Any]) -> list[Entry]:
    """The entries in a reply to XREVRANGE, in its order."""
    return [_entry_of(stream_id.decode(), flat) for stream_id, flat in reply]


def _entry_of(cursor: str, flat: list[bytes]) -> Entry:
    fields = {k.decode(): v.decode() for k, v in zip(flat[::2], flat[1::2], strict=True)}
    identity = (fields["tenant"], fields["resource"], fields["relation"], fields["subject"])
    if fields.get("kind") == "fenced":
        return FencedEntry(
            cursor,
            int(fields["listed_us"]),
            identity,
            _versioned(fields["written"]),
            int(fields["epoch"]),
            fields["primary"],
        )
    known = {name: _versioned(fields[name]) for name in ("stored", "arrived")}
    winner = fields["winner"]
    return ConflictEntry(
        cursor,
        int(cursor.partition("-")[0]),
        int(fields["merged_us"]),
        identity,
        ConflictResolutionStrategy(fields["strategy"]),
        known["stored"],
        known["arrived"],
        known[winner] if winner in known else _versioned(winner),
        Winner(fields["resolved"]),
    )


def _versioned(text: str) -> Versioned:
    timestamp, origin, sign, condition, expires_at = json.loads(text)
    operation = Operation.INSERT if sign == "+" else Operation.DELETE
    payload = (condition or None, int(expires_at) if expires_at else None)
    return Versioned((int(timestamp), origin), Sibling(operation, *payload))
