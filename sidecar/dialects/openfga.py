"""OpenFGA's HTTP API, from version 1.10.0 on.

A store is a tenant. Each region gave the store and its models ids of its own, so a request may name
those of any region and gets those of this one on the way. Models are not replicated: they are
written in each region and named in the configuration. A condition is `{"context": …, "name": …}`;
an expiration has no place here.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple
from urllib.parse import unquote

from sidecar.core.relationship import (
    Change,
    Identity,
    Operation,
    Relationship,
    check_relation,
    check_resource,
    check_subject,
)
from sidecar.core.topology import RegionId
from sidecar.dialects.dialect import (
    Ask,
    Call,
    Found,
    Kind,
    ReplicatedDialect,
    Request,
    Verdict,
    Write,
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

NO_TENANT = "default"
"""Of calls that concern no store."""

PAGE = 100
"""Tuples in an answer to `find`: OpenFGA's own limit."""

FEW = 20
"""So many tuples of one relation of an object are asked for one by one, more with one filter."""

_WRITE = Call("Write", Kind.WRITE, looks_inside=True)


def _with_model(name: str) -> Call:
    """A read whose body may name a model."""
    return Call(name, Kind.READ, looks_inside=True)


# By what follows the store; ID stands for a model.
ID = "{id}"
CALLS = {
    ("POST", ("write",)): _WRITE,
    ("POST", ("read",)): Call("Read", Kind.READ),
    ("POST", ("check",)): _with_model("Check"),
    ("POST", ("batch-check",)): _with_model("BatchCheck"),
    ("POST", ("expand",)): _with_model("Expand"),
    ("POST", ("list-objects",)): _with_model("ListObjects"),
    ("POST", ("streamed-list-objects",)): _with_model("StreamedListObjects"),
    ("POST", ("list-users",)): _with_model("ListUsers"),
    ("GET", ("changes",)): Call("ReadChanges", Kind.READ),
    ("GET", ()): Call("GetStore", Kind.READ),
    ("GET", ("authorization-models",)): Call("ReadAuthorizationModels", Kind.READ),
    ("GET", ("authorization-models", ID)): Call("ReadAuthorizationModel", Kind.READ),
    ("GET", ("assertions", ID)): Call("ReadAssertions", Kind.READ),
}
OTHER_CALLS = {
    ("GET", "/stores"): Call("ListStores", Kind.CONTROL),
    ("GET", "/healthz"): Call("Health", Kind.CONTROL),
}
REFUSED_CALLS = {
    ("POST", ("authorization-models",)): "write the model in each region, directly, and name its "
    "ids under database.stores",
    ("PUT", ("assertions", ID)): "write the assertions in each region, directly",
    ("DELETE", ()): "delete the store in each region, directly",
}
CREATE_STORE = "create the store in each region, directly, and name its ids under database.stores"

_MODEL_FIELDS = ("authorization_model_id", "authorizationModelId")
_CHANGES_OF_CONDITION = "different condition"
_PASSING = {401, 403, 408, 409, 422, 429}
"""4xx that say nothing of the tuples: keys, conflicts, time-outs, throttling."""


class Store(NamedTuple):
    """What one region calls a store, and its models by their names in the configuration."""

    store: str
    models: Mapping[str, str]


