"""What this node stores, summed up bucket by bucket, and what it says of the sums of others.

Owns the reading of digests and of what no bucket lists. Changes nothing, whatever it finds; only
`take` does, on command, for the buckets it is given.
"""

import asyncio
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sidecar.core.compare import UNKNOWN, Reading, Received, Verdict, compare, feed_start
from sidecar.core.digest import MODULUS, content, mix
from sidecar.core.relationship import BUCKETS, Identity
from sidecar.core.session import TRANSFER
from sidecar.core.vector import Vector, above, pointwise_max
from sidecar.core.wire import bucket_of_name, encode_bucket, hash_of
from sidecar.errors import Refused, Unavailable
from sidecar.store.calls import Absorbed, AbsorbOutcome, Bucket, Phase, Way
from sidecar.store.feed import FeedEntry
from sidecar.store.redis_store import RedisStore
from sidecar.store.states import Shown, winner

log = logging.getLogger(__name__)

PIECE_BUCKETS = 256
PIECE_TUPLES = 1_000
"""After so many no further bucket is begun: hashing them keeps the event loop for milliseconds."""

REACH_S = 5.0
"""So long a node that is asked waits until it has what the asking one has."""

MAX_ENTRIES = 5_000
"""A longer piece of the feed is not looked through; its buckets are asked again later."""

MAX_STRAYS = 10_000
"""More are not remembered; what is known is enough for an alarm, and repair comes again."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Some buckets of this node. following: the bucket to go on with.

    damaged: buckets that do not fit the digest that every write maintains.
    """

    reading: Reading
    following: int
    damaged: frozenset[int]


@dataclass(frozen=True, slots=True)
class StoredTuple:
    """A tuple as it is stored. shown: its winner, None when it cannot be read.

    is_stray: its key is in no bucket.
    """

    identity: Identity
    text: str
    shown: Shown | None
    is_stray: bool = False


