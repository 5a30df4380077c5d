"""What a target has not acknowledged yet, counted: how far it is behind in transactions.

Nothing is counted unless somebody asks.
"""

import time
from dataclasses import dataclass

from sidecar.agent.peers import Peers
from sidecar.agent.ship import Target
from sidecar.core.marks import Marks
from sidecar.core.vector import Vector, node_of
from sidecar.store.redis_store import RedisStore

COUNT_EXACTLY = 1_000
COUNT_BYTES = 2 * 1024 * 1024
FIRST_PAGE, LARGEST_PAGE = 16, 512
"""Entries read at once: few at first, because each may be some megabytes."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """What waits for a target: transactions of this node, and entries of the feed that go there
    from here.

    Beside the former the latter has what this node carries there for others. is_estimate: there
    are more than are counted one by one.
    """

    transactions: int
    entries: int
    is_estimate: bool = False


NOTHING = Waiting(0, 0)


REST = 50
"""Nothing is counted again before so many times as long have passed as counting took: however many
ask, it takes 2 % of a core."""


class Backlog:
    """The backlogs of the targets of one partition."""

    def __init__(self, store: RedisStore, peers: Peers, marks: Marks) -> None:
        self._store, self._peers, self._marks = store, peers, marks
        self._counted: dict[str, tuple[float, Waiting]] = {}

    async def of(self, target: Target) -> Waiting:
        """What a target has not acknowledged. Raises Unavailable."""
        lacking = self._lacking(target)
        if not lacking:
            return NOTHING
        good_until, counted = self._counted.get(target.node, (0.0, NOTHING))
        began = time.monotonic()
        if began >= good_until:
            counted = await self._count(target, lacking)
            ended = time.monotonic()
            self._counted[target.node] = ended + REST * (ended - began), counted
        return counted

    async def _count(self, target: Target, lacking: Vector) -> Waiting:
        # The revision of an entry is at least its timestamp.
        position = max(target.cursor, min(lacking.values()))
        node = self._store.node
        transactions = entries = read = size = 0
        count = FIRST_PAGE
        while read < COUNT_EXACTLY and size < COUNT_BYTES:
            page = await self._store.feed_after(position, count)
            waiting = [e for e in page if e.timestamp > lacking.get(e.origin, e.timestamp)]
            entries += len(waiting)
            transactions += sum(node_of(entry.origin) == node for entry in waiting)
            if len(page) < count:
                return Waiting(transactions, entries)
            read += len(page)
            size += sum(len(entry.text) for entry in page)
            position = page[-1].revision
            count = min(2 * count, LARGEST_PAGE)
        rest = self._marks.after(position, await self._store.feed_length())
        # What is further on is taken to be of the same kinds.
        return Waiting(
            transactions + rest * transactions // read, entries + rest * entries // read, True
        )

    def _lacking(self, target: Target) -> Vector:
        """origin -> what the target has of it, where it lacks some of what goes there."""
        # Since the start of this process there may have been no session with it.
        has = target.vector or self._peers.rows.known.get(target.node, {})
        store = self._store
        carried = target.carried or {store.node}
        return {
            origin: has.get(origin, 0)
            for origin, timestamp in store.vector.items()
            if timestamp > has.get(origin, 0) and node_of(origin) in carried
        }
