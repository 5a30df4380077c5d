"""Which buckets of two nodes may be compared, and which of those differ.

One node reads sums of buckets together with its vector; the other waits until it has all of that
vector and reads the same buckets with its own. What the second has received beyond the first is in
its feed: a bucket that none of it touched must be the same on both. Nothing else is ever said of a
bucket than that it differs or cannot be told; never whose fault it is.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from sidecar.core.vector import Vector, above, covers

UNKNOWN = -1
"""The sum of a bucket that is not to be compared: a state transfer has come ahead of the vector."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Sums of buckets by their number, and the vector that they were read at, in one step."""

    vector: Vector
    sums: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Received:
    """An entry of a feed: what it is, and the buckets of its changes.

    is_local: what a state transfer changed here; it has no place in any vector.
    """

    origin: str
    timestamp: int
    buckets: Collection[int]
    is_local: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """unequal: buckets that differ. undecided: those that were in motion; ask again later."""

    unequal: frozenset[int]
    undecided: frozenset[int]


def feed_start(asked: Vector, here: Vector, floor: Vector) -> int | None:
    """Revision behind which the feed has everything that `here` has beyond `asked`.

    None when it does not hold all of it. The revision of an entry is never below its timestamp.
    """
    beyond = above(here, asked)
    if any(asked.get(origin, 0) < floor.get(origin, 0) for origin in beyond):
        return None
    return min((asked.get(origin, 0) for origin in beyond), default=0)


def compare(asked: Reading, here: Reading, feed: Iterable[Received] | None) -> Verdict:
    """What the node that was asked says of the sums of the one that asks.

    feed: its entries behind `feed_start`; None when they are not all there.
    """
    numbers = frozenset(asked.sums)
    if above(asked.vector, here.vector):
        return Verdict(frozenset(), numbers)
    if not above(here.vector, asked.vector):
        feed = ()
    if feed is None:
        return Verdict(frozenset(), numbers)
    touched: set[int] = set()
    for entry in feed:
        version = (entry.timestamp, entry.origin)
        is_between = covers(here.vector, version) and not covers(asked.vector, version)
        if entry.is_local or is_between:
            touched.update(entry.buckets)
    undecided = frozenset(
        n for n in numbers if n in touched or UNKNOWN in {asked.sums[n], here.sums.get(n, UNKNOWN)}
    )
    differ = (n for n in numbers - undecided if asked.sums[n] != here.sums[n])
    return Verdict(frozenset(differ), undecided)


def is_outvoted(unequal: Mapping[str, Collection[int]]) -> bool:
    """Whether a node differs from more than half of the nodes it was compared with.

    unequal: the node it was compared with -> buckets that differ.
    """
    return 2 * sum(map(bool, unequal.values())) > len(unequal)
