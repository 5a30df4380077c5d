"""What the dashboard shows of a deployment, from what its nodes say of themselves.

Pure. Owns the words for the state of a link and of a node, and from when on something counts as
late or silent. What nodes say comes from other processes, perhaps of another release: whatever has
not the expected type is left out.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sidecar.core.topology import Node

JsonObject = dict[str, Any]

SILENT_MS = 1_600
"""A heartbeat goes each second, or a quarter later: who said nothing for so long is silent."""
LATE_MS, STALE_MS = 1_000, 10_000
"""From this lag on a link counts as late, and as stale."""
MAX_PARKED = 100
"""Parked transactions that are shown; how many there are is told in any case."""
MAX_REASONS = 20
MAX_NUMBER = 1e15
MAX_TEXT = 500
"""Characters shown of what a node says, such as a reason."""


class LinkState(StrEnum):
    """How one direction of replication does; the later, the worse."""

    FRESH = "fresh"
    LATE = "late"
    TRANSFER = "transfer"
    STALE = "stale"
    PAUSED = "paused"
    UNKNOWN = "unknown"
    SILENT = "silent"
    CUT = "cut"


WORST_LAST = tuple(LinkState)


class NodeState(StrEnum):
    """How a node does, as far as the asking one can tell; apart: it cannot be asked from there,
    and others have sessions with it.
    """

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"
    SILENT = "silent"
    APART = "apart"
    UNREACHABLE = "unreachable"


@dataclass(frozen=True, slots=True)
class Seen:
    """A node as it was seen last.

    status: what it said last (`GET /status`), age_ms ago; None while it has not answered yet.
    error: why the last asking failed.
    """

    node: Node
    status: Mapping[str, Any] | None = None
    age_ms: float | None = None
    error: str | None = None

    @property
    def is_answering(self) -> bool:
        return self.status is not None and self.error is None and (self.age_ms or 0) <= SILENT_MS


def deployment(
    seen: Sequence[Seen], targets: Mapping[str, Sequence[str]], me: str
) -> tuple[JsonObject, str]:
    """What is shown, and a text that changes when a state does, not when a figure does.

    targets: whom each node ships to, for nodes that do not say so themselves.
    """
    nodes = [node_shown(one, is_me=one.node.id == me) for one in seen]
    links = [link for one in seen for link in links_of(one, targets.get(one.node.id, ()))]
    _part(nodes, links)
    parked = [row for one in seen for row in _parked_of(one)]
    shown = {
        "asked_by": me,
        "regions": list(dict.fromkeys(str(one.node.region) for one in seen)),
        "nodes": nodes,
        "links": links,
        "parked": parked[:MAX_PARKED],
        "parked_total": len(parked),
    }
    states = [f"{node['id']}={node['state']}" for node in nodes]
    states += [f"{link['from']}>{link['to']}={link['state']}" for link in links]
    return shown, " ".join(states)


def _part(nodes: Sequence[JsonObject], links: Sequence[JsonObject]) -> None:
    """Note of those that do not answer who reaches them all the same."""
    is_lost = {"cut", "silent", "unknown", "paused"}
    for node in nodes:
        node["reached_by"] = []
        if node["state"] in (NodeState.SILENT, NodeState.UNREACHABLE):
            reaching = (link for link in links if link["to"] == node["id"])
            node["reached_by"] = [one["from"] for one in reaching if one["state"] not in is_lost]
            if node["reached_by"]:
                node["state"] = NodeState.APART.value


def node_shown(seen: Seen, *, is_me: bool = False) -> JsonObject:
    """One node: its place, its state with the reasons, and its figures where it has told them."""
    status = seen.status or {}
    parts = list(_parts(status))
    reasons = list(_reasons(seen))
    return {
        "id": str(seen.node.id),
        "region": str(seen.node.region),
        "zone": str(seen.node.zone),
        "endpoint": seen.node.endpoint,
        "is_me": is_me,
        "state": _state(seen, reasons).value,
        "reasons": reasons,
        "answered_ms_ago": None if seen.age_ms is None else round(seen.age_ms),
        "release": _text(status.get("release")),
        "phase": _text(status.get("phase")),
        "feed_length": _sum(parts, "feed_length"),
        "unsettled": _sum(parts, "unsettled"),
        "held_by": list(dict.fromkeys(filter(None, map(_holder, parts)))),
        "database": _database(status.get("database")),
    }


def links_of(seen: Seen, targets: Sequence[str]) -> Iterator[JsonObject]:
    """One entry for each node that this one ships to; partitions between the two count together."""
    parts = list(_parts(seen.status or {}))
    said: dict[str, list[JsonObject]] = {}
    for part in parts:
        transfers = _mapping(part.get("transfers_out"))
        for target, told in _mapping(part.get("targets")).items():
            one = {**_mapping(told), "transfer": _mapping(transfers.get(target))}
            said.setdefault(str(target), []).append(one)
    for target in said or dict.fromkeys(targets):
        yield _link(seen, target, said.get(target, []))


def _link(seen: Seen, target: str, told: Sequence[JsonObject]) -> JsonObject:
    lags = [lag for one in told if (lag := _number(one.get("lag_ms"))) is not None]
    backlogs = [n for one in told if (n := _number(one.get("backlog"))) is not None]
    silences = [ms for one in told if (ms := _number(one.get("heard_ms_ago"))) is not None]
    silent_ms = max(silences) + (seen.age_ms or 0) if silences else None
    states = [_link_state(one, seen.age_ms or 0) for one in told]
    is_known = seen.is_answering and bool(states)
    state = max(states, key=WORST_LAST.index) if is_known else LinkState.UNKNOWN
    shares = [share for one in told if (share := _share(one["transfer"])) is not None]
    return {
        "from": str(seen.node.id),
        "to": target,
        "state": state.value,
        "lag_ms": max(lags, default=None),
        "backlog": sum(backlogs) if backlogs else None,
        "silent_ms": None if silent_ms is None else round(silent_ms),
        "transfer": min(shares, default=None),
        "error": next(filter(None, (_text(one.get("last_error")) for one in told)), None),
    }


def _link_state(told: Mapping[str, Any], age_ms: float) -> LinkState:
    if not told.get("connected"):
        return LinkState.PAUSED if told.get("paused") else LinkState.CUT
    if (_number(told.get("heard_ms_ago")) or 0) + age_ms > SILENT_MS:
        return LinkState.SILENT
    lag_ms = _number(told.get("lag_ms")) or 0
    if lag_ms >= STALE_MS:
        return LinkState.STALE
    if told["transfer"]:
        return LinkState.TRANSFER
    return LinkState.LATE if lag_ms >= LATE_MS else LinkState.FRESH


def _state(seen: Seen, reasons: Sequence[str]) -> NodeState:
    if seen.error is not None:
        return NodeState.UNREACHABLE
    if not seen.is_answering:
        return NodeState.SILENT
    status = seen.status or {}
    if status.get("status") == NodeState.UNHEALTHY.value or status.get("serves_not_because"):
        return NodeState.UNHEALTHY
    return NodeState.DEGRADED if reasons else NodeState.HEALTHY


def _reasons(seen: Seen) -> Iterator[str]:
    """Why it is not healthy, in words: its own, where it answers."""
    if seen.error is not None:
        yield seen.error[:MAX_TEXT]
    elif seen.status is None:
        yield "has not answered yet"
    elif isinstance(said := seen.status.get("reasons"), list):
        yield from filter(None, map(_text, said[:MAX_REASONS]))


def _parts(status: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The partition of everywhere, then the others, which have `regions`."""
    if status:
        yield {name: value for name, value in status.items() if name != "regions"}
        for part in _mapping(status.get("partitions")).values():
            yield {**_mapping(part), "regions": _mapping(part).get("regions") or ()}


