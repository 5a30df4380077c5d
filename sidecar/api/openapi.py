"""The OpenAPI document of the app listener: the native API.

The shapes of bodies are those by which they are checked (`bodies`); what is said of answers is held
to the truth by a test that runs against a real node.
"""

from dataclasses import replace
from typing import Any, Final

from sidecar.api import bodies
from sidecar.api.headers import MAX_TIMEOUT_MS
from sidecar.core.token import MAX_TOKEN_BYTES
from sidecar.openapi import (
    COUNT,
    DIGITS,
    EVENTS,
    FLAG,
    OPENAPI,
    TEXT,
    Call,
    Guards,
    Schema,
    document,
    header,
    listed,
    maybe,
    ref,
    schemas_of,
    shape,
)

_BASE = "/access/v1"

_TIMEOUT: Final[Schema] = {"type": "integer", "minimum": 0, "maximum": MAX_TIMEOUT_MS}
TOKEN: Final[Schema] = {"type": "string", "format": "revision-token", "maxLength": MAX_TOKEN_BYTES}

_TENANT = header(
    "X-Tenant",
    {"type": "string", "pattern": "^[a-zA-Z0-9_-]{1,64}$", "default": "default"},
    "The tenant, `default` when absent.",
)
_WRITING = (
    _TENANT,
    header(
        "Idempotency-Key",
        {"type": "string", "format": "idempotency-key", "minLength": 1, "maxLength": 255},
        "1 to 255 printable ASCII characters: a repeat with the same key and body has no second "
        "effect.",
    ),
    header(
        "X-Write-Concern",
        {"type": "string", "enum": ["local", "majority", "all"], "default": "local"},
        "In how many regions the write must be before it is answered.",
    ),
    header("X-Write-Concern-Timeout-Ms", _TIMEOUT, "How long that may take; 5000 when absent."),
)
_READING = (
    _TENANT,
    header("X-Revision-Token", TOKEN, "What the read must cover."),
    header(
        "X-Consistency",
        {"type": "string", "enum": ["fail", "origin"], "default": "fail"},
        "What becomes of a read that does not cover its token in time: it is refused, or asked of "
        "the node of the token.",
    ),
    header("X-Consistency-Timeout-Ms", _TIMEOUT, "How long it may wait; 2000 when absent."),
)
_WRITE_REFUSALS = (400, 403, 409, 410, 413, 415, 422, 503)
_READ_REFUSALS = (400, 403, 409, 410, 413, 415, 503)

_WRITTEN = {"revision": DIGITS, "token": ref("Token")}
_LATE = shape(
    {"error": TEXT, "message": TEXT, **_WRITTEN},
    {"relationships_written": COUNT, "relationships_deleted": COUNT},
)


def _writing(name: str, summary: str, body: str, counts: dict[str, Schema]) -> Call:
    return Call(
        "POST",
        f"{_BASE}/relationships/{name}",
        summary,
        shape({**_WRITTEN, **counts}),
        _WRITE_REFUSALS,
        ref(body),
        parameters=_WRITING,
        # The write is accepted, and too few regions have it yet.
        other_answers={504: {"anyOf": [_LATE, ref("Error")]}},
    )


_PROBED = shape({"status": TEXT, "node": TEXT, "region": TEXT})
_PROBED_NOT = shape({"status": TEXT, "error": TEXT, "message": TEXT, "node": TEXT})
HEALTH: Final = Call(
    "GET",
    "/health",
    "Whether this node serves, with the reasons in words.",
    shape({"status": TEXT, "node": TEXT, "region": TEXT, "release": TEXT}),
    other_answers={503: shape({"status": TEXT, "node": TEXT, "reasons": listed(TEXT)})},
)
PROBES: Final = (
    Call("GET", "/livez", "Whether the process answers.", _PROBED),
    Call(
        "GET",
        "/readyz",
        "Whether applications should come here.",
        shape({"status": TEXT, "node": TEXT, "reasons": listed(TEXT)}, {"lag_ms": COUNT}),
        (400,),
        parameters=(
            {
                "name": "max_lag_ms",
                "in": "query",
                "schema": {"type": "integer", "minimum": 0, "maximum": 3_600_000},
                "description": "Not ready either when this node shows others' writes later.",
            },
        ),
        other_answers={503: _PROBED_NOT},
    ),
)
SELF: Final = Call("GET", OPENAPI, "This document.", shape({"openapi": TEXT, "paths": {}}))

