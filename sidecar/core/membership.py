"""Who belongs: nodes that were removed from the topology, and a clock that is ahead of the others.

Pure. A node that was removed may come back only as a new data set: what it holds may be older than
what the others have collected since.
"""

from collections.abc import Collection, Mapping

Removed = Mapping[str, str]
"""node -> its newest incarnation that was known when it was removed."""


def newest_removed(a: Removed, b: Removed) -> dict[str, str]:
    """Both together; of one node the newest incarnation counts."""
    joined = dict(a)
    for node, origin in b.items():
        # Of one node, the joined texts compare as the incarnations do.
        joined[node] = max(origin, joined.get(node, ""))
    return joined


def is_removed(node: str, born: str, removed: Removed) -> bool:
    """Whether the data set of a node is from before its removal.

    born: the first incarnation of the data set. A later one of the same data has lost nothing of
    what makes it dangerous.
    """
    return node in removed and born <= removed[node]


def is_ahead_of_most(ahead_us: Collection[int], limit_us: int) -> bool:
    """Whether a clock is further ahead than the limit of more than half of the others.

    ahead_us: by how much it is ahead of each of them. With an even number the doubt is in favour of
    the clock: half of the others may be behind.
    """
    return 2 * sum(ahead > limit_us for ahead in ahead_us) > len(ahead_us)


def usually_ahead(ahead_us: Collection[int]) -> int:
    """By how much a clock is ahead of those of the others: the median, 0 without any.

    With an even number it is the one of the two in the middle that is nearer to 0: of three nodes,
    the two that agree are not in doubt because of the third.
    """
    in_order = sorted(ahead_us)
    middle = in_order[(len(in_order) - 1) // 2 : len(in_order) // 2 + 1]
    return min(middle, key=abs, default=0)
