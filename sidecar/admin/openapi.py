"""The OpenAPI document of the admin listener.

What is said of answers is held to the truth by a test that runs against a real node; the shape of
`GET /status` is that of `node_status`.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import PurePath
from typing import Any, Final

from sidecar.admin.conflicts import MAX_LIMIT as MAX_CONFLICTS
from sidecar.admin.database import MAX_LIMIT as MAX_HELD
from sidecar.admin.page import PLACES, TYPES
from sidecar.agent.promotion import MAX_WAIT_S
from sidecar.api.openapi import HEALTH, PROBES, SELF
from sidecar.core.relationship import RESOURCE_PATTERN
from sidecar.core.topology import ReplicationStrategy
from sidecar.openapi import (
    COUNT,
    DIGITS,
    EVENTS,
    FLAG,
    NUMBER,
    TEXT,
    VECTOR,
    Call,
    Guards,
    Schema,
    by_name,
    document,
    listed,
    maybe,
    query,
    ref,
    shape,
)
from sidecar.security.names import ADMIN_HEADER

ID: Final[Schema] = {"type": "string", "pattern": "^[a-z0-9][a-z0-9-]{0,31}$"}
_CURSOR: Final[Schema] = {"type": "string", "format": "conflict-cursor"}
_KNOWN: Final[Schema] = {
    "type": "string",
    "format": "target",
    "description": "A target, by its node.",
}
_PARTITION_NAME: Final[Schema] = {"type": "string", "format": "partition"}
_SWITCH: Final[Schema] = {"type": "string", "enum": ["0", "1"], "default": "0"}
_LIMIT = "At most so many, {} when absent."

_EPOCH = shape({"number": COUNT, "region": ID})
_TRANSFER = shape({"buckets": COUNT, "of": COUNT}, {"source": TEXT})
_PARKED = shape(
    {"origin": TEXT, "timestamp": DIGITS, "previous": DIGITS, "reason": TEXT, "since": DIGITS},
    {"partition": TEXT},
)
_TARGET = shape(
    {
        "connected": FLAG,
        "unreachable": FLAG,
        "paused": FLAG,
        "acknowledged": DIGITS,
        "cursor": DIGITS,
        "heard_ms_ago": maybe(COUNT),
        "lag_ms": NUMBER,
        "lag_transactions": maybe(COUNT),
        "backlog": maybe(COUNT),
        "backlog_is_estimate": FLAG,
        "in_flight": COUNT,
        "window": COUNT,
        "last_error": maybe(TEXT),
    }
)
_PARTITION: Final[dict[str, Schema]] = {
    "phase": TEXT,
    "serves_not_because": maybe(TEXT),
    "takes_no_writes_because": maybe(TEXT),
    "origin": TEXT,
    "behind": VECTOR,
    "revision": DIGITS,
    "vector": VECTOR,
    "durable": VECTOR,
    "floor": VECTOR,
    "trimmed": DIGITS,
    "feed_length": maybe(COUNT),
    "unsettled": maybe(COUNT),
    "parked": maybe(listed(ref("Parked"))),
    "collection": shape({"stable": maybe(VECTOR), "held_by": maybe(TEXT)}),
    "rules": shape({"fingerprint": TEXT, "change_waits_for": maybe(listed(TEXT))}),
    "members": listed(ID),
    "removed": by_name(TEXT),
    "rows": by_name(VECTOR),
    "ended": VECTOR,
    "transfer_in": maybe(_TRANSFER),
    "transfers_out": by_name(_TRANSFER),
    "targets": by_name(ref("Target")),
}
_STATUS = shape(
    {
        "node": ID,
        "region": ID,
        "zone": ID,
        "release": TEXT,
        "started_at": {"type": "string", "format": "date-time"},
        "uptime_s": NUMBER,
        "status": {"type": "string", "enum": ["healthy", "degraded", "unhealthy"]},
        "reasons": listed(TEXT),
        "is_ready": FLAG,
        "not_ready_because": listed(TEXT),
        "counts": by_name(COUNT),
        "feed_limit": COUNT,
        **_PARTITION,
        "primary": maybe(ID),
        "epoch": maybe(_EPOCH),
        "health": by_name(TEXT),
        "database": maybe({"type": "object"}),
        "partitions": by_name(shape({"regions": listed(ID), **_PARTITION})),
    }
)
_NODE = shape(
    {"region": ID, "zone": ID, "endpoint": TEXT, "is_reachable": FLAG},
    {
        "status": ref("Status"),
        "error": TEXT,
        "known": shape({"health": TEXT}, {"origin": TEXT, "phase": TEXT, "heard_s": NUMBER}),
    },
)
_DEPLOYMENT = shape(
    {
        "asked_by": ID,
        "asked_at_ms": COUNT,
        "strategy": {"type": "string", "enum": [word.value for word in ReplicationStrategy]},
        "primary": maybe(ID),
        "epoch": maybe(_EPOCH),
        "nodes": by_name(ref("Node")),
    }
)
_VERSION = shape(
    {"operation": {"type": "string", "enum": ["insert", "delete"]}, "timestamp": DIGITS},
    {"origin": TEXT, "condition": {}, "expires_at": {"type": "string", "format": "date-time"}},
)
_TUPLE: Final[dict[str, Schema]] = dict.fromkeys(
    ("tenant", "resource", "relation", "subject"), TEXT
)
_CONFLICT = shape(
    {"cursor": _CURSOR, "kind": {"type": "string", "enum": ["conflict", "fenced"]}, **_TUPLE},
    dict.fromkeys(("stored", "arrived", "winner", "written"), ref("Version")),
)
_STEERED = shape({"node": ID, "changed": listed(ID), "paused": listed(ID)})


def _body(required: dict[str, Schema], optional: dict[str, Schema] | None = None) -> Schema:
    return {**shape(required, optional), "additionalProperties": False}


_NAMED = _body({"origin": TEXT, "timestamp": DIGITS})


def _page() -> Iterator[Call]:
    """The dashboard, and its parts."""
    for path, name in PLACES.items():
        media = TYPES[PurePath(name).suffix].partition(";")[0]
        yield Call("GET", path, f"The dashboard: {name}.", TEXT, media=media)


CALLS: Final = (
    *_page(),
    Call(
        "GET",
        "/events",
        "What the dashboard shows, as server-sent events.",
        TEXT,
        (503,),
        media=EVENTS,
    ),
    Call("GET", "/metrics", "Prometheus text format 0.0.4.", TEXT, media="text/plain"),
    HEALTH,
    *PROBES,
    SELF,
    Call("GET", "/status", "How this node does.", ref("Status"), (503,)),
    Call("GET", "/deployment", "How all nodes do, as this one sees them.", _DEPLOYMENT, (503,)),
    Call(
        "GET",
        "/conflicts",
        "The log of conflicts of this node, newest first.",
        shape({"conflicts": listed(ref("Conflict")), "cursor": maybe(_CURSOR)}),
        (400, 503),
        parameters=(
            query(
                "limit",
                {"type": "integer", "minimum": 1, "maximum": MAX_CONFLICTS},
                _LIMIT.format(100),
            ),
            query("after", _CURSOR, "Go on behind this entry, towards the older ones."),
            query("newer_than", _CURSOR, "Only entries newer than this one."),
            query(
                "resource",
                {"type": "string", "pattern": RESOURCE_PATTERN},
                "Only conflicts of this resource.",
            ),
        ),
    ),
    Call(
        "GET",
        "/parked",
        "The transactions that wait, one of each origin.",
        shape({"parked": listed(ref("Parked"))}),
        (503,),
    ),
    Call(
        "POST",
        "/parked/release",
        "Wait until a parked transaction was tried again, and say what has become of it.",
        shape({"released": _NAMED}),
        (400, 409, 503),
        _NAMED,
    ),
    Call(
        "POST",
        "/parked/drop",
        "Pass over a parked transaction; this node then differs from those that have applied it.",
        shape({"dropped": _NAMED}),
        (400, 409, 503),
        _NAMED,
    ),
    Call(
        "POST",
        "/accept-loss",
        "Let a node that is behind go on with what it has.",
        shape({"node": ID, "partition": TEXT, "phase": TEXT}),
        (400, 409, 503),
        parameters=(
            query(
                "partition",
                {"type": "string", "format": "partition"},
                "Which one, where several are behind; see /status.",
            ),
        ),
    ),
    Call(
        "POST",
        "/promote",
        "Make a region the primary (strategy primary_replica).",
        shape(
            {
                "region": ID,
                "epoch": maybe(COUNT),
                "node": ID,
                "promoted": FLAG,
                "untold": by_name(TEXT),
            }
        ),
        (400, 409, 503),
        _body(
            {"region": TEXT},
            {"wait_s": maybe({"type": "number", "minimum": 0, "maximum": MAX_WAIT_S})},
        ),
    ),
    Call(
        "POST",
        "/pause",
        "Ship no more to a target, or to none, until resumed or restarted.",
        _STEERED,
        (400, 409, 503),
        _body({}, {"target": maybe(_KNOWN)}),
        is_body_optional=True,
    ),
    Call(
        "POST",
        "/resume",
        "Ship again to a target, or to all.",
        _STEERED,
        (400, 409, 503),
        _body({}, {"target": maybe(_KNOWN)}),
        is_body_optional=True,
    ),
    Call(
        "POST",
        "/resync",
        "Give a target a full state transfer.",
        shape({"node": ID, "target": ID, "connected": FLAG}),
        (400, 409, 503),
        _body({"target": _KNOWN}),
    ),
    Call(
        "POST",
        "/topology/reload",
        "Read the configuration again, and take up its regions and nodes.",
        shape(
            {
                "node": ID,
                "reloaded": FLAG,
                "added": listed(ID),
                "removed": listed(ID),
                "moved": listed(ID),
            }
        ),
        (400, 409, 503),
    ),
    Call(
        "POST",
        "/database/adopt",
        "Take over what went to the database past the sidecar; a line of JSON now and then.",
        TEXT,
        (400, 409, 503),
        parameters=(
            query("dry_run", _SWITCH, "1: only say what would be done."),
            query("deletions", _SWITCH, "1: delete here what the database does not hold."),
        ),
        media="application/x-ndjson",
    ),
    Call(
        "POST",
        "/database/reapply",
        "Have the database told everything again.",
        shape({"marked": COUNT}),
        (409, 503),
    ),
    Call(
        "GET",
        "/database/held",
        "What the database refuses, and why.",
        shape({"held": listed(shape({**_TUPLE, "reason": TEXT, "since": TEXT}))}),
        (400, 409, 503),
        parameters=(
            query(
                "limit",
                {"type": "integer", "minimum": 1, "maximum": MAX_HELD},
                _LIMIT.format(100),
            ),
        ),
    ),
    Call(
        "POST",
        "/database/held/release",
        "Have the database told again what it refused.",
        shape({"released": COUNT}),
        (409, 503),
    ),
)


_GUARDED: Final[Guards] = ({"marked": ()}, {"marked": (), "token": ()})
"""The token is asked for where `security.admin.token_file` is set."""

_GUARDS: Final = {
    "marked": {
        "type": "apiKey",
        "in": "header",
        "name": ADMIN_HEADER,
        "description": "1: what a web page of another origin cannot send.",
    },
    "token": {"type": "http", "scheme": "bearer"},
}


def admin_document() -> dict[str, Any]:
    """The document."""
    return document(
        "sidecar, admin listener",
        "What operators and Prometheus call. Errors are `{error, message}`: docs/admin.md.",
        (replace(one, guards=_GUARDED) if one.method == "POST" else one for one in CALLS),
        {
            "Status": _STATUS,
            "Target": _TARGET,
            "Node": _NODE,
            "Parked": _PARKED,
            "Conflict": _CONFLICT,
            "Version": _VERSION,
        },
        _GUARDS,
    )