CALLS: Final = (
    _writing(
        "write",
        "Insert relationships, all or none.",
        "WriteBody",
        {"relationships_written": COUNT},
    ),
    _writing(
        "delete",
        "Delete the relationships that are named, or those that match a filter.",
        "DeleteBody",
        {"relationships_deleted": COUNT},
    ),
    _writing(
        "update",
        "Insert and delete relationships in one transaction.",
        "UpdateBody",
        {"relationships_written": COUNT, "relationships_deleted": COUNT},
    ),
    Call(
        "POST",
        f"{_BASE}/relationships/list",
        "What is visible on this node, a page at a time.",
        shape(
            {
                "relationships": listed(ref("RelationshipBody")),
                "cursor": maybe(TEXT),
                "revision": DIGITS,
                "token": ref("Token"),
            }
        ),
        _READ_REFUSALS,
        ref("ListBody"),
        parameters=_READING,
    ),
    Call(
        "POST",
        f"{_BASE}/evaluation",
        "Whether exactly this relationship is there, without a condition (AuthZEN 1.0).",
        shape({"decision": FLAG}),
        _READ_REFUSALS,
        ref("EvaluationBody"),
        parameters=_READING,
    ),
    Call(
        "POST",
        f"{_BASE}/watch",
        "Changes as they become visible on this node, as server-sent events.",
        TEXT,
        _READ_REFUSALS,
        ref("WatchBody"),
        parameters=(
            *_READING,
            header("Last-Event-ID", TEXT, "Beats the cursor of the body."),
        ),
        media=EVENTS,
    ),
    Call(
        "GET",
        f"{_BASE}/tenants",
        "The tenants that have had relationships on this node.",
        shape({"tenants": listed(TEXT)}),
        (503,),
    ),
    HEALTH,
    *PROBES,
    SELF,
)


_OPTIONAL: Final[Guards] = ({}, {"key": ()})
"""A key is asked for where `security.app.keys_file` is set."""

_GUARDS: Final = {"key": {"type": "http", "scheme": "bearer"}}


def app_document() -> dict[str, Any]:
    """The document."""
    schemas = schemas_of(
        {
            "WriteBody": bodies.WRITE,
            "DeleteBody": bodies.DELETE,
            "UpdateBody": bodies.UPDATE,
            "ListBody": bodies.LIST,
            "EvaluationBody": bodies.EVALUATION,
            "WatchBody": bodies.WATCH,
        }
    )
    schemas["Token"] = TOKEN
    schemas["DeleteBody"] = _either(schemas["DeleteBody"])
    return document(
        "sidecar, app listener",
        "The native API. Errors are `{error, message}`; what each word means is in docs/api.md.",
        (replace(one, guards=_OPTIONAL) if one.path.startswith(_BASE) else one for one in CALLS),
        schemas,
        _GUARDS,
    )


def _either(body: Schema) -> Schema:
    """Relationships, or a filter of at least one field and perhaps a limit: not both."""
    named, filtered = dict(body["properties"]), dict(body["properties"])
    named.pop("filter")
    named.pop("limit")
    filtered.pop("relationships")
    wanted = {"allOf": [filtered["filter"]], "minProperties": 1}
    common = {"type": "object", "additionalProperties": False}
    return {
        "oneOf": [
            {**common, "required": ["relationships"], "properties": named},
            {**common, "required": ["filter"], "properties": {**filtered, "filter": wanted}},
        ]
    }
