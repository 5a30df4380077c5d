"""`GET /conflicts` on the admin listener: the log of conflicts, newest first, page by page.

Owns the query, the walk over the log and the shape of the answer. Knows the store, not Redis.
"""

from collections.abc import Sequence
from heapq import merge
from itertools import islice
from typing import Final

from aiohttp import web

from sidecar.admin.calls import add_routes, limit_of
from sidecar.api.answers import Answers, compact
from sidecar.core.relationship import check_resource, format_expires_at
from sidecar.errors import Refused
from sidecar.store.conflicts import Entry, FencedEntry, Versioned, check_cursor, place_of
from sidecar.store.redis_store import RedisStore

PATH: Final = "/conflicts"
DEFAULT_LIMIT = 100
MAX_LIMIT = 1000
"""More are refused; the cursor leads on."""

STRIDE = 200
"""Entries read from Redis at once: two conditions of 32 KiB may be in each."""

MAX_PAGE_CHARS = 4 * 1024 * 1024
"""A page that has reached it ends, however few entries it has; its cursor leads on."""

_ALLOWED = frozenset({"limit", "after", "newer_than", "resource"})


class ConflictLog:
    """The calls about conflicts of one node's admin listener; the logs of its stores are one."""

    def __init__(self, stores: Sequence[RedisStore], answers: Answers) -> None:
        self._stores, self._answers = stores, answers

    def add_to(self, app: web.Application) -> None:
        """Add the routes, with JSON also for what aiohttp would answer in plain text."""
        add_routes(app, self._answers, [("GET", PATH, self._list)])

    async def _list(self, request: web.Request) -> web.Response:
        """A page of the log: `limit`, `after`, `newer_than` and `resource` are optional."""
        given = _parameters(request)
        limit = limit_of(given.get("limit"), DEFAULT_LIMIT, MAX_LIMIT)
        after, newer_than, resource = map(given.get, ("after", "newer_than", "resource"))
        for cursor in (after, newer_than):
            if cursor is not None:
                check_cursor(cursor)
        if resource is not None:
            check_resource(resource)
        found, cursor = await self._walk(limit, after, newer_than, resource)
        return self._answers.json(f'{{"conflicts":[{",".join(found)}],"cursor":{compact(cursor)}}}')

    async def _walk(
        self, limit: int, after: str | None, newer_than: str | None, resource: str | None
    ) -> tuple[list[str], str | None]:
        """JSON of what matches, and where to go on: None at the end of the log."""
        found: list[str] = []
        chars = 0
        while True:
            stride = await self._stride(after, newer_than)
            for entry in stride:
                after = entry.cursor
                if resource is None or entry.tuple[1] == resource:
                    found.append(conflict_json(entry))
                    chars += len(found[-1])
                    if len(found) == limit or chars >= MAX_PAGE_CHARS:
                        return found, after
            if len(stride) < STRIDE:
                return found, None

    async def _stride(self, after: str | None, newer_than: str | None) -> list[Entry]:
        """At most STRIDE entries of all logs, newest first: from behind this cursor on."""
        logs = [await store.conflicts(after, STRIDE, newer_than) for store in self._stores]
        newest_first = merge(*logs, key=place_of, reverse=True)
        return list(islice(newest_first, STRIDE))


def conflict_json(entry: Entry) -> str:
    """JSON of an entry, in one line; what a version does not have is left out."""
    tenant, resource, relation, subject = entry.tuple
    if isinstance(entry, FencedEntry):
        fenced = {
            "cursor": entry.cursor,
            "kind": "fenced",
            "listed_at": format_expires_at(entry.listed_us),
            "tenant": tenant,
            "resource": resource,
            "relation": relation,
            "subject": subject,
            "epoch": entry.number,
            "primary": entry.primary,
        }
        return f'{compact(fenced)[:-1]},"written":{_version_json(entry.written)}}}'
    known = {
        "cursor": entry.cursor,
        "kind": "conflict",
        "merged_at": format_expires_at(entry.merged_us),
        "revision": str(entry.revision),
        "tenant": tenant,
        "resource": resource,
        "relation": relation,
        "subject": subject,
        "strategy": entry.strategy.value,
        "resolved": entry.resolved.value,
    }
    versions = {"stored": entry.stored, "arrived": entry.arrived, "winner": entry.winner}
    told = ",".join(f'"{name}":{_version_json(one)}' for name, one in versions.items())
    return f"{compact(known)[:-1]},{told}}}"


def _version_json(one: Versioned) -> str:
    (timestamp, origin), sibling = one
    known = {"operation": sibling.operation.value, "timestamp": str(timestamp), "origin": origin}
    if sibling.expires_at is not None:
        known["expires_at"] = format_expires_at(sibling.expires_at)
    # A condition is kept as the text of its JSON.
    condition = "" if sibling.condition is None else f',"condition":{sibling.condition}'
    return f"{compact(known)[:-1]}{condition}}}"


def _parameters(request: web.Request) -> dict[str, str]:
    given = request.query
    for name in given:
        if name not in _ALLOWED:
            allowed = ", ".join(sorted(_ALLOWED))
            raise Refused(
                "invalid_request", f"{name[:80]!r} is not a parameter; allowed are {allowed}"
            )
        if len(given.getall(name)) > 1:
            raise Refused("invalid_request", f"{name} is given more than once")
    return dict(given)
