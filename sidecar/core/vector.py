"""Version vectors: origin -> timestamp up to which everything has been applied, without gaps.

Source: Parker et al., "Detection of Mutual Inconsistency in Distributed Systems", 1983.
"""

from collections.abc import Iterable, Mapping

Vector = Mapping[str, int]
Version = tuple[int, str]
"""(timestamp in microseconds, origin): names one write."""


def covers(vector: Vector, version: Version) -> bool:
    """Whether a node with this vector has received that write."""
    timestamp, origin = version
    return timestamp <= vector.get(origin, 0)


def pointwise_max(a: Vector, b: Vector) -> dict[str, int]:
    """The smallest vector that covers both."""
    joined = dict(a)
    for origin, timestamp in b.items():
        if timestamp > joined.get(origin, 0):
            joined[origin] = timestamp
    return joined


def above(a: Vector, vector: Vector) -> dict[str, int]:
    """The entries of `a` that `vector` has not reached."""
    return {origin: t for origin, t in a.items() if t > vector.get(origin, 0)}


def is_covered(a: Vector, by: Vector) -> bool:
    """Whether `by` has reached everything in `a`."""
    return all(t <= by.get(origin, 0) for origin, t in a.items())


def order(version: Version) -> tuple[int, bytes, bytes]:
    """Sort key of versions: timestamp, then node id, then incarnation, the last two by bytes.

    Never the joined text: "n-1.x" sorts before "n.x" although "n" sorts before "n-1".
    """
    timestamp, origin = version
    node, _, incarnation = origin.partition(".")
    return (timestamp, node.encode(), incarnation.encode())


def node_of(origin: str) -> str:
    """The node of an origin `<node>.<incarnation>`."""
    return origin.partition(".")[0]


def newest_origins(vector: Iterable[str]) -> dict[str, str]:
    """node -> its newest incarnation among these origins."""
    newest: dict[str, str] = {}
    for origin in vector:
        node = node_of(origin)
        # Of one node, the joined texts compare as the incarnations do: the node part is the same.
        newest[node] = max(origin, newest.get(node, ""))
    return newest
