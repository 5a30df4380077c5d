"""The text of import and export: lines of NDJSON into requests, relationships into lines.

Owns the two forms a line can have, what may share a request, how a transaction above the request
limit is cut, and the order of an export. Pure: it reads no file and knows no HTTP beyond the path
and body of the requests it makes.

A relationship per line:  {"resource", "relation", "subject", tenant?, condition?, expires_at?}
A transaction per line:   {"insert": [[resource, relation, subject], …], "delete": [[…], …]}
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sidecar.core.relationship import (
    Identity,
    canonical_condition,
    check_relation,
    check_resource,
    check_subject,
    check_tenant,
    parse_expires_at,
)
from sidecar.errors import Refused

WRITE_PATH = "/access/v1/relationships/write"
UPDATE_PATH = "/access/v1/relationships/update"
DEFAULT_TENANT = "default"

# What one `write` of an import carries: large enough to be quick, small enough to be repeated.
BATCH_RELATIONSHIPS = 1_000
# What the sidecar takes in one request; a transaction above it is cut.
MAX_RELATIONSHIPS = 5_000
MAX_REQUEST_BYTES = 4 * 1024 * 1024
# A transaction above the request limit is allowed on a line; a file without line ends is not.
MAX_LINE_BYTES = 64 * 1024 * 1024

_REQUIRED = ("resource", "relation", "subject")
_OPTIONAL = ("tenant", "condition", "expires_at")


class BadLine(Refused):
    """A line that cannot be imported; `line` counts from 1."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__("bad_line", message)
        self.line = line


@dataclass(frozen=True, slots=True)
class Request:
    """One request of an import.

    `lines` has the line of each relationship in the body, in order. `parts` is above 1 where a
    transaction had to be cut.
    """

    path: str
    tenant: str
    body: bytes
    lines: tuple[int, ...]
    inserts: int
    deletes: int
    part: int = 1
    parts: int = 1

    @property
    def first_line(self) -> int:
        return self.lines[0]

    @property
    def last_line(self) -> int:
        return self.lines[-1]

    @property
    def is_transaction(self) -> bool:
        return self.path == UPDATE_PATH


@dataclass(slots=True)
class _Batch:
    """Consecutive relationships of one tenant on their way into one `write`."""

    tenant: str
    pieces: list[bytes] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    identities: set[Identity] = field(default_factory=set)
    size: int = len(b'{"relationships":[]}')

    def has_room(self, identity: Identity, piece: bytes) -> bool:
        # The same relationship twice goes into two requests: the later line must win.
        return (
            identity[0] == self.tenant
            and identity not in self.identities
            and len(self.pieces) < BATCH_RELATIONSHIPS
            and self.size + len(piece) + 1 <= MAX_REQUEST_BYTES
        )

    def add(self, line: int, identity: Identity, piece: bytes) -> None:
        self.pieces.append(piece)
        self.lines.append(line)
        self.identities.add(identity)
        self.size += len(piece) + 1

    def request(self) -> Request:
        body = b'{"relationships":[' + b",".join(self.pieces) + b"]}"
        return Request(WRITE_PATH, self.tenant, body, tuple(self.lines), len(self.pieces), 0)


def requests(lines: Iterable[tuple[int, bytes]], tenant: str) -> Iterator[Request]:
    """The requests that carry `lines` (number, text), in their order.

    `tenant` is that of transactions, and of relationships that name none. Blank lines and empty
    transactions carry nothing. Raises BadLine; whatever came before it has been yielded.
    """
    batch: _Batch | None = None
    for number, text in lines:
        if not text.strip():
            continue
        try:
            content = _parsed(number, text)
            is_transaction = _is_transaction(number, content)
            if not is_transaction:
                identity, piece = _relationship(number, content, tenant)
        except BadLine:
            if batch is not None:
                yield batch.request()
            raise
        if batch is not None and (is_transaction or not batch.has_room(identity, piece)):
            yield batch.request()
            batch = None
        if is_transaction:
            yield from _transaction(number, content, tenant)
            continue
        if batch is None:
            batch = _Batch(identity[0])
        batch.add(number, identity, piece)
    if batch is not None:
        yield batch.request()


def export_line(tenant: str, relationship: Mapping[str, Any]) -> bytes:
    """A relationship, as the sidecar lists it, as one line; the tenant is named unless default."""
    content: dict[str, Any] = {name: relationship[name] for name in _REQUIRED}
    if tenant != DEFAULT_TENANT:
        content["tenant"] = tenant
    for name in ("condition", "expires_at"):
        if relationship.get(name) is not None:
            content[name] = relationship[name]
    return _encoded(content) + b"\n"


def sort_key(relationship: Mapping[str, Any]) -> tuple[bytes, bytes, bytes]:
    """The order of an export within a tenant: by bytes, and unique for a relationship."""
    resource, relation, subject = (str(relationship[name]).encode() for name in _REQUIRED)
    return resource, relation, subject


# --- one line -------------------------------------------------------------------------------------


