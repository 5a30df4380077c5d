"""The rules of OpenFGA's tuples, as its public API states them: what is taken, refused, shown.

A stand-in for tests, written from the documentation and the server's messages; it is not OpenFGA. A
`Store` keeps tuples and their changes in memory. It evaluates nothing: `check` looks for the tuple
itself (or its wildcard), and a condition counts as met.
"""

import base64
import binascii
import json
import re
import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

MAX_TUPLES_PER_WRITE = 100
MAX_PAGE, DEFAULT_PAGE = 100, 50
ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
ID = re.compile(f"[{ALPHABET}]{{26}}")
OBJECT = re.compile(r"[^\s]{2,256}")
RELATION = re.compile(r"[^:#@\s]{1,50}")
USER = re.compile(r"[^\s]{2,512}")

Json = dict[str, Any]


class OpenFgaError(Exception):
    """A refusal: HTTP status, OpenFGA's code for it, and its sentence."""

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.code, self.message, self.status = code, message, status


def invalid(message: str) -> OpenFgaError:
    return OpenFgaError("validation_error", message)


class Key(NamedTuple):
    """What a tuple is: its condition is not part of it."""

    user: str
    relation: str
    object: str

    @classmethod
    def of(cls, asked: Mapping[str, Any]) -> "Key":
        key = cls(*(str(asked.get(name, "")) for name in cls._fields))
        for pattern, text, name in zip((USER, RELATION, OBJECT), key, cls._fields, strict=True):
            if not pattern.fullmatch(text):
                shown = pattern.pattern
                raise invalid(
                    f"invalid TupleKey.{name.title()}: "
                    f'value does not match regex pattern "^{shown}$"'
                )
        return key

    @property
    def object_type(self) -> str:
        return self.object.partition(":")[0]

    def __str__(self) -> str:
        return f"user: '{self.user}', relation: '{self.relation}', object: '{self.object}'"

    def shown(self, condition: Json | None) -> Json:
        return {**self._asdict(), "condition": condition}


@dataclass(frozen=True)
class Model:
    """An authorization model: its id, and what it knows by name."""

    id: str
    text: Json

    def require(self, key: Key, condition: Json | None) -> None:
        """Refuse a tuple whose type, relation or condition this model does not know."""
        types = {one["type"]: one.get("relations") or {} for one in self.text["type_definitions"]}
        user_type = key.user.partition(":")[0]
        short = f"{key.object}#{key.relation}@{key.user}"
        if condition:
            short += f" (condition {condition['name']})"
        reason = ""
        if ":" not in key.object or key.object.endswith(":"):
            reason = "invalid 'object' field format"
        elif ":" not in key.user:
            reason = "the 'user' field must be an object (e.g. document:1) or an 'object#relation'"
        elif key.object_type not in types:
            reason = f"type '{key.object_type}' not found"
        elif user_type not in types:
            reason = f"type '{user_type}' not found"
        elif key.relation not in types[key.object_type]:
            reason = f"relation '{key.object_type}#{key.relation}' not found"
        elif condition and condition["name"] not in (self.text.get("conditions") or {}):
            reason = "undefined condition"
        elif key.user == f"{key.object}#{key.relation}":
            reason = "cannot write a tuple that is implicit"
        if reason:
            raise invalid(f"Invalid tuple '{short}'. Reason: {reason}")


class Stored(NamedTuple):
    condition: Json | None
    timestamp: str


class Change(NamedTuple):
    key: Key
    condition: Json | None
    operation: str
    timestamp: str

    def shown(self) -> Json:
        return {
            "tuple_key": self.key.shown(self.condition),
            "operation": f"TUPLE_OPERATION_{self.operation}",
            "timestamp": self.timestamp,
        }


