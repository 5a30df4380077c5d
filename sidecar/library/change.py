"""One change as a program sees it: what was done to a relationship, by which write, where."""

import json
from dataclasses import dataclass, replace
from typing import Self

from sidecar.core.relationship import (
    Operation,
    Relationship,
    canonical_condition,
    check_relation,
    check_resource,
    check_subject,
    check_tenant,
    format_expires_at,
    parse_expires_at,
)
from sidecar.core.vector import Version
from sidecar.errors import Refused


@dataclass(frozen=True, slots=True)
class Change:
    """One relationship inserted or deleted.

    revision: its place in the feed that carries it. timestamp (microseconds since 1970) and origin
    (`<node>.<incarnation>`) name the write that made it; 0 and "" until a node has accepted it.
    region: of that node, where somebody has said so.
    """

    operation: Operation
    relationship: Relationship
    revision: int = 0
    timestamp: int = 0
    origin: str = ""
    region: str = ""

    @classmethod
    def insert(
        cls,
        revision: int,
        relationship: Relationship,
        *,
        timestamp: int = 0,
        origin: str = "",
        region: str = "",
    ) -> Self:
        """The relationship is there from now on, with its condition and expiration."""
        return cls(Operation.INSERT, relationship, revision, timestamp, origin, region)

    @classmethod
    def delete(
        cls,
        revision: int,
        relationship: Relationship,
        *,
        timestamp: int = 0,
        origin: str = "",
        region: str = "",
    ) -> Self:
        """The relationship is gone, whatever its condition and expiration were."""
        bare = Relationship(*relationship.identity)
        return cls(Operation.DELETE, bare, revision, timestamp, origin, region)

    @property
    def version(self) -> Version:
        """Names the write: (timestamp, origin)."""
        return (self.timestamp, self.origin)

    def checked(self) -> Self:
        """The same with the one text of its condition. Raises Refused for what no store takes."""
        tenant, resource, relation, subject, condition, expires_at = self.relationship
        relationship = Relationship(
            check_tenant(tenant),
            check_resource(resource),
            check_relation(relation),
            check_subject(subject),
            None if condition is None else _checked_condition(condition),
            None if expires_at is None else _checked_expiration(expires_at),
        )
        return replace(self, relationship=relationship)


def _checked_condition(text: str) -> str:
    try:
        condition = json.loads(text)
    except (ValueError, RecursionError):
        raise _refused(f"the condition {text[:60]!r} is not the text of a JSON value") from None
    if condition is None:
        raise _refused("the condition is null; leave it out for none")
    return canonical_condition(condition)


def _checked_expiration(microseconds: int) -> int:
    try:
        return parse_expires_at(format_expires_at(microseconds))
    except OverflowError:
        raise _refused(f"expires_at {microseconds} is after 9999, in microseconds") from None


def _refused(message: str) -> Refused:
    return Refused("invalid_relationship", message)
