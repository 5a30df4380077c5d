"""What of the feed may go: the decision of the trim loop.

An entry goes when every target has acknowledged it and it is older than the retention. Beyond the
longest allowed feed the oldest go whoever needs them, and while the store is full nothing is kept
for watchers.
"""

from collections.abc import Iterable
from typing import NamedTuple


class Feed(NamedTuple):
    """A feed as it is now. length: entries. newest: revision."""

    length: int
    newest: int


class Keep(NamedTuple):
    """What is kept: `retention_us` microseconds for watchers, `max_entries` for slow targets."""

    retention_us: int
    max_entries: int


class Trim(NamedTuple):
    """At most `most` entries go, the oldest, none above revision `up_to`."""

    up_to: int
    most: int


def due(
    feed: Feed,
    keep: Keep,
    cursors: Iterable[int],
    *,
    held: int | None = None,
    now_us: int,
    is_full: bool,
    most: int,
) -> Trim:
    """What may go now, at most `most` entries of it; `most` 0 is nothing.

    cursors: per target the revision up to which it has all that goes to it over this node. held:
    where a state transfer will end; what follows is kept until then, however long the feed.
    """
    newest = feed.newest if held is None else min(held, feed.newest)
    excess = feed.length - keep.max_entries
    if excess > 0:
        return Trim(newest, min(excess, most))
    up_to = min([newest, *cursors])
    if not is_full:
        up_to = min(up_to, now_us - keep.retention_us)
    return Trim(max(up_to, 0), min(feed.length, most) if up_to > 0 else 0)


def is_left_behind(cursor: int, floor: int) -> bool:
    """Whether the feed no longer has all that follows a target's cursor.

    floor: the newest revision that was trimmed.
    """
    return cursor < floor