@dataclass
class Store:
    """The tuples of a store, its models (the last one is the latest) and its changes."""

    id: str
    name: str
    created_at: str
    models: dict[str, Model] = field(default_factory=dict)
    tuples: dict[Key, Stored] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)

    def shown(self) -> Json:
        times = dict.fromkeys(("created_at", "updated_at"), self.created_at)
        return {"id": self.id, "name": self.name, **times, "deleted_at": None}

    def add_model(self, text: Json) -> str:
        if not text.get("type_definitions"):
            raise invalid("invalid WriteAuthorizationModelRequest.TypeDefinitions: value required")
        model = Model(new_id(), text)
        self.models[model.id] = model
        return model.id

    def model(self, wanted: str) -> Model:
        """A model by its id; the latest one for an empty id."""
        if not wanted and not self.models:
            raise OpenFgaError(
                "latest_authorization_model_not_found",
                f"No authorization models found for store '{self.id}'",
            )
        if wanted and wanted not in self.models:
            raise OpenFgaError(
                "authorization_model_not_found", f"Authorization Model '{wanted}' not found"
            )
        return self.models[wanted] if wanted else list(self.models.values())[-1]

    def write(self, asked: Json) -> str:
        """Delete, then write, all or nothing; the id of the model that was kept to."""
        model = self.model(str(asked.get("authorization_model_id") or ""))
        deletes, may_miss = _part(asked, "deletes", "on_missing")
        writes, may_exist = _part(asked, "writes", "on_duplicate")
        if not deletes and not writes:
            raise OpenFgaError(
                "invalid_write_input",
                "Invalid input. Make sure you provide at least one write, or at least one delete",
            )
        gone = [Key.of(one) for one in deletes]
        made = [(Key.of(one), _condition(one)) for one in writes]
        for key, condition in made:
            model.require(key, condition)
        _require_once([*gone, *(key for key, _ in made)])
        gone = [key for key in gone if self._is_to_delete(key, may_miss)]
        made = [one for one in made if self._is_to_write(*one, may_exist)]
        now = _now()
        for key in gone:
            del self.tuples[key]
            self.changes.append(Change(key, None, "DELETE", now))
        for key, condition in made:
            self.tuples[key] = Stored(condition, now)
            self.changes.append(Change(key, condition, "WRITE", now))
        return model.id

    def _is_to_delete(self, key: Key, may_miss: bool) -> bool:
        if key in self.tuples:
            return True
        if may_miss:
            return False
        raise _write_failed(f"cannot delete a tuple which does not exist: {key}")

    def _is_to_write(self, key: Key, condition: Json | None, may_exist: bool) -> bool:
        stored = self.tuples.get(key)
        if stored is None:
            return True
        if not may_exist:
            raise _write_failed(f"cannot write a tuple which already exists: {key}")
        if stored.condition == condition:
            return False
        # Ignoring is for what is the same; another condition is a conflict, also with `ignore`.
        raise OpenFgaError(
            "Aborted",
            "transactional write failed due to conflict: attempted to write a tuple which already "
            f"exists with a different condition: {key}",
            status=409,
        )

    def read(self, asked: Json) -> Json:
        """A page of the tuples that a filter selects, in the order in which they were written."""
        wanted = asked.get("tuple_key")
        matching = list(self.tuples)
        if wanted is not None:
            user, relation, selected = (
                str(wanted.get(name) or "") for name in ("user", "relation", "object")
            )
            kind, _, name = selected.partition(":")
            if not kind or (not name and not user):
                raise invalid(
                    "the 'tuple_key' field was provided but the object type field is required and "
                    "both the object id and user cannot be empty"
                )
            matching = [
                key
                for key in matching
                if (key.object == selected if name else key.object_type == kind)
                and relation in {"", key.relation}
                and user in {"", key.user}
            ]
        start = int(_position(asked.get("continuation_token"), "") or 0)
        size = _page_size(asked.get("page_size"), "ReadRequest")
        page, end = matching[start : start + size], start + size
        shown = [
            {"key": key.shown(self.tuples[key].condition), "timestamp": self.tuples[key].timestamp}
            for key in page
        ]
        more = _token(end, "") if end < len(matching) else ""
        return {"tuples": shown, "continuation_token": more}

    def read_changes(self, asked: Mapping[str, str]) -> Json:
        """A page of changes; the token to go on with is the same one when there are no more."""
        kind, token = asked.get("type", ""), asked.get("continuation_token", "")
        start = int(_position(token, kind) or 0)
        size = _page_size(asked.get("page_size"), "ReadChangesRequest")
        numbered = [
            (number, change)
            for number, change in enumerate(self.changes, 1)
            if number > start and kind in {"", change.key.object_type}
        ][:size]
        more = _token(numbered[-1][0], kind) if numbered else token
        return {"changes": [one.shown() for _, one in numbered], "continuation_token": more}

    def check(self, asked: Json) -> bool:
        key = Key.of(asked.get("tuple_key") or {})
        more = ((asked.get("contextual_tuples") or {}).get("tuple_keys")) or []
        held = self.tuples.keys() | {Key.of(one) for one in more}
        wildcard = key._replace(user=f"{key.user.partition(':')[0]}:*")
        return key in held or wildcard in held

    def list_objects(self, asked: Json) -> list[str]:
        kind = str(asked.get("type", ""))
        found = [key.object for key in self.tuples if key.object_type == kind]
        named = {name: asked.get(name, "") for name in ("user", "relation")}
        return [
            one
            for one in dict.fromkeys(found)
            if self.check({**asked, "tuple_key": {**named, "object": one}})
        ]


