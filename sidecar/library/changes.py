"""Feeds of changes: within one program, or of a node's store.

Owns what a program publishes and receives. The feed of a store is read as watchers read it; what
became visible on its node is `FeedEntry.transaction()`'s to say.
"""

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from dataclasses import replace
from typing import Any, Self
from weakref import WeakSet

from sidecar.agent.tail import Tail
from sidecar.core.relationship import Change as TupleChange
from sidecar.core.relationship import check_type, type_of
from sidecar.core.vector import node_of
from sidecar.endings import end
from sidecar.errors import Unavailable
from sidecar.library.change import Change
from sidecar.store.calls import WriteRequest
from sidecar.store.redis_store import RedisStore

BUFFER_SIZE = 10_000


class ChangeStream(ABC):
    """The changes of a feed from one moment on, for one reader.

    An async iterator, too; it ends where `recv` answers None.
    """

    def __init__(self, resource_type: str | None) -> None:
        self._resource_type = resource_type
        self._ready: deque[Change] = deque()
        self._turn = asyncio.Lock()
        self._closed = asyncio.Event()

    async def recv(self) -> Change | None:
        """The next change, waiting for it; None behind the last one of a closed stream."""
        async with self._turn:
            while not self._ready and self.is_open:
                await self._more()
            return self._ready.popleft() if self._ready else None

    @property
    def is_open(self) -> bool:
        """Whether more may come."""
        return not self._closed.is_set()

    def close(self) -> None:
        """Add nothing more; what has arrived can still be received."""
        self._closed.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Change:
        change = await self.recv()
        if change is None:
            raise StopAsyncIteration
        return change

    @abstractmethod
    async def _more(self) -> None:
        """Wait until there may be something, or the stream is closed."""

    def _wants(self, resource: str) -> bool:
        return self._resource_type is None or type_of(resource) == self._resource_type


class ChangeFeed:
    """Carries changes to its subscribers: to each those that come after it has subscribed.

    Without arguments it lives in this program alone, and a revision is what its publisher says.
    `ChangeFeed.of(store)` is the feed of a node. Streams end with the `async with` of their feed.
    """

    def __init__(self, buffer_size: int = BUFFER_SIZE) -> None:
        """buffer_size: changes that may wait for one subscriber; beyond it `publish` refuses."""
        self._buffer_size = buffer_size
        self._streams: WeakSet[ChangeStream] = WeakSet()

    @staticmethod
    def of(store: RedisStore, buffer_size: int = BUFFER_SIZE) -> "StoreFeed":
        """The feed of a node's store, in which the writes of other nodes arrive, too.

        buffer_size: changes kept in memory for all; whoever is slower reads them from Redis.
        """
        return StoreFeed(store, buffer_size)

    async def publish(self, change: Change) -> Change:
        """Hand a change to all subscribers, and return it as they get it.

        Raises Refused for what is no relationship, and Unavailable("overloaded") where a subscriber
        is too slow: then nobody has it.
        """
        published = change.checked()
        resource = published.relationship.resource
        mailboxes = [stream for stream in self._streams if isinstance(stream, _Mailbox)]
        streams = [s for s in mailboxes if s.is_open and s._wants(resource)]
        if any(stream.waiting >= self._buffer_size for stream in streams):
            raise Unavailable("overloaded", f"{self._buffer_size} changes wait for a subscriber")
        for stream in streams:
            stream.put(published)
        return published

    async def subscribe(self) -> ChangeStream:
        """Every change from now on."""
        return await self._stream(None)

    async def subscribe_filtered(self, resource_type: str) -> ChangeStream:
        """The changes from now on to resources of one type, as `document`."""
        return await self._stream(check_type(resource_type))

    async def _stream(self, resource_type: str | None) -> ChangeStream:
        return self._opened(_Mailbox(resource_type))

    def _opened(self, stream: ChangeStream) -> ChangeStream:
        # Weak: a stream that nobody holds any more must not fill up.
        self._streams.add(stream)
        return stream

    def close(self) -> None:
        """Close all streams."""
        for stream in list(self._streams):
            stream.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *failure: Any) -> None:
        self.close()


class _Mailbox(ChangeStream):
    """A stream into which its feed puts what is published."""

    def __init__(self, resource_type: str | None) -> None:
        super().__init__(resource_type)
        self._changed = asyncio.Event()

    @property
    def waiting(self) -> int:
        return len(self._ready)

    def put(self, change: Change) -> None:
        self._ready.append(change)
        self._changed.set()

    def close(self) -> None:
        super().close()
        self._changed.set()

    async def _more(self) -> None:
        self._changed.clear()
        await self._changed.wait()


class StoreFeed(ChangeFeed):
    """The feed of a store. Close it, or leave its `async with`, before the store is closed."""

    def __init__(self, store: RedisStore, buffer_size: int = BUFFER_SIZE) -> None:
        super().__init__(buffer_size)
        self.store = store
        self.tail = Tail(store, buffer_size)

    async def publish(self, change: Change) -> Change:
        """Write the change here, as an application would, and return it as it stands in the feed.

        Its revision is the one that the write got, whatever it was before. Raises Refused and
        Unavailable; "outcome_unknown" says that nobody knows whether it was written.
        """
        asked = change.checked()
        one = asked.relationship
        write = WriteRequest(one.tenant, [TupleChange(asked.operation, one)])
        written = await self.store.write(write)
        origin = next(
            origin
            for origin, timestamp in written.vector.items()
            if timestamp == written.revision and node_of(origin) == self.store.node
        )
        return replace(asked, revision=written.revision, timestamp=written.revision, origin=origin)

    async def _stream(self, resource_type: str | None) -> ChangeStream:
        await self.store.opened()
        return self._opened(_Reading(self.store, self.tail, resource_type))


class _Reading(ChangeStream):
    """A stream that reads the feed of a store at its own pace."""

    def __init__(self, store: RedisStore, tail: Tail, resource_type: str | None) -> None:
        super().__init__(resource_type)
        self._store, self._tail = store, tail
        self._origin, self._revision = store.origin, store.revision

    async def _more(self) -> None:
        """Raises Unavailable, after which reading may go on, and Refused("cursor_expired")."""
        following = asyncio.create_task(self._tail.after(self._revision, is_watching=True))
        closed = asyncio.create_task(self._closed.wait())
        # Whoever waits follows the feed, unless the agent or another reader does so already.
        running = asyncio.create_task(self._tail.run())
        tasks = {following, closed, running}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if self._store.origin != self._origin:
                raise Unavailable(
                    "new_incarnation",
                    "the node of this feed has lost writes and begun a new incarnation; read what "
                    "there is and subscribe again",
                )
            if running.done():
                running.result()
            entries = following.result() if following.done() else []
        finally:
            await end(tasks)
        for entry in entries:
            transaction = entry.transaction()
            self._ready.extend(
                Change(operation, one, entry.revision, entry.timestamp, entry.origin)
                for operation, one in transaction.changes
                if self._wants(one.resource)
            )
            self._revision = entry.revision