class OpenFGA(ReplicatedDialect):
    """stores: by tenant and region."""

    name: ClassVar[str] = "openfga"
    proven: ClassVar[str] = "a stand-in that keeps OpenFGA's rules; never an OpenFGA server"
    health_path: ClassVar[str] = "/healthz"
    most_changes: ClassVar[int] = 100

    def __init__(self, stores: Mapping[str, Mapping[RegionId, Store]], region: RegionId) -> None:
        self._region = region
        self._here = {
            tenant: regions[region] for tenant, regions in stores.items() if region in regions
        }
        self._tenants = {
            one.store: tenant for tenant, regions in stores.items() for one in regions.values()
        }
        self._models = {
            tenant: dict(_counterparts(self._here[tenant], regions.values()))
            for tenant, regions in stores.items()
            if tenant in self._here
        }

    # -- what applications ask --------------------------------------------------------------------

    def call_of(self, method: str, path: str) -> Call | None:
        parts = _parts(path)
        if parts is None and (method, unquote(path)) == ("POST", "/stores"):
            raise not_replicated(f"not carried to other regions: {CREATE_STORE}")
        if parts is None:
            return OTHER_CALLS.get((method, unquote(path)))
        _, *rest = parts
        if len(rest) == 2 and rest[0] in ("authorization-models", "assertions"):
            rest[1] = ID
        key = (method, tuple(rest))
        if key in REFUSED_CALLS:
            raise not_replicated(f"not carried to other regions: {REFUSED_CALLS[key]}")
        return CALLS.get(key)

    def tenant_of(self, path: str) -> str:
        parts = _parts(path)
        if parts is None:
            return NO_TENANT
        tenant = self._tenants.get(parts[0])
        if tenant is None:
            raise Refused(
                "unknown_store",
                f"the store {json.dumps(parts[0][:60])} is not one of those under database.stores",
                404,
            )
        return tenant

    def localized(self, call: Call, request: Request, is_issued: Callable[[str], bool]) -> Request:
        parts = _parts(request.path)
        if parts is None:
            return request
        tenant = self.tenant_of(request.path)
        store = self._here_of(tenant).store
        models = self._models[tenant]
        rest = [models.get(part, part) for part in parts[1:]]
        local = [store, *rest]
        if local != parts:
            request = request._replace(path="/".join(["", "stores", *local]))
        return self._with_local_model(request, models) if call.looks_inside else request

    def write_of(self, call: Call, request: Request) -> Write | None:
        try:
            changes = list(_changes(self.tenant_of(request.path), parsed(request.body)))
        except Malformed:
            return None
        identities = {change.relationship.identity for change in changes}
        if not changes or len(identities) < len(changes):
            return None
        return Write(changes[0].relationship.tenant, changes)

    # -- what the sidecar asks --------------------------------------------------------------------

    @property
    def tenants(self) -> Sequence[str]:
        return tuple(self._here)

    def find(self, tenant: str, matching: Mapping[str, object], cursor: str | None) -> Ask:
        asked: dict[str, object] = {"page_size": PAGE, "consistency": "HIGHER_CONSISTENCY"}
        if matching:
            asked["tuple_key"] = matching
        if cursor is not None:
            asked["continuation_token"] = cursor
        return Ask("POST", self._path(tenant, "read"), dumped(asked))

    def found(self, tenant: str, body: bytes) -> Found:
        answer = parsed(body)
        tuples = items(answer.get("tuples"))
        keys = [fields(one, ["key", "timestamp"]).get("key") for one in tuples]
        cursor = text(answer.get("continuation_token") or "")
        return Found([_relationship(tenant, key) for key in keys], cursor or None)

    def look(self, identities: Sequence[Identity]) -> Sequence[Mapping[str, object]]:
        groups: dict[tuple[str, str], list[str]] = defaultdict(list)
        for _, resource, relation, subject in identities:
            groups[resource, relation].append(subject)
        return [
            matching
            for (resource, relation), subjects in groups.items()
            for matching in _filters({"object": resource, "relation": relation}, subjects)
        ]

    def everything(self, tenant: str, schema: str | None) -> Sequence[Mapping[str, object]]:
        return [{}]

    def apply(self, tenant: str, changes: Sequence[Change]) -> Ask:
        asked: dict[str, object] = {}
        inserts = [one.relationship for one in changes if one.operation is Operation.INSERT]
        deletes = [one.relationship for one in changes if one.operation is Operation.DELETE]
        if inserts:
            asked["writes"] = {"tuple_keys": list(map(_key, inserts)), "on_duplicate": "ignore"}
        if deletes:
            asked["deletes"] = {"tuple_keys": list(map(_bare_key, deletes)), "on_missing": "ignore"}
        return Ask("POST", self._path(tenant, "write"), dumped(asked))

    def replace(self, tenant: str, change: Change) -> Sequence[Ask]:
        # OpenFGA neither overwrites a condition nor takes a tuple twice in one request. In between
        # the tuple is missing: a permission that comes late, never one too many.
        delete = Change(Operation.DELETE, change.relationship)
        steps = [delete] if change.operation is Operation.DELETE else [delete, change]
        return tuple(self.apply(tenant, [step]) for step in steps)

    def verdict(self, status: int, body: bytes) -> Verdict:
        if 200 <= status < 300:
            return Verdict.DONE
        if status == 409 and _CHANGES_OF_CONDITION.encode() in body:
            return Verdict.DIFFERS
        # Without a code it comes from something in between, such as a load balancer.
        is_openfga = _has_code(body)
        is_about_request = 400 <= status < 500 and status not in _PASSING and is_openfga
        return Verdict.REFUSED if is_about_request or status == 413 else Verdict.AGAIN

    # -- names in this region ---------------------------------------------------------------------

    def _here_of(self, tenant: str) -> Store:
        store = self._here.get(tenant)
        if store is None:
            raise Refused(
                "unknown_store",
                f"the store {tenant} is not in {self._region}: database.stores names no id for it",
                404,
            )
        return store

    def _path(self, tenant: str, call: str) -> str:
        return f"/stores/{self._here_of(tenant).store}/{call}"

    def _with_local_model(self, request: Request, models: Mapping[str, str]) -> Request:
        foreign = (one for one, here in models.items() if one != here)
        if not any(one.encode() in request.body for one in foreign):
            return request
        try:
            message = parsed(request.body)
        except (Malformed, Refused):
            return request
        local = {
            name: models[message[name]]
            for name in _MODEL_FIELDS
            if isinstance(message.get(name), str) and message[name] in models
        }
        if all(message[name] == here for name, here in local.items()):
            return request
        return request._replace(body=dumped(message | local))


