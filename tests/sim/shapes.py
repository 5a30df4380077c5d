"""Shapes of replication graphs, and a random one of them."""

import random
from collections.abc import Callable, Sequence

from sidecar.core.routing import Graph

NAMES = ["n", "n-1", "n0", "n1", "n2"]


def mesh(names: Sequence[str]) -> Graph:
    """Everyone ships to everyone."""
    return {a: [b for b in names if b != a] for a in names}


def ring(names: Sequence[str]) -> Graph:
    """Each ships to the two beside it."""
    n = len(names)
    return {a: sorted({names[(i + 1) % n], names[i - 1]} - {a}) for i, a in enumerate(names)}


def one_way_ring(names: Sequence[str]) -> Graph:
    """Each ships to the next one."""
    return {a: [names[(i + 1) % len(names)]] for i, a in enumerate(names)}


def chain(names: Sequence[str]) -> Graph:
    """A ring with one link missing."""
    return {
        a: list(names[max(i - 1, 0) : i]) + list(names[i + 1 : i + 2]) for i, a in enumerate(names)
    }


def star(names: Sequence[str]) -> Graph:
    """The first one ships to all, and all to it."""
    return {a: list(names[1:]) if a == names[0] else [names[0]] for a in names}


SHAPES: dict[str, tuple[Callable[[Sequence[str]], Graph], tuple[int, ...]]] = {
    "mesh": (mesh, (2, 3, 4)),
    "ring": (ring, (3, 4, 5)),
    "one-way-ring": (one_way_ring, (3, 4)),
    "chain": (chain, (3, 4)),
    "star": (star, (3, 4, 5)),
}


def random_graph(rnd: random.Random, shape: str) -> Graph:
    """A graph of that shape, with some number of nodes in some order."""
    make, sizes = SHAPES[shape]
    return make(rnd.sample(NAMES, rnd.choice(sizes)))
