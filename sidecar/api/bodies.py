"""Request bodies: their shapes, and how a wrong one is described to the caller.

Owns the JSON side only: types, required and unknown fields, limits of counts. What a resource or a
relation may look like is `core.relationship`'s to say; this module adds the place to its messages.

A name that occurs twice in a JSON object counts once, with its last value, as in most JSON
libraries; what is stored and hashed is the decoded form, so nothing downstream sees the difference.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, NotRequired, TypeVar, cast, is_typeddict

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
    with_config,
)
from typing_extensions import TypedDict

from sidecar.core.relationship import (
    ID_PATTERN,
    NAME_PATTERN,
    RESOURCE_PATTERN,
    SUBJECT_PATTERN,
    Change,
    Operation,
    Relationship,
    canonical_condition,
    check_relation,
    check_resource,
    check_subject,
    check_type,
    parse_expires_at,
    type_of,
)
from sidecar.errors import Refused
from sidecar.store.calls import Filter

MAX_CHANGES = 5000
"""Relationships in one request; one more is refused with 413."""

MAX_BODY_BYTES = 4 * 1024 * 1024
"""Bytes of a body after decompression; one more is refused with 413."""

MAX_WATCH_WORDS = 100
"""Entries in each list of a watch filter; more are refused with 400."""

_strict = with_config(ConfigDict(extra="forbid", strict=True))


def _whole(value: object) -> object:
    # For JSON 5.0 is a whole number, too.
    return int(value) if type(value) is float and value.is_integer() else value


Limit = Annotated[int, Field(ge=1, le=MAX_CHANGES), BeforeValidator(_whole)]
Digits = Annotated[str, Field(pattern=r"^[0-9]{1,16}$")]

# What `core.relationship` checks, for readers of the schema only.
Resource = Annotated[str, WithJsonSchema({"type": "string", "pattern": RESOURCE_PATTERN})]
Id = Annotated[str, WithJsonSchema({"type": "string", "pattern": ID_PATTERN})]
Subject = Annotated[str, WithJsonSchema({"type": "string", "pattern": SUBJECT_PATTERN})]
Name = Annotated[str, WithJsonSchema({"type": "string", "pattern": NAME_PATTERN})]
Condition = Annotated[
    Any,
    WithJsonSchema(
        {
            "not": {"type": "null"},
            "description": "Any JSON but null, at most 32 KiB and 100 levels deep.",
        }
    ),
]
SubjectProperties = Annotated[
    dict[str, Any],
    WithJsonSchema(
        {
            "type": "object",
            "properties": {"relation": {"type": ["string", "null"], "pattern": NAME_PATTERN}},
            "description": "With relation it is a set of subjects that is asked for.",
        }
    ),
]
Moment = Annotated[
    str,
    WithJsonSchema(
        {
            "type": "string",
            "format": "date-time",
            "description": "RFC 3339 with a zone, from 1970 to 9999 in UTC.",
        }
    ),
]
Cursor = Annotated[
    str | None,
    WithJsonSchema({"type": ["string", "null"], "format": "cursor"}),
]
Words = Annotated[list[Name], Field(min_length=1, max_length=MAX_WATCH_WORDS)]


@_strict
class RelationshipBody(TypedDict):
    resource: Resource
    relation: Name
    subject: Subject
    condition: NotRequired[Condition]
    expires_at: NotRequired[Moment]


@_strict
class WriteBody(TypedDict):
    relationships: Annotated[list[RelationshipBody], Field(min_length=1, max_length=MAX_CHANGES)]
    expected_revision: NotRequired[Digits]


@_strict
class FilterBody(TypedDict):
    resource: NotRequired[Resource]
    resource_type: NotRequired[Name]
    relation: NotRequired[Name]
    subject: NotRequired[Subject]


@_strict
class DeleteBody(TypedDict):
    relationships: NotRequired[
        Annotated[list[RelationshipBody], Field(min_length=1, max_length=MAX_CHANGES)]
    ]
    filter: NotRequired[FilterBody]
    limit: NotRequired[Limit]
    expected_revision: NotRequired[Digits]


@_strict
class UpdateEntry(TypedDict):
    operation: Literal["insert", "delete"]
    relationship: RelationshipBody


@_strict
class UpdateBody(TypedDict):
    updates: Annotated[list[UpdateEntry], Field(min_length=1, max_length=MAX_CHANGES)]
    expected_revision: NotRequired[Digits]


@_strict
class ListBody(FilterBody):
    limit: NotRequired[Limit]
    cursor: NotRequired[Cursor]


@_strict
class EntityBody(TypedDict):
    type: Name
    id: Id
    properties: NotRequired[dict[str, Any]]


@_strict
class SubjectEntityBody(TypedDict):
    type: Name
    id: Id
    properties: NotRequired[SubjectProperties]


@_strict
class ActionBody(TypedDict):
    name: Name
    properties: NotRequired[dict[str, Any]]


@_strict
class EvaluationBody(TypedDict):
    """An access evaluation request of the OpenID AuthZEN Authorization API 1.0, section 6.1."""

    subject: SubjectEntityBody
    action: ActionBody
    resource: EntityBody
    context: NotRequired[dict[str, Any]]


@_strict
class WatchBody(TypedDict):
    resource_types: NotRequired[Words]
    relations: NotRequired[Words]
    operations: NotRequired[
        Annotated[list[Literal["insert", "delete"]], Field(min_length=1, max_length=2)]
    ]
    cursor: NotRequired[Cursor]


Body = TypeVar("Body")

WRITE: TypeAdapter[WriteBody] = TypeAdapter(WriteBody)
DELETE: TypeAdapter[DeleteBody] = TypeAdapter(DeleteBody)
UPDATE: TypeAdapter[UpdateBody] = TypeAdapter(UpdateBody)
LIST: TypeAdapter[ListBody] = TypeAdapter(ListBody)
EVALUATION: TypeAdapter[EvaluationBody] = TypeAdapter(EvaluationBody)
WATCH: TypeAdapter[WatchBody] = TypeAdapter(WatchBody)


def parse(adapter: TypeAdapter[Body], raw: bytes) -> Body:
    """The body in its shape, or Refused: 400 `invalid_json`, 400 `invalid_request`, 413."""
    try:
        return cast("Body", adapter.validator.validate_json(raw))
    except ValidationError as error:
        raise _refused(adapter, error) from None


def inserts(tenant: str, items: Sequence[RelationshipBody]) -> list[Change]:
    """One insert per distinct relationship; the same one with two payloads is refused."""
    built = relationships(tenant, items, "relationships")
    if len(built) > 1:
        built = _distinct(built)
    return [Change(Operation.INSERT, one) for one in built]


def deletes(tenant: str, items: Sequence[RelationshipBody]) -> list[Change]:
    """One delete per distinct relationship; payloads are checked and left out."""
    built = relationships(tenant, items, "relationships")
    distinct = {one.identity: one for one in built}
    return [deletion(one) for one in distinct.values()]


def updates(tenant: str, items: Sequence[UpdateEntry]) -> list[Change]:
    """The changes of one transaction, in order; a relationship named twice is refused."""
    place = "updates"
    built = relationships(tenant, [item["relationship"] for item in items], place, ".relationship")
    first: dict[tuple[str, str, str, str], int] = {}
    for index, one in enumerate(built):
        earlier = first.setdefault(one.identity, index)
        if earlier != index:
            raise Refused(
                "duplicate_relationship",
                f"updates[{index}] and updates[{earlier}] name the same relationship; "
                "one transaction changes a relationship once",
            )
    return [
        Change(Operation.INSERT, one) if item["operation"] == "insert" else deletion(one)
        for item, one in zip(items, built, strict=True)
    ]


def deletion(one: Relationship) -> Change:
    """The change that deletes this relationship."""
    if one.condition is not None or one.expires_at is not None:
        one = Relationship(one.tenant, one.resource, one.relation, one.subject)
    return Change(Operation.DELETE, one)


def relationships(
    tenant: str, items: Sequence[RelationshipBody], place: str, below: str = ""
) -> list[Relationship]:
    """Checked relationships; a refusal names `place[index]below.field`."""
    built = []
    index, field = 0, ""
    try:
        for index, item in enumerate(items):  # noqa: B007 - the refusal below names it
            condition, expires_at = None, None
            if len(item) > 3:
                if "condition" in item:
                    field = ".condition"
                    condition = _condition(item["condition"])
                if "expires_at" in item:
                    field = ".expires_at"
                    expires_at = parse_expires_at(item["expires_at"])
            field = ".resource"
            resource = check_resource(item["resource"])
            field = ".relation"
            relation = check_relation(item["relation"])
            field = ".subject"
            subject = check_subject(item["subject"])
            built.append(Relationship(tenant, resource, relation, subject, condition, expires_at))
    except Refused as refusal:
        raise placed(refusal, f"{place}[{index}]{below}{field}") from None
    return built


def filter_of(tenant: str, body: FilterBody | ListBody, place: str = "") -> Filter:
    """A checked filter; fields that are absent are None."""
    resource = _checked(body, "resource", check_resource, place)
    resource_type = _checked(body, "resource_type", check_type, place)
    if resource is not None and resource_type is not None and type_of(resource) != resource_type:
        raise Refused(
            "invalid_request",
            f"{place}resource and {place}resource_type name different types; nothing can match",
        )
    return Filter(
        tenant=tenant,
        resource=resource,
        resource_type=None if resource is not None else resource_type,
        relation=_checked(body, "relation", check_relation, place),
        subject=_checked(body, "subject", check_subject, place),
    )


def question_of(body: EvaluationBody) -> tuple[str, str, str]:
    """resource, relation and subject that an evaluation asks for.

    The subject is a set of subjects (`type:id#relation`) when its properties have a `relation`;
    every other property, and the context, is for engines that evaluate conditions.
    """
    subject = _entity(body["subject"], "subject")
    relation_of_subject = body["subject"].get("properties", {}).get("relation")
    if relation_of_subject is not None:
        place = "subject.properties.relation"
        if not isinstance(relation_of_subject, str):
            raise Refused("invalid_request", f"{place}: must be a string")
        subject = f"{subject}#{_at(place, check_relation, relation_of_subject)}"
    return (
        _entity(body["resource"], "resource"),
        _at("action.name", check_relation, body["action"]["name"]),
        subject,
    )


def placed(refusal: Refused, place: str) -> Refused:
    """The same refusal, with the place in front of its message."""
    return Refused(refusal.code, f"{place}: {refusal.message}", refusal.status)


def check_words(body: WatchBody) -> None:
    """Refuse a watch filter that names what cannot exist."""
    for index, one in enumerate(body.get("resource_types", ())):
        _at(f"resource_types[{index}]", check_type, one)
    for index, one in enumerate(body.get("relations", ())):
        _at(f"relations[{index}]", check_relation, one)


def _condition(value: object) -> str:
    if value is None:
        raise Refused("invalid_relationship", "null is no condition; leave the field out")
    return canonical_condition(value)


def _distinct(built: list[Relationship]) -> list[Relationship]:
    first: dict[tuple[str, str, str, str], tuple[int, Relationship]] = {}
    for index, one in enumerate(built):
        earlier, same = first.setdefault(one.identity, (index, one))
        if same is not one and same != one:
            raise Refused(
                "duplicate_relationship",
                f"relationships[{index}] and relationships[{earlier}] are the same relationship "
                "with different condition or expires_at; which one is meant is unclear",
            )
    return [one for _, one in first.values()]


def _entity(body: EntityBody | SubjectEntityBody, place: str) -> str:
    _at(f"{place}.type", check_type, body["type"])
    # Checked as a resource, which has no '#': a set of subjects is asked for by its own field.
    return _at(f"{place}.id", check_resource, f"{body['type']}:{body['id']}")


def _checked(body: Mapping[str, Any], field: str, check: Any, place: str) -> str | None:
    if field not in body:
        return None
    return _at(f"{place}{field}", check, body[field])


def _at(place: str, check: Any, text: str) -> str:
    try:
        return cast("str", check(text))
    except Refused as refusal:
        raise placed(refusal, place) from None


# ---- how a wrong body is described ----------------------------------------------------------

_WORDS = {
    "missing": "is required",
    "string_type": "must be a string",
    "list_type": "must be an array",
    "dict_type": "must be an object",
    "int_type": "must be a whole number",
    "none_required": "must be null",
}


def _refused(adapter: TypeAdapter[Any], error: ValidationError) -> Refused:
    found = error.errors(include_url=False, include_input=False)
    first = found[0]
    kind = first["type"]
    if kind == "json_invalid":
        return Refused("invalid_json", f"the body is not JSON: {first['ctx']['error']}")
    place = _place(first["loc"])
    if kind == "too_long" and first["ctx"]["max_length"] == MAX_CHANGES:
        return Refused(
            "too_many_relationships",
            f"{place}: at most {MAX_CHANGES} relationships are allowed in one request",
            413,
        )
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return Refused("invalid_request", f"{place}: {_reason(adapter, first)}{more}")


def _reason(adapter: TypeAdapter[Any], first: Mapping[str, Any]) -> str:
    kind = first["type"]
    if kind == "extra_forbidden":
        fields = ", ".join(_fields_at(adapter, first["loc"][:-1]))
        return f"is not a field here; the fields are {fields}"
    if kind == "too_short":
        return "must not be empty"
    if kind == "string_pattern_mismatch":
        return "must be a string of 1 to 16 digits, as in `revision`"
    return _WORDS.get(kind) or _lowered(first["msg"])


def _lowered(message: str) -> str:
    return message.replace("Input should be", "must be").replace("List should have", "must have")


def _place(loc: Iterable[int | str]) -> str:
    place = ""
    for part in loc:
        if isinstance(part, int):
            place += f"[{part}]"
        elif re.fullmatch(r"\w{1,64}", part):
            place += f".{part}"
        else:
            place += f'."{part[:60]}"'
    return place.removeprefix(".") or "the body"


def _fields_at(adapter: TypeAdapter[Any], loc: Sequence[int | str]) -> list[str]:
    """The names of the fields of the object at this place."""
    shape: Any = adapter._type
    for part in loc:
        if isinstance(part, str):
            shape = shape.__annotations__[part]
        shape = _object_in(shape)
    return list(shape.__annotations__)


def _object_in(annotation: Any) -> Any:
    """The typed dict inside Annotated[list[…]] and NotRequired[…]."""
    while not is_typeddict(annotation) and hasattr(annotation, "__args__"):
        annotation = annotation.__args__[0]
    return annotation
