"""Trimming: takes off the feed what nobody needs any more.

Owns when it happens and what is said of targets that were left behind; what may go is decided in
`core/trim.py`, and one atomic step in Redis takes it away.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence

from sidecar.core.marks import Marks
from sidecar.core.trim import Feed, Keep, due, is_left_behind
from sidecar.errors import Unavailable
from sidecar.metrics import Metrics
from sidecar.store.redis_store import RedisStore

log = logging.getLogger(__name__)

MAX_ENTRIES_PER_CALL = 1_000
"""A call blocks Redis for milliseconds; what is left goes with the next one."""

EVERY_S = 1.0
BUSY_S = 0.01


class Trimming:
    """The feed of `store`, held as short as `keep` and the targets allow.

    targets: ids of the nodes this one ships to. held: the revision from which state transfers that
    are under way need the feed. now_us: the wall clock.
    """

    def __init__(
        self,
        store: RedisStore,
        targets: Sequence[str],
        keep: Keep,
        *,
        held: Callable[[], int | None] = lambda: None,
        metrics: Metrics,
        now_us: Callable[[], int],
        marks: Marks | None = None,
    ) -> None:
        """marks: where the length of the feed is noted at each step."""
        self._marks = Marks() if marks is None else marks
        self._store, self._targets, self._keep, self._held = store, tuple(targets), keep, held
        self._metrics, self._now_us = metrics, now_us
        self._left_behind: set[str] = set()
        metrics.feed_holds(keep.max_entries)

    def adapt(self, targets: Sequence[str]) -> None:
        """From here on nothing waits for other targets than these."""
        self._targets = tuple(targets)
        self._left_behind.intersection_update(targets)

    async def run(self) -> None:
        """Trim for ever, also across a Redis that goes and comes back."""
        while True:
            await self._store.opened()
            is_more = False
            try:
                is_more = await self.trim()
            except Unavailable as unavailable:
                log.debug("trim waits for the store", extra={"reason": unavailable.message})
            await asyncio.sleep(BUSY_S if is_more else EVERY_S)

    async def trim(self) -> bool:
        """One step; returns whether more may go at once. Raises Unavailable."""
        store = self._store
        # Taken together, before anything else is asked: whatever is written meanwhile lies above.
        newest = store.revision
        cursors = await self._cursors()
        feed = Feed(await store.feed_length(), newest)
        todo = due(
            feed,
            self._keep,
            cursors.values(),
            held=self._held(),
            now_us=self._now_us(),
            is_full=bool(store.full_because),
            most=MAX_ENTRIES_PER_CALL,
        )
        if self._marks.is_empty and feed.length:
            self._marks.begin((await store.feed_bounds())[0])
        gone, is_more = 0, False
        if todo.most:
            gone, is_more = await store.trim(*todo)
        self._marks.note(newest, feed.length, gone)
        self._metrics.trimmed(gone, left=feed.length - gone)
        self._note_left_behind(cursors)
        return gone > 0 and (is_more or feed.length - gone > self._keep.max_entries)

    async def _cursors(self) -> dict[str, int]:
        if not self._targets:
            return {}
        stored = await self._store.cursors()
        return {target: stored.get(target, 0) for target in self._targets}

    def _note_left_behind(self, cursors: dict[str, int]) -> None:
        floor = self._store.trimmed
        now = {target for target, cursor in cursors.items() if is_left_behind(cursor, floor)}
        for target in sorted(now - self._left_behind):
            log.warning(
                "feed trimmed past a target that has not acknowledged it; it will get a state "
                "transfer",
                extra={"target": target, "cursor": cursors[target], "trimmed": floor},
            )
        for target in now ^ self._left_behind:
            self._metrics.resync_suggested(target, target in now)
        self._left_behind = now
