"""How many entries a feed had when it was at a revision: a stream cannot be asked for ranks.

Once in a while somebody notes where the feed was. In between it is taken to have grown evenly, so
that what is told is exact at the marks and near it elsewhere.
"""

from bisect import bisect_left
from collections.abc import Sequence

MOST = 2_048
"""Marks that are kept. At the limit every second one of the older half goes: the further back, the
rougher."""


class Marks:
    """(revision, entries that the feed has had up to it), both growing."""

    def __init__(self) -> None:
        self._revisions: list[int] = []
        self._counts: list[int] = []
        self._gone = 0

    @property
    def is_empty(self) -> bool:
        """Whether nothing was noted yet."""
        return not self._revisions

    def begin(self, oldest: int) -> None:
        """The oldest entry of the feed has this revision."""
        self.note(oldest - 1, 0)

    def note(self, revision: int, length: int, gone: int = 0) -> None:
        """At this revision the feed had so many entries; now `gone` of them are taken off it."""
        count = self._gone + length
        self._gone += gone
        if self._revisions and (revision < self._revisions[-1] or count < self._counts[-1]):
            # It is another feed, of a new incarnation: what was noted is of no use.
            self._revisions.clear()
            self._counts.clear()
            count, self._gone = length, gone
        if self._revisions and revision == self._revisions[-1]:
            self._counts[-1] = count
            return
        self._revisions.append(revision)
        self._counts.append(count)
        if len(self._revisions) > MOST:
            half = MOST // 2
            for kept in (self._revisions, self._counts):
                kept[1:half] = kept[1:half:2]

    def after(self, revision: int, length: int) -> int:
        """How many entries follow this revision in a feed that is so long now."""
        return min(length, max(0, self._gone + length - self._count_at(revision)))

    def _count_at(self, revision: int) -> int:
        revisions, counts = self._revisions, self._counts
        at = bisect_left(revisions, revision)
        if at == len(revisions):
            return counts[-1] if counts else 0
        if revisions[at] == revision or at == 0:
            # Before the first mark nothing is known: rather too many wait than too few.
            return counts[at] if revisions[at] == revision else 0
        return _between(revisions[at - 1 : at + 1], counts[at - 1 : at + 1], revision)


def _between(revisions: Sequence[int], counts: Sequence[int], revision: int) -> int:
    span = revisions[1] - revisions[0]
    return counts[0] + (counts[1] - counts[0]) * (revision - revisions[0]) // span
