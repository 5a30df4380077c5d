"""Relationships: what they are made of, what is allowed in them, and their hashes.

Owns the grammar of tenant, resource, relation and subject, the canonical text of conditions and
expirations, and the two hashes that stand for a tuple elsewhere. Knows nothing of
siblings or stores.
"""

import json
import re
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple

from sidecar.errors import Refused

BUCKETS = 4096
MAX_ID_BYTES = 1024
MAX_CONDITION_BYTES = 32 * 1024
MAX_CONDITION_DEPTH = 100
"""What is stored must be readable: JSON parsers stop somewhere between hundreds and a thousand."""

_TYPE = r"[a-zA-Z][a-zA-Z0-9_/-]{0,253}"
# Without control characters (C0, DEL, C1), any white space of Unicode, and the separator '#'.
_ID = r"[^\x00-\x1f\x7f-\x9f\s#]{1,1024}"
_TENANT = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_NAME = re.compile(_TYPE)
_RESOURCE = re.compile(f"{_TYPE}:({_ID})")
_SUBJECT = re.compile(f"{_TYPE}:({_ID})(?:#{_TYPE})?")
# The same for readers of a schema; that an id has at most 1,024 bytes no pattern can say.
NAME_PATTERN, RESOURCE_PATTERN, SUBJECT_PATTERN = (
    f"^{rule.pattern}$" for rule in (_NAME, _RESOURCE, _SUBJECT)
)
ID_PATTERN = f"^{_ID}$"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LAST_MOMENT = datetime.max.replace(tzinfo=UTC)
_RFC3339 = re.compile(
    r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII
)

Identity = tuple[str, str, str, str]


class Operation(StrEnum):
    """What a change does to its tuple."""

    INSERT = "insert"
    DELETE = "delete"


class Relationship(NamedTuple):
    """One relationship with its payload.

    condition: canonical JSON text, or None. expires_at: microseconds since 1970 UTC, or None.
    """

    tenant: str
    resource: str
    relation: str
    subject: str
    condition: str | None = None
    expires_at: int | None = None

    @property
    def identity(self) -> Identity:
        """What names the tuple: tenant, resource, relation, subject."""
        return (self.tenant, self.resource, self.relation, self.subject)


class Change(NamedTuple):
    """One tuple's part in a write. The payload of a delete is ignored."""

    operation: Operation
    relationship: Relationship


def check_tenant(text: str) -> str:
    """Return `text`, or raise Refused("invalid_tenant")."""
    if not _TENANT.fullmatch(text):
        raise Refused(
            "invalid_tenant",
            f"tenant {_shown(text)} is not 1 to 64 letters, digits, '_' or '-'",
        )
    return text


def check_resource(text: str) -> str:
    """Return `text` if it is `type:id`, or raise Refused("invalid_relationship")."""
    found = _RESOURCE.fullmatch(text)
    if found is None:
        raise _refused(text, "type:id")
    _check_id(text, found[1])
    return text


def check_subject(text: str) -> str:
    """Return `text` if it is `type:id` or `type:id#relation`, or raise Refused."""
    found = _SUBJECT.fullmatch(text)
    if found is None:
        raise _refused(text, "type:id or type:id#relation")
    _check_id(text, found[1])
    return text


def check_relation(text: str) -> str:
    """Return `text` if it can name a relation, or raise Refused("invalid_relationship")."""
    if not _NAME.fullmatch(text):
        raise Refused(
            "invalid_relationship",
            f"{_shown(text)} is not a relation: a letter, then up to 253 of letters, digits, "
            "'_', '/' and '-'",
        )
    return text


def check_type(text: str) -> str:
    """Return `text` if it can name a resource type, or raise Refused("invalid_relationship")."""
    if not _NAME.fullmatch(text):
        raise Refused(
            "invalid_relationship",
            f"{_shown(text)} is not a type: a letter, then up to 253 of letters, digits, "
            "'_', '/' and '-'",
        )
    return text


def type_of(resource: str) -> str:
    """The type in `type:id`."""
    return resource.partition(":")[0]