def _parts(path: str) -> list[str] | None:
    """The store in a path and what follows; None where it names none. Escapes are undone first, as
    OpenFGA does.
    """
    match unquote(path).split("/"):
        case ["", "stores", store, *rest] if store:
            return [store, *rest]
    return None


def _counterparts(here: Store, everywhere: Iterable[Store]) -> Iterator[tuple[str, str]]:
    """Every region's id of a model, and the id of the same model here."""
    for one in everywhere:
        for name, model in one.models.items():
            if name in here.models:
                yield model, here.models[name]


# -- tuples ----------------------------------------------------------------------------------------


def _changes(tenant: str, message: dict[str, Any]) -> Iterator[Change]:
    there = fields(message, ["storeId", "writes", "deletes", "authorizationModelId"])
    writes = fields(there.get("writes"), ["tupleKeys", "onDuplicate"])
    for key in items(writes.get("tupleKeys", [])):
        yield Change(Operation.INSERT, _relationship(tenant, key))
    deletes = fields(there.get("deletes"), ["tupleKeys", "onMissing"])
    for key in items(deletes.get("tupleKeys", [])):
        # The condition of a tuple that goes is ignored, here as there.
        bare = {name: value for name, value in fields(key, KEY).items() if name != "condition"}
        yield Change(Operation.DELETE, _relationship(tenant, bare))


KEY = ("user", "relation", "object", "condition")


def _relationship(tenant: str, key: object) -> Relationship:
    there = fields(key, KEY)
    user, relation, named = (text(there.get(name, "")) for name in KEY[:3])
    if not relation or ":" not in user or ":" not in named:
        raise Malformed("no tuple")
    condition = _condition(there["condition"]) if "condition" in there else None
    try:
        return Relationship(
            tenant, check_resource(named), check_relation(relation), check_subject(user), condition
        )
    except Refused as refused:
        # OpenFGA's types, relations and ids may hold nearly anything.
        raise not_replicated(refused.message) from None


def _condition(condition: object) -> str:
    there = fields(condition, ["name", "context"])
    context = there.get("context", {})
    if not isinstance(context, dict):
        raise Malformed("a context that is no object")
    return carried({"name": text(there.get("name", "")), "context": context})


def _key(relationship: Relationship) -> dict[str, object]:
    key = _bare_key(relationship)
    if relationship.expires_at is not None:
        raise Refused("cannot_carry", "OpenFGA has no place for an expiration")
    if relationship.condition is None:
        return key
    match json.loads(relationship.condition):
        case {"name": str(name), "context": dict(context), **others} if not others:
            return key | {"condition": {"name": name, "context": context}}
    shown = relationship.condition[:60]
    raise Refused("cannot_carry", f"OpenFGA has no place for the condition {shown}")


def _bare_key(relationship: Relationship) -> dict[str, object]:
    _, resource, relation, subject, *_ = relationship
    return {"user": subject, "relation": relation, "object": resource}


def _filters(of: Mapping[str, object], subjects: Sequence[str]) -> Iterator[Mapping[str, object]]:
    if len(subjects) >= FEW:
        yield of
        return
    for subject in subjects:
        yield {**of, "user": subject}


def _has_code(body: bytes) -> bool:
    try:
        answer = json.loads(body)
    except ValueError:
        return False
    return isinstance(answer, dict) and "code" in answer
