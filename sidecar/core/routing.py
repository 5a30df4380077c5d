"""Who carries whose writes to whom, where not every node ships to every other one.

The transactions of node O reach node T over the last hop of the shortest path from O to T. That
path is of the configuration; what fails is found out by looking at what a target lacks, which needs
no agreement on what has failed (`core/sender.py`).
"""

from collections.abc import Mapping, Sequence

Graph = Mapping[str, Sequence[str]]
"""node -> the nodes it ships to."""


def distances(graph: Graph, start: str) -> dict[str, int]:
    """How many hops each node that can be reached is away from `start`."""
    found, frontier = {start: 0}, [start]
    for node in frontier:
        for target in graph.get(node, ()):
            if target not in found:
                found[target] = found[node] + 1
                frontier.append(target)
    return found


def neighbours(graph: Graph, node: str) -> frozenset[str]:
    """The nodes that a session of this one leads to or comes from."""
    return frozenset(graph.get(node, ())) | {n for n in graph if node in graph[n]}


def carried(graph: Graph, sender: str, target: str) -> frozenset[str]:
    """The nodes whose transactions `sender` carries to `target`, itself among them.

    Of several last hops on shortest paths the one with the lowest node id carries.
    """
    found = {sender}
    for origin in graph:
        if origin in (sender, target):
            continue
        away = distances(graph, origin)
        hops = [n for n in graph if target in graph[n] and away.get(n, -2) + 1 == away.get(target)]
        if hops and min(hops) == sender:
            found.add(origin)
    return frozenset(found)
