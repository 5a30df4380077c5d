"""What the database holds: the present state of tuples, and what a filter matches."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from sidecar.core.relationship import Change, Identity, Operation, Relationship
from sidecar.dialects.dialect import (
    SCHEMA_TYPE,
    Ask,
    Found,
    ReplicatedDialect,
    SchemaDialect,
    Verdict,
    schema_tuple,
)
from sidecar.errors import Unavailable
from sidecar.proxy.database import Answer, Database

T = TypeVar("T")

AT_ONCE = 8
"""Requests of ours at the same time."""


class Looking:
    """Reads of our own."""

    def __init__(self, dialect: ReplicatedDialect, database: Database) -> None:
        self._dialect, self._database = dialect, database
        self._room = asyncio.Semaphore(AT_ONCE)

    async def matching(
        self, tenant: str, matching: Mapping[str, object]
    ) -> dict[Identity, Relationship]:
        """All that a filter matches. Raises Unavailable."""
        found: dict[Identity, Relationship] = {}
        cursor = None
        while True:
            page = await self.page(tenant, matching, cursor)
            if page is None and cursor is None:
                # Of a type that it does not know it has nothing.
                return found
            if page is None:
                raise Unavailable("database_unavailable", "the database refuses to be read on")
            found |= {one.identity: one for one in page.relationships}
            cursor = page.cursor
            if cursor is None:
                return found

    async def page(
        self, tenant: str, matching: Mapping[str, object], cursor: str | None
    ) -> Found | None:
        """Some of what a filter matches; None: the database refuses to say. Raises Unavailable."""
        ask = self._dialect.find(tenant, matching, cursor)
        async with self._room:
            answer = await self._database.ask(ask)
        verdict = self._dialect.verdict(answer.status, answer.body)
        is_cut = answer.is_done and b"\n" in answer.body.rstrip()
        if verdict is Verdict.REFUSED and not is_cut:
            return None
        if verdict is not Verdict.DONE:
            raise unanswered(ask, answer)
        return _understood(ask, answer, lambda: self._dialect.found(tenant, answer.body))

    async def present(
        self, tenant: str, identities: Sequence[Identity]
    ) -> dict[Identity, Relationship]:
        """What there is of these tuples, of one tenant. Raises Unavailable."""
        plain = [one for one in identities if not is_schema(one[1])]
        filters = self._dialect.look(plain) if plain else ()
        parts = await asyncio.gather(*(self.matching(tenant, one) for one in filters))
        found = {name: one for part in parts for name, one in part.items()}
        if len(plain) < len(identities) and (text := await self.schema()):
            one = schema_tuple(tenant, text)
            found[one.identity] = one
        return {name: found[name] for name in identities if name in found}

    async def schema(self) -> str:
        """The text of the present schema; "" where there is none. Raises Unavailable."""
        if not isinstance(self._dialect, SchemaDialect):
            return ""
        dialect = self._dialect
        ask = dialect.read_schema()
        answer = await self._database.ask(ask)
        if not answer.is_done and self._dialect.verdict(answer.status, answer.body) is not (
            Verdict.REFUSED
        ):
            raise unanswered(ask, answer)
        return _understood(ask, answer, lambda: dialect.schema_of(answer.status, answer.body))


def _understood(ask: Ask, answer: Answer, read: Callable[[], T]) -> T:
    """What is not in the database's own words comes from something that stands in for it."""
    try:
        return read()
    except ValueError:
        raise unanswered(ask, answer) from None


def unanswered(ask: Ask, answer: Answer) -> Unavailable:
    """The failure of a request of ours that the database may do later."""
    said = answer.body[:200].decode("utf-8", "replace")
    return Unavailable(
        "database_unavailable", f"the database answers {ask.path} with {answer.status}: {said}"
    )


def is_schema(resource: str) -> bool:
    """Whether a tuple is the one that carries the schema."""
    return resource.startswith(f"{SCHEMA_TYPE}:")


def is_so(change: Change, present: Mapping[Identity, Relationship]) -> bool:
    """Whether the database holds what a change makes of its tuple."""
    found = present.get(change.relationship.identity)
    if change.operation is Operation.DELETE:
        return found is None
    return found == change.relationship