def _parsed(number: int, text: bytes) -> dict[str, Any]:
    try:
        content = json.loads(text.decode("utf-8-sig" if number == 1 else "utf-8"))
        # What Python reads and JSON cannot say: NaN, 1e999, half a surrogate pair.
        _encoded(content)
    except json.JSONDecodeError as error:
        raise BadLine(number, f"is not JSON: {error.msg} (column {error.colno})") from None
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        raise BadLine(number, f"is not UTF-8: {error.reason}") from None
    except (ValueError, RecursionError) as error:
        raise BadLine(number, f"is not JSON: {str(error)[:120]}") from None
    if not isinstance(content, dict):
        raise BadLine(number, "should be a JSON object: a relationship or a transaction")
    return content


def _is_transaction(number: int, content: Mapping[str, Any]) -> bool:
    has_changes = "insert" in content or "delete" in content
    missing = [name for name in _REQUIRED if name not in content]
    if has_changes and len(missing) < len(_REQUIRED):
        raise BadLine(
            number, "has keys of both forms; either resource, relation, subject or insert, delete"
        )
    if not has_changes and len(missing) == len(_REQUIRED):
        raise BadLine(
            number,
            "is neither a relationship (resource, relation, subject) "
            "nor a transaction (insert, delete)",
        )
    if not has_changes and missing:
        raise BadLine(number, f"lacks {', '.join(missing)}")
    return has_changes


def _relationship(number: int, content: Mapping[str, Any], tenant: str) -> tuple[Identity, bytes]:
    for name in content:
        # A misspelt condition would grant without it: no key is passed over.
        if name not in _REQUIRED and name not in _OPTIONAL:
            raise BadLine(
                number, f"has an unknown key {name!r}; known: {', '.join(_REQUIRED + _OPTIONAL)}"
            )
    named = content.get("tenant")
    own_tenant = tenant if named is None else _text(number, "tenant", named)
    resource, relation, subject = (_text(number, name, content[name]) for name in _REQUIRED)
    payload: dict[str, Any] = {}
    try:
        check_tenant(own_tenant)
        _check(resource, relation, subject)
        if (condition := content.get("condition")) is not None:
            canonical_condition(condition)
            payload["condition"] = condition
        if (expires_at := content.get("expires_at")) is not None:
            parse_expires_at(_text(number, "expires_at", expires_at))
            payload["expires_at"] = expires_at
    except BadLine:
        raise
    except Refused as refused:
        raise BadLine(number, refused.message) from None
    encoded = _encoded({"resource": resource, "relation": relation, "subject": subject, **payload})
    return (own_tenant, resource, relation, subject), encoded


def _transaction(number: int, content: Mapping[str, Any], tenant: str) -> Iterator[Request]:
    """The request of one transaction, or several above the limit: inserts first, as written."""
    changes: list[tuple[bytes, bool]] = []
    seen: set[tuple[str, str, str]] = set()
    for operation in ("insert", "delete"):
        listed = content.get(operation)
        if listed is None:
            continue
        if not isinstance(listed, list):
            raise BadLine(number, f"{operation} should be a list of [resource, relation, subject]")
        for index, triple in enumerate(listed):
            named = _triple(number, f"{operation}[{index}]", triple)
            if named in seen:
                # Cut into parts, the sidecar could no longer refuse it; so it is refused here.
                raise BadLine(number, f"{operation}[{index}] names {' '.join(named)} a second time")
            seen.add(named)
            resource, relation, subject = named
            relationship = {"resource": resource, "relation": relation, "subject": subject}
            piece = _encoded({"operation": operation, "relationship": relationship})
            changes.append((piece, operation == "insert"))
    groups = list(_cut(changes))
    for part, group in enumerate(groups, 1):
        inserts = sum(is_insert for _, is_insert in group)
        yield Request(
            UPDATE_PATH,
            tenant,
            b'{"updates":[' + b",".join(piece for piece, _ in group) + b"]}",
            (number,) * len(group),
            inserts,
            len(group) - inserts,
            part,
            len(groups),
        )


def _cut(changes: list[tuple[bytes, bool]]) -> Iterator[list[tuple[bytes, bool]]]:
    group: list[tuple[bytes, bool]] = []
    frame = len(b'{"updates":[]}')
    size = frame
    for change in changes:
        if group and (
            len(group) == MAX_RELATIONSHIPS or size + len(change[0]) + 1 > MAX_REQUEST_BYTES
        ):
            yield group
            group, size = [], frame
        group.append(change)
        size += len(change[0]) + 1
    if group:
        yield group


def _triple(number: int, place: str, triple: object) -> tuple[str, str, str]:
    if not isinstance(triple, list) or len(triple) != 3:
        raise BadLine(number, f"{place} should be [resource, relation, subject]")
    resource, relation, subject = (_text(number, place, text) for text in triple)
    try:
        _check(resource, relation, subject)
    except Refused as refused:
        raise BadLine(number, f"{place}: {refused.message}") from None
    return resource, relation, subject


def _check(resource: str, relation: str, subject: str) -> None:
    check_resource(resource)
    check_relation(relation)
    check_subject(subject)


def _text(number: int, place: str, value: object) -> str:
    if not isinstance(value, str):
        raise BadLine(number, f"{place} should be text")
    return value


def _encoded(content: object) -> bytes:
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode()