class Digests:
    """The digests of one node. strays: bucket -> keys no bucket lists, as last looked for."""

    def __init__(self, store: RedisStore) -> None:
        self._store = store
        self.strays: Mapping[int, frozenset[str]] = {}

    def check_serving(self) -> None:
        """Raise Unavailable while this node is not to be compared with anyone."""
        if self._store.phase is not Phase.SERVING:
            raise Unavailable(
                "catching_up", f"{self._store.node} has not caught up, it is not compared"
            )
        if self._store.joined is not None:
            raise Unavailable(
                "rules_change",
                f"the conflict rules of {self._store.node} have changed, and it has not yet joined "
                "what all others have stored; it is not compared until then",
            )

    async def read(self, first: int, buckets: int = PIECE_BUCKETS) -> Piece:
        """Whole buckets from `first` on, at most so many. Raises Unavailable."""
        states = await self._store.states(first, buckets, PIECE_TUPLES)
        damaged = frozenset(one.number for one in states.buckets if not _fits(one))
        sums = {one.number: _sum_of(one) for one in states.buckets}
        return Piece(Reading(states.vector, sums), states.following, damaged)

    async def compare(self, asked: Reading, reach_s: float = REACH_S) -> tuple[Vector, Verdict]:
        """What this node says of consecutive buckets of another one, and its vector.

        Waits until it has what the other one had, for `reach_s` at most. Raises Unavailable.
        """
        self.check_serving()
        if not await self._store.wait_covered(asked.vector, reach_s):
            return self._store.vector, Verdict(frozenset(), frozenset(asked.sums))
        unequal: set[int] = set()
        undecided: set[int] = set()
        first, end = min(asked.sums), max(asked.sums) + 1
        while first < end:
            piece = await self.read(first, end - first)
            part = range(first, piece.following)
            sums = {n: asked.sums[n] for n in part if n in asked.sums}
            feed = await self._feed_between(asked.vector, piece.reading.vector)
            said = compare(Reading(asked.vector, sums), piece.reading, feed)
            unequal |= said.unequal
            undecided |= said.undecided
            first = piece.following
        return self._store.vector, Verdict(frozenset(unequal), frozenset(undecided))

    async def _feed_between(self, asked: Vector, here: Vector) -> list[Received] | None:
        if not above(here, asked):
            return []
        start = feed_start(asked, here, {}) or 0
        found = await self._store.feed_after(start, MAX_ENTRIES)
        # Asked afterwards: what goes meanwhile is known to be missing.
        is_whole = await self._store.whole_after(start) == start
        floor = await self._store.stored_floor()
        is_there = feed_start(asked, here, floor) is not None
        if not is_whole or not is_there or len(found) == MAX_ENTRIES:
            return None
        return [_received(entry) for entry in found]

    # -- single tuples ----------------------------------------------------------------------------

    async def find_strays(self) -> Mapping[int, frozenset[str]]:
        """Walk over all stored keys, with rests, and remember those that no bucket lists."""
        clock = asyncio.get_running_loop().time
        found: dict[int, set[str]] = {}
        cursor, count = "0", 0
        while count < MAX_STRAYS:
            began = clock()
            cursor, members = await self._store.strays(cursor)
            for member in members:
                found.setdefault(bucket_of_name(member), set()).add(member)
                count += 1
            if cursor == "0":
                break
            await asyncio.sleep(clock() - began)
        self.strays = {bucket: frozenset(members) for bucket, members in found.items()}
        return self.strays

    async def tuples(self, bucket: int) -> tuple[Vector, list[StoredTuple]]:
        """All that is stored of a bucket, and the vector it was read at."""
        states = await self._store.states(bucket, 1, 1)
        listed = states.buckets[0].tuples
        members = {key for key, _, _ in listed}
        stray = [
            row
            for member in sorted(self.strays.get(bucket, frozenset()) - members)
            for row in await self._store.tuples_of(member)
        ]
        found = [_stored(*row) for row in listed]
        return states.vector, found + [_stored(*row, is_stray=True) for row in stray]

    async def page(self, bucket: int) -> str:
        """The bucket as another node takes it, once no crash here can take away what it says."""
        states = await self._store.states(bucket, 1, 1)
        await self._store.wait_durable(states.vector)
        one = states.buckets[0]
        vector = pointwise_max(states.vector, one.beyond)
        return encode_bucket(one.number, vector, one.tuples).decode()

    async def take(self, source: str, pages: Sequence[str]) -> Absorbed:
        """Repair: take these buckets as `source` has them. Raises Refused("bad_page")."""
        lines = [self._with_strays(page) for page in pages]
        absorbed = await self._store.absorb("\n".join(lines).encode(), Way.REPLACE)
        if absorbed.outcome is AbsorbOutcome.SKEW:
            raise Unavailable("skew", "a page has writes ahead of the clock of this node")
        log.warning(
            "buckets were taken over by a repair",
            extra={
                "source": source,
                "buckets": ", ".join(str(json.loads(page)["bucket"]) for page in pages),
                "appeared": absorbed.appeared,
                "disappeared": absorbed.disappeared,
            },
        )
        return absorbed

    def _with_strays(self, page: str) -> str:
        try:
            bucket = json.loads(page)
            number = int(bucket["bucket"])
        except (ValueError, TypeError, KeyError, RecursionError):
            raise Refused("bad_page", "a page is a bucket with its vector and tuples") from None
        if not 0 <= number < BUCKETS:
            raise Refused("bad_page", f"{number} is no bucket")
        strays = self.strays.get(number)
        if not strays:
            return page
        return json.dumps({**bucket, "strays": sorted(strays)}, ensure_ascii=False)


def _received(entry: FeedEntry) -> Received:
    changes = json.loads(entry.text)["changes"]
    buckets = frozenset(int(change[4]) for change in changes)
    return Received(entry.origin, entry.timestamp, buckets, entry.origin == TRANSFER)


def _identity(key: str, field: str) -> Identity:
    tenant, _, resource = key.partition("/")
    relation, _, subject = field.partition("#")
    return tenant, resource, relation, subject


def _stored(key: str, field: str, text: str, is_stray: bool = False) -> StoredTuple:
    try:
        shown = winner(text)
    except Refused:
        shown = None
    return StoredTuple(_identity(key, field), text, shown, is_stray)


def _sum_of(bucket: Bucket) -> int:
    if bucket.beyond:
        return UNKNOWN
    return sum(_contents(bucket.tuples)) % MODULUS


def _contents(tuples: Iterable[tuple[str, str, str]]) -> Iterable[int]:
    for key, field, text in tuples:
        shown = _stored(key, field, text).shown
        if shown is None:
            yield content(_identity(key, field), (0, ""), text, "")
        elif shown.is_visible:
            yield content(_identity(key, field), *shown[1:])


def _fits(bucket: Bucket) -> bool:
    """Whether the maintained digest is that of what is stored."""
    total = 0
    for key, field, text in bucket.tuples:
        try:
            shown = winner(text)
            if shown.is_visible:
                total += mix(hash_of(key, field), *shown.version)
        except (Refused, UnicodeEncodeError):
            return False
    return total % MODULUS == bucket.digest % MODULUS
