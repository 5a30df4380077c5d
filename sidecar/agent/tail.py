"""One tail of the feed, kept in memory for all sessions and watchers of this node.

Owns the newest entries, up to `buffer_size` changes. Whoever has fallen behind them reads the
stream in Redis instead: a smaller buffer only means more reading, nothing is ever dropped.
"""

import asyncio
import logging
from bisect import bisect_right
from collections import deque
from collections.abc import AsyncIterator

from sidecar.errors import Refused, Unavailable
from sidecar.store.feed import FeedEntry
from sidecar.store.redis_store import RedisStore

log = logging.getLogger(__name__)

READ_COUNT = 500
READ_BYTES = 4 * 1024 * 1024
"""About as much is read at once: fewer entries where they are large."""
SHARED_PAGES = 8
"""Pages behind the buffer that are kept: sessions that catch up read them once for all."""
IDLE_S = 1.0
WAIT_MS = 2_000  # below the socket's timeout


class Tail:
    """The end of the feed. `run` follows it while somebody waits; the rest is for any task."""

    def __init__(self, store: RedisStore, buffer_size: int) -> None:
        self.store, self._buffer_size = store, buffer_size
        self._run = asyncio.Lock()
        self._entries: list[FeedEntry] = []
        self._changes = 0
        # The buffer holds every entry with a revision above this one, up to the newest.
        self._complete_after: int | None = None
        self._newest = 0
        self._waiting: list[int] = []
        self._wanted = asyncio.Event()
        self._grown: asyncio.Future[None] | None = None
        self._origin = ""
        self._pages: deque[tuple[int, list[FeedEntry]]] = deque(maxlen=SHARED_PAGES)
        self._count = READ_COUNT

    async def run(self) -> None:
        """Follow the feed for ever, also across a Redis that goes and comes back.

        Reads nothing while nobody waits; writes that come meanwhile are then read together. Several
        may run it: one follows, and another takes over when that one is cancelled.
        """
        async with self._run:
            await self._follow()

    async def _follow(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            idle_since = clock()
            await self._wanted.wait()
            await self.store.opened()
            self._keep_up()
            if not self._waiting:
                continue  # whoever waited gave up while the store was closed
            if clock() - idle_since > IDLE_S:
                # What came while nobody waited may be more than anyone wants to read.
                self._begin(min(self._waiting))
            newest = self._newest
            try:
                entries = await self.store.feed_news(newest, READ_COUNT, WAIT_MS)
                whole_after = await self.store.whole_after(newest)
            except Unavailable as unavailable:
                log.debug("tail waits for the store", extra={"reason": unavailable.message})
                await asyncio.sleep(0.05)
                continue
            if newest == self._newest:
                self._begin(whole_after)  # if trimmed while nobody read, what is held ends in a gap
                self._take([entry for entry in entries if entry.revision > whole_after])

    def _keep_up(self) -> None:
        """A new incarnation may have taken back what the one before wrote: hold nothing of it."""
        if self._origin != self.store.origin:
            self._origin = self.store.origin
            self._entries.clear()
            self._pages.clear()
            self._complete_after, self._newest, self._changes = None, 0, 0
            self._wake()

    def _begin(self, revision: int) -> None:
        """Hold what follows this revision, and nothing before it."""
        if self._complete_after is None or revision > self._newest:
            self._entries.clear()
            self._changes = 0
            self._complete_after = self._newest = revision
            self._wake()

    def _take(self, entries: list[FeedEntry]) -> None:
        if not entries:
            return
        self._newest = entries[-1].revision
        self._entries.extend(entries)
        self._changes += sum(_weight(entry) for entry in entries)
        dropped = 0
        while self._changes > self._buffer_size:
            self._changes -= _weight(self._entries[dropped])
            dropped += 1
        if dropped:
            self._complete_after = self._entries[dropped - 1].revision
            del self._entries[:dropped]
        self._wake()

    def _wake(self) -> None:
        if self._grown is not None:
            self._grown.set_result(None)
            self._grown = None

    async def after(
        self, revision: int, count: int = READ_COUNT, *, is_watching: bool = False
    ) -> list[FeedEntry]:
        """The entries that follow this revision, in order; waits until there is one.

        Raises Unavailable when they are not in memory and Redis does not answer. Some may have been
        trimmed: whoever is watching gets Refused("cursor_expired") (410) instead of a gap.
        """
        while True:
            self._keep_up()
            if self._complete_after is not None and revision >= self._complete_after:
                if found := self._buffered(revision, count):
                    return found
                await self._wait(revision)
                continue
            if not is_watching and (shared := self._shared(revision)):
                return shared
            newest, origin = self._newest, self._origin
            count = min(count, self._count)
            entries = await self.store.feed_after(revision, count)
            whole_after = await self.store.whole_after(revision)
            if is_watching and revision < whole_after:
                raise expired()
            if origin != self.store.origin:
                continue
            self._share(revision, entries, count)
            if len(entries) < count and self._complete_after is None:
                # The first to come to the tip: here the buffer begins.
                self._begin(whole_after)
                self._take([entry for entry in entries if entry.revision > whole_after])
            if entries:
                return entries
            if newest == self._newest:
                await self._wait(revision)

    async def entries_after(self, revision: int) -> AsyncIterator[list[FeedEntry]]:
        """Lists of consecutive entries that follow this revision; never ends."""
        while True:
            entries = await self.after(revision)
            revision = entries[-1].revision
            yield entries

    def oldest_buffered_after(self, revision: int, origin: str) -> FeedEntry | None:
        """The first entry of `origin` in memory after this revision, if there is one."""
        if self._complete_after is None or revision < self._complete_after:
            return None
        return next(
            (e for e in self._entries if e.revision > revision and e.origin == origin), None
        )

    def _shared(self, revision: int) -> list[FeedEntry]:
        """What follows a revision in a page that somebody has read lately; empty if in none."""
        for after, entries in self._pages:
            if after <= revision < entries[-1].revision:
                start = bisect_right(entries, revision, key=lambda entry: entry.revision)
                return entries[start:]
        return []

    def _share(self, revision: int, entries: list[FeedEntry], count: int) -> None:
        size = sum(len(entry.text) for entry in entries)
        if size > READ_BYTES:
            self._count = max(1, count // 2)
        elif size < READ_BYTES // 4:
            self._count = min(READ_COUNT, 2 * self._count)
        # A full page stays as it is; one at the tip grows.
        if len(entries) == count and size <= READ_BYTES:
            self._pages.append((revision, entries))

    def _buffered(self, revision: int, count: int) -> list[FeedEntry]:
        start = bisect_right(self._entries, revision, key=lambda entry: entry.revision)
        return self._entries[start : start + count]

    async def _wait(self, revision: int) -> None:
        """Until the buffer has grown; keeps `run` reading for so long."""
        if self._grown is None:
            self._grown = asyncio.get_running_loop().create_future()
        self._waiting.append(revision)
        self._wanted.set()
        try:
            await asyncio.shield(self._grown)
        finally:
            self._waiting.remove(revision)
            if not self._waiting:
                self._wanted.clear()


def expired() -> Refused:
    """The answer to a watcher that the feed no longer reaches back to."""
    return Refused(
        "cursor_expired",
        "the feed of this node no longer has what follows the cursor; list what there is and watch "
        'from now, or from "start"',
        410,
    )


def _weight(entry: FeedEntry) -> int:
    # An empty transaction takes memory too.
    return max(1, entry.changes)
