"""`watch`: this node's feed as server-sent events, resumable at every single change.

Owns the stream: filters, cursors, grouping, the pace of a reader, and its end. The feed comes from
the tail; what became visible on this node is `FeedEntry.transaction()`'s to say.

The events of one transaction come together, in order; the last one that passes the filter says
`"last": true`, and its cursor stands behind the whole transaction.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass

from aiohttp import web

from sidecar import request_ids
from sidecar.agent.tail import expired
from sidecar.api import bodies, headers
from sidecar.api.answers import Answers, compact, relationship_json
from sidecar.api.cursors import Place, place_of
from sidecar.api.served import Partitions, Served
from sidecar.core.relationship import Change, type_of
from sidecar.core.vector import node_of
from sidecar.errors import Refused, SidecarError, Unavailable
from sidecar.store.feed import FeedEntry
from sidecar.store.redis_store import RedisStore

log = logging.getLogger(__name__)

FROM_START = "start"
"""The cursor that stands for the oldest transaction the feed still has."""

CHUNK_BYTES = 64 * 1024
"""Events are handed to the connection in pieces of about this size."""

IDLE = b": idle\n\n"
END_GRACE_S = 1.0
"""What a reader that lags behind gets, when this node ends, to take what it was sent."""


@dataclass(frozen=True, slots=True)
class WatchLimits:
    """watchers: at most this many at once; more get 503.

    idle_s: after this long without an event a comment is sent. write_s: a reader that does not take
    one piece within this time is cut off, and may resume.
    """

    watchers: int = 1000
    idle_s: float = 15.0
    write_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a watcher asks for; None is any."""

    tenant: str
    resource_types: frozenset[str] | None
    relations: frozenset[str] | None
    operations: frozenset[str] | None

    def matches(self, change: Change) -> bool:
        """Whether the filter lets this change through."""
        one = change.relationship
        return (
            (self.operations is None or change.operation in self.operations)
            and (self.relations is None or one.relation in self.relations)
            and (self.resource_types is None or type_of(one.resource) in self.resource_types)
        )


class Watch:
    """All watchers of one node."""

    def __init__(
        self,
        partitions: Partitions,
        answers: Answers,
        limits: WatchLimits,
        reach: Callable[[Served, headers.Consistency | None], Awaitable[None]],
    ) -> None:
        """reach: waits until this node has what a token names."""
        self._partitions = partitions
        self._answers = answers
        self._limits = limits
        self._reach = reach
        self._watchers = 0
        self._ending = asyncio.Event()
        self._writing: set[asyncio.Timeout] = set()

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """Serve one watcher until it goes, reads too slowly, or this node ends."""
        headers.check_body_headers(request)
        tenant = headers.tenant_of(request.headers)
        here = self._partitions.of(tenant)
        consistency = headers.consistency_of(request.headers)
        body = bodies.parse(bodies.WATCH, await request.read())
        bodies.check_words(body)
        wanted = Wanted(
            tenant,
            _words(body.get("resource_types")),
            _words(body.get("relations")),
            _words(body.get("operations")),
        )
        # A reader that connects again repeats its body, so the header is the newer of the two.
        cursor = headers.last_event_id_of(request.headers) or body.get("cursor")
        # What the token names is there before the stream begins: "now" is behind it.
        await self._reach(here, consistency)
        place = await self._begin(here.store, cursor)
        if self._ending.is_set() or self._watchers >= self._limits.watchers:
            raise Unavailable(
                "too_many_watchers",
                f"at most {self._limits.watchers} watchers are served at once, and none while "
                "this node ends; try again, or another node",
            )
        self._watchers += 1
        try:
            return await self._serve(request, here, wanted, place)
        finally:
            self._watchers -= 1

    async def end(self, app: web.Application) -> None:
        """End all streams, so that they do not hold up the end of this node."""
        self._ending.set()
        soon = asyncio.get_running_loop().time() + END_GRACE_S
        for limit in self._writing:
            limit.reschedule(soon)

    async def _begin(self, store: RedisStore, cursor: str | None) -> Place:
        """Where reading begins. Raises Refused: 400, or 410 when the feed does not have it."""
        origin = store.origin
        if cursor is None:
            if not store.is_open:
                raise Unavailable("store_unavailable", store.closed_because)
            return Place(origin, store.revision)
        place = None if cursor == FROM_START else place_of(cursor)
        first, newest = await store.feed_bounds()
        if place is None:
            return Place(origin, first - 1 if first else store.trimmed)
        if place.origin != origin:
            place = await self._carried_over(store, place, origin)
        # What follows exactly the trimmed revision is all there.
        if place.after < store.trimmed or place.revision > newest:
            raise expired()
        return place

    async def _carried_over(self, store: RedisStore, place: Place, origin: str) -> Place:
        """The same place in the feed of today: of an incarnation that went on from there."""
        if node_of(place.origin) != store.node:
            raise Refused(
                "cursor_elsewhere",
                f"the cursor belongs to the feed of {place.origin}, this is {origin}; cursors do "
                "not move between nodes: list what there is and watch from now",
                410,
            )
        last = await store.last_revision_of(place.origin)
        if last is None or place.revision > last:
            raise Refused(
                "write_lost",
                f"the cursor leads behind what this node has lost of {place.origin}, or is of a "
                "tenant that is bound to other regions; list what there is and watch from now",
                410,
            )
        return Place(origin, place.revision, place.passed)

    async def _serve(
        self, request: web.Request, here: Served, wanted: Wanted, place: Place
    ) -> web.StreamResponse:
        response = web.StreamResponse(
            headers={
                "Content-Type": "text/event-stream",
                "Cache-Control": "no-store",
                "X-Accel-Buffering": "no",
                "X-Served-By": self._answers.served_by,
            }
        )
        request_ids.give_back(response)
        await response.prepare(request)
        try:
            async with contextlib.aclosing(self._events(here, wanted, place)) as events:
                async for piece in events:
                    async with self._limited():
                        await response.write(piece)
            async with self._limited():
                await response.write_eof()
        except ConnectionError:
            pass  # the reader has gone
        except TimeoutError:
            log.info("watcher cut off: it reads too slowly", extra={"watcher": request.remote})
            # What waits in the buffers is dropped with the connection, and the reader
            # resumes behind the last event it took.
            if request.transport is not None:
                request.transport.abort()
        return response

    @contextlib.asynccontextmanager
    async def _limited(self) -> AsyncGenerator[None, None]:
        """The time a reader has for one piece; raises TimeoutError behind it."""
        limit_s = END_GRACE_S if self._ending.is_set() else self._limits.write_s
        async with asyncio.timeout(limit_s) as limit:
            self._writing.add(limit)
            try:
                yield
            finally:
                self._writing.discard(limit)

    async def _events(
        self, here: Served, wanted: Wanted, start: Place
    ) -> AsyncGenerator[bytes, None]:
        """Pieces of the stream, for ever; ends with this node, or with an `error` event."""
        place = start
        yield checkpoint(place)
        clock = asyncio.get_running_loop().time
        told, sent_at = place, clock()
        ending = asyncio.create_task(self._ending.wait())
        news: asyncio.Task[list[FeedEntry]] | None = None
        try:
            while not self._ending.is_set():
                news = news or asyncio.create_task(here.tail.after(place.after, is_watching=True))
                patience_s = max(sent_at + self._limits.idle_s - clock(), 0)
                await asyncio.wait(
                    {news, ending}, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED
                )
                if here.store.origin != start.origin:
                    return  # what was told may be lost; the reader resumes, or hears that it is
                if news.done():
                    pieces, news = render(news.result(), wanted, place), None
                    for piece, reached in pieces:
                        place = reached
                        if piece:
                            yield piece
                            told, sent_at = place, clock()
                if clock() >= sent_at + self._limits.idle_s:
                    # What was filtered out moves the cursor too: a resume need not read it again.
                    yield IDLE if told == place else checkpoint(place) + IDLE
                    told, sent_at = place, clock()
        except SidecarError as failure:
            detail = compact({"error": failure.code, "message": failure.message})
            yield f"event: error\ndata: {detail}\n\n".encode()
        finally:
            ending.cancel()
            if news is not None:
                news.cancel()
                await asyncio.gather(news, return_exceptions=True)