def canonical_condition(condition: object) -> str:
    """The one text of a JSON value, so that equal conditions are equal texts.

    Raises Refused("invalid_relationship") for what JSON cannot carry, more than 32 KiB, or more
    than 100 levels.
    """
    if _is_deeper_than(MAX_CONDITION_DEPTH, condition):
        raise Refused(
            "invalid_relationship",
            f"the condition is more than {MAX_CONDITION_DEPTH} levels deep",
        )
    try:
        text = json.dumps(
            condition, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        )
        size = len(text.encode())
    except (ValueError, TypeError):
        raise Refused(
            "invalid_relationship",
            "the condition is not plain JSON (no NaN, no Infinity, no lone surrogates)",
        ) from None
    if size > MAX_CONDITION_BYTES:
        raise Refused(
            "invalid_relationship",
            f"the condition has {size} bytes; at most {MAX_CONDITION_BYTES} are allowed",
        )
    return text


def parse_expires_at(text: str) -> int:
    """Microseconds since 1970 of an RFC 3339 time with a zone, or raise Refused."""
    wrong = Refused(
        "invalid_relationship",
        f"expires_at {_shown(text)} is not an RFC 3339 time with a zone, like 2027-01-31T12:00:00Z",
    )
    if not _RFC3339.fullmatch(text):
        raise wrong
    try:
        moment = datetime.fromisoformat(text.upper())
    except ValueError:
        raise wrong from None
    if moment > _LAST_MOMENT:
        # Where it was written the year was still 9999; in UTC it could not be shown again.
        raise Refused("invalid_relationship", f"expires_at {_shown(text)} is after 9999 in UTC")
    microseconds = (moment - _EPOCH) // timedelta(microseconds=1)
    if microseconds <= 0:
        raise Refused("invalid_relationship", f"expires_at {_shown(text)} is before 1970")
    return microseconds


def format_expires_at(microseconds: int) -> str:
    """RFC 3339 in UTC; `parse_expires_at` gives the same number back."""
    moment = _EPOCH + timedelta(microseconds=microseconds)
    return moment.isoformat().replace("+00:00", "Z")


def tuple_hash(identity: Identity) -> int:
    """40 bits: the first five bytes of BLAKE2b over the length-prefixed parts of the identity."""
    tenant, resource, relation, subject = identity
    parts = (
        f"{len(tenant)}:{tenant}{_bytes(resource)}:{resource}"
        f"{len(relation)}:{relation}{_bytes(subject)}:{subject}"
    )
    return int.from_bytes(blake2b(parts.encode(), digest_size=5).digest())


@lru_cache(maxsize=65_536)
def bucket_of(tenant: str, resource: str) -> int:
    """The bucket, 0 to 4,095, in which all tuples of a resource lie."""
    text = f"{len(tenant)}:{tenant}{_bytes(resource)}:{resource}"
    return int.from_bytes(blake2b(text.encode(), digest_size=5).digest()) % BUCKETS


def _is_deeper_than(levels: int, condition: object) -> bool:
    inside = [condition]
    for _ in range(levels + 1):
        containers = [one for one in inside if isinstance(one, dict | list | tuple)]
        if not containers:
            return False
        inside = [
            inner
            for one in containers
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
    return True


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def _check_id(text: str, identifier: str) -> None:
    if identifier.isascii():
        return  # the pattern has counted the characters
    try:
        size = len(identifier.encode())
    except UnicodeEncodeError:
        raise _refused(text, "text that UTF-8 can carry") from None
    if size > MAX_ID_BYTES:
        raise Refused(
            "invalid_relationship",
            f"{_shown(text)} has an id of {size} bytes; at most {MAX_ID_BYTES} are allowed",
        )


def _refused(text: str, expected: str) -> Refused:
    reason = "has no colon" if ":" not in text else "has a part that is not allowed"
    return Refused(
        "invalid_relationship",
        f"{_shown(text)} {reason}; expected {expected}, where the type is a letter followed by up "
        "to 253 letters, digits, '_', '/' or '-', and the id 1 to 1024 bytes without white space, "
        "control characters or '#'",
    )


def _shown(text: str) -> str:
    shortened = text if len(text) <= 60 else text[:57] + "..."
    return json.dumps(shortened)
