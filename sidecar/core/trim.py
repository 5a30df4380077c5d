"""What of the feed may go: the decision of the trim loop.

An entry goes when every target has acknowledged it and it is older than the retention. Beyond the
longest allowed feed the oldest go whoever needs them, and while the store is full nothing is kept
for watchers.
"""

from collections.abc import Iterable
from typing import NamedTuple


class Feed(NamedTuple):
    """A feed as it is now. length: entries. newest: revision. own: the newest one written here."""

    length: int
    newest: int
    own: int


class Keep(NamedTuple):
    """What is kept: `retention_us` microseconds for watchers, `max_entries` for slow targets."""

    retention_us: int
    max_entries: int


class Trim(NamedTuple):
    """At most `most` entries go, the oldest, none above revision `up_to`."""

    up_to: int
    most: int


def acknowledged_up_to(cursors: Iterable[int], feed: Feed) -> int:
    """The revision up to which nothing of the feed is needed by a target.

    cursors: per target, the revision of the newest entry written here that it has acknowledged; 0
    if there is none. A target is sent only what was written here, so one that has all of it needs
    nothing of the feed.
    """
    return min(
        (cursor if cursor < feed.own else feed.newest for cursor in cursors), default=feed.newest
    )


def due(
    feed: Feed, keep: Keep, cursors: Iterable[int], *, now_us: int, is_full: bool, most: int
) -> Trim:
    """What may go now, at most `most` entries of it; `most` 0 is nothing."""
    excess = feed.length - keep.max_entries
    if excess > 0:
        return Trim(feed.newest, min(excess, most))
    up_to = acknowledged_up_to(cursors, feed)
    if not is_full:
        up_to = min(up_to, now_us - keep.retention_us)
    return Trim(max(up_to, 0), min(feed.length, most) if up_to > 0 else 0)


def is_left_behind(cursor: int, floor: int) -> bool:
    """Whether the feed no longer has all that follows a target's cursor.

    floor: the newest entry written here that was trimmed. What others wrote is nothing to a target.
    """
    return cursor < floor