def render(entries: list[FeedEntry], wanted: Wanted, place: Place) -> Iterator[tuple[bytes, Place]]:
    """The events of these entries behind `place`, in pieces, each with the place it leads to.

    A piece may be empty: then only the place has moved.
    """
    pieces: list[str] = []
    size = 0
    for entry in entries:
        passed = 0
        if entry.revision == place.revision:
            if place.passed is None:
                continue
            passed = place.passed
        behind = Place(place.origin, entry.revision)
        events = list(_events_of(entry, wanted, passed, place.origin))
        if passed and not events:
            # Resumed inside a transaction of which nothing is left: say that it has ended.
            events = [checkpoint(behind).decode()]
        place = behind
        for event in events:
            pieces.append(event)
            size += len(event)
            if size >= CHUNK_BYTES:
                yield "".join(pieces).encode(), place
                pieces, size = [], 0
    yield "".join(pieces).encode(), place


def checkpoint(place: Place) -> bytes:
    """An event without a change: everything before this cursor has been sent."""
    cursor = place.encode()
    return (
        f'id: {cursor}\nevent: checkpoint\ndata: {{"cursor":"{cursor}",'
        f'"revision":"{place.revision}"}}\n\n'
    ).encode()


def _events_of(entry: FeedEntry, wanted: Wanted, passed: int, origin: str) -> Iterator[str]:
    transaction = entry.transaction()
    if transaction.tenant != wanted.tenant:
        return
    changes = transaction.changes
    chosen = [index for index in range(passed, len(changes)) if wanted.matches(changes[index])]
    for index in chosen:
        is_last = index == chosen[-1]
        place = Place(origin, entry.revision, None if is_last else index + 1)
        cursor = place.encode()
        change = changes[index]
        yield (
            f'id: {cursor}\nevent: change\ndata: {{"operation":"{change.operation}",'
            f'"relationship":{relationship_json(change.relationship)},'
            f'"revision":"{entry.revision}",'
            f'"transaction":{{"origin":"{transaction.origin}",'
            f'"timestamp":"{transaction.timestamp}"}},'
            f'"cursor":"{cursor}","last":{"true" if is_last else "false"}}}\n\n'
        )


def _words(words: Sequence[str] | None) -> frozenset[str] | None:
    return None if words is None else frozenset(words)