def new_store(name: str) -> Store:
    if not re.fullmatch(r"[a-zA-Z0-9\s.\-/^_&@]{3,64}", name):
        raise invalid("invalid CreateStoreRequest.Name: value does not match regex pattern")
    return Store(new_id(), name, _now())


def new_id() -> str:
    """A ULID: milliseconds and chance, ordered by time."""
    number = time.time_ns() // 1_000_000 << 80 | secrets.randbits(80)
    return "".join(ALPHABET[number >> 5 * place & 31] for place in reversed(range(26)))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _part(asked: Json, name: str, flag: str) -> tuple[list[Json], bool]:
    """The tuples of `writes` or `deletes`, and whether what is so already is ignored."""
    part = asked.get(name)
    if part is None:
        return [], False
    kind, said = f"WriteRequest{name.title()}", part.get(flag) or "error"
    if not part.get("tuple_keys"):
        raise invalid(f"invalid {kind}.TupleKeys: value must contain at least 1 item(s)")
    if said not in {"error", "ignore"}:
        field_name = flag.title().replace("_", "")
        raise invalid(f"invalid {kind}.{field_name}: value must be in list [ error ignore]")
    return part["tuple_keys"], said == "ignore"


def _condition(asked: Json) -> Json | None:
    condition = asked.get("condition")
    if not condition:
        return None
    return {"name": str(condition.get("name", "")), "context": condition.get("context") or {}}


def _require_once(keys: Iterable[Key]) -> None:
    seen: set[Key] = set()
    for key in keys:
        if key in seen:
            raise OpenFgaError(
                "cannot_allow_duplicate_tuples_in_one_request", f"duplicate tuple in write: {key}"
            )
        seen.add(key)
    if len(seen) > MAX_TUPLES_PER_WRITE:
        raise OpenFgaError(
            "exceeded_entity_limit",
            f"The number of write operations exceeds the allowed limit of {MAX_TUPLES_PER_WRITE}",
        )


def _write_failed(message: str) -> OpenFgaError:
    return OpenFgaError(
        "write_failed_due_to_invalid_input",
        f"{message}: tuple to be written already existed or the tuple to be deleted did not exist",
    )


def _page_size(asked: object, kind: str) -> int:
    text = str(DEFAULT_PAGE if asked is None else asked)
    size = int(text) if text.isdecimal() else 0
    if not 1 <= size <= MAX_PAGE:
        raise OpenFgaError(
            "page_size_invalid",
            f"invalid {kind}.PageSize: value must be inside range [1, {MAX_PAGE}]",
        )
    return size


def _token(place: int, kind: str) -> str:
    return base64.urlsafe_b64encode(json.dumps([place, kind]).encode()).decode()


def _position(token: object, kind: str) -> int | None:
    """Where a token says to go on; nothing without a token."""
    if not token:
        return None
    try:
        place, of_kind = json.loads(base64.urlsafe_b64decode(str(token)))
        number = int(place)
    except (binascii.Error, ValueError, TypeError) as error:
        raise OpenFgaError("invalid_continuation_token", "Invalid continuation token") from error
    if of_kind != kind:
        raise OpenFgaError(
            "query_string_type_continuation_token_mismatch",
            "The type in the querystring and the continuation token don't match",
        )
    return number