def _parked_of(seen: Seen) -> Iterator[JsonObject]:
    for part in _parts(seen.status or {}):
        for row in _rows(part.get("parked")):
            names = ("origin", "timestamp", "reason", "since")
            yield {"node": str(seen.node.id), **{name: _text(row.get(name)) for name in names}}


def _database(told: object) -> JsonObject | None:
    if not isinstance(told, dict):
        return None
    texts = {name: _text(told.get(name)) for name in ("dialect", "away_because", "failing_because")}
    counts = {name: _number(told.get(name)) for name in ("pending", "held", "unknown_outcomes")}
    return {**texts, **counts}


def _holder(part: Mapping[str, Any]) -> str | None:
    """Who holds back collection, where anything waits for it."""
    return _text(_mapping(part.get("collection")).get("held_by")) if part.get("unsettled") else None


def _share(transfer: Mapping[str, Any]) -> float | None:
    done, of = _number(transfer.get("buckets")), _number(transfer.get("of"))
    return None if done is None or not of else round(done / of, 3)


def _sum(parts: Iterable[Mapping[str, Any]], name: str) -> float | None:
    known = [n for part in parts if (n := _number(part.get(name))) is not None]
    return sum(known) if known else None


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _rows(value: object) -> list[Mapping[str, Any]]:
    return [_mapping(row) for row in value] if isinstance(value, list) else []


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if abs(value) < MAX_NUMBER else None


def _text(value: object) -> str | None:
    return value[:MAX_TEXT] if isinstance(value, str) and value else None
