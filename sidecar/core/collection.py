"""What every node has seen: rows of vectors, when they are believed, and what is stable.

A row is the vector that a node said it has, durably. It counts once this node has received
everything in it: then nothing that the other wrote before it had something can still be on its way
here. `tests/model/replication_model.py` shows what believing earlier costs.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from sidecar.core.vector import Vector, is_covered, newest_origins, node_of, pointwise_max


@dataclass(frozen=True, slots=True)
class Stability:
    """vector: what every node has; None while the rows do not prove anything.

    held_by: the node whose row is missing or the furthest behind.
    """

    vector: Vector | None
    held_by: str | None = None


class Rows:
    """What this node knows of the vectors of the nodes of its topology, itself among them.

    known: the believed row of each. A row that is not believed yet waits, the oldest of each node:
    a newer one would never be reached under load. claims: the most each node has said to have.
    """

    def __init__(self, me: str, members: Collection[str]) -> None:
        self.me, self.members = me, tuple(sorted({me, *members}))
        self.known: dict[str, Vector] = {}
        self.ended: Mapping[str, int] = {}
        self.removed: frozenset[str] = frozenset()
        self._has_news = False
        self._waiting: dict[str, Vector] = {}
        self._claims: dict[str, Vector] = {}

    def restore(self, known: Mapping[str, Vector]) -> None:
        """Begin with the rows that were believed before a restart."""
        self.known = {node: dict(row) for node, row in known.items() if node in self.members}
        self._claims = {node: dict(row) for node, row in self.known.items()}

    def adapt(self, members: Collection[str]) -> None:
        """The topology has these nodes now: of those that went nothing is known any more."""
        self.members = tuple(sorted({self.me, *members}))
        for rows in (self.known, self._waiting, self._claims):
            for node in rows.keys() - set(self.members):
                del rows[node]
        self.removed -= set(self.members)
        self._has_news = True

    def hear(self, node: str, row: Vector) -> None:
        """A node has, or somebody was told by it that it has, this vector."""
        if node not in self.members or node == self.me:
            return
        if node not in newest_origins(row):
            return  # nothing of it is durable yet
        heard = self._waiting.get(node) or self.known.get(node) or {}
        present, before = (newest_origins(v).get(node, "") for v in (row, heard))
        if present < before:
            return
        self._claims[node] = pointwise_max(self._claims.get(node, {}), row)
        if present > before:
            # What it said as its older incarnation it may have lost.
            self.known.pop(node, None)
            self._waiting[node] = row
        if not is_covered(row, self.known.get(node, {})):
            self._waiting.setdefault(node, row)

    def claims_of(self, node: str) -> Vector:
        """The most that a node is known to have had."""
        return self._claims.get(node, {})

    def acknowledged_loss(self, node: str, row: Vector) -> None:
        """A node serves with this vector although, or because, it was told what it once had."""
        if newest_origins(row).get(node, "") >= newest_origins(self.claims_of(node)).get(node, ""):
            self._claims[node] = row

    def without(self, removed: Collection[str]) -> None:
        """These nodes write no more, and every member knows it: what they have written has an end.

        Their rows do not count, they are no members.
        """
        if self.removed != removed:
            self.removed, self._has_news = frozenset(removed), True

    def end_of(self, origin: str, vector: Vector) -> int | None:
        """Where an incarnation has ended, also one that no vector names; None: it has not."""
        if origin in self.ended:
            return self.ended[origin]
        is_older = origin < newest_origins(vector).get(node_of(origin), "")
        if origin in vector or not is_older or self._does_not_name_all(vector) is not None:
            return None
        return None if any(origin in self.known[node] for node in self.members) else 0

    def told(self) -> dict[str, Vector]:
        """The rows of other nodes, to be passed on."""
        return {
            node: self._waiting.get(node) or self.known[node]
            for node in self.members
            if node != self.me and (node in self._waiting or node in self.known)
        }

    def believe(self, vector: Vector, durable: Vector) -> list[str]:
        """Take the rows that `vector` covers whole. Returns the nodes whose row has changed."""
        changed = []
        if self.known.get(self.me) != durable:
            self.known[self.me] = dict(durable)
            changed.append(self.me)
        for node, row in list(self._waiting.items()):
            if not is_covered(row, vector):
                continue
            del self._waiting[node]
            believed = pointwise_max(self.known.get(node, {}), row)
            if believed != self.known.get(node):
                self.known[node] = believed
                changed.append(node)
        if changed or self._has_news:
            self.ended, self._has_news = dict(self._ends(vector)), False
        return changed

    def stable(self, vector: Vector) -> Stability:
        """What every node has, as far as the believed rows prove it."""
        if (silent := self._does_not_name_all(vector)) is not None:
            return Stability(None, silent)
        lowest = {o: min(self.known[node].get(o, 0) for node in self.members) for o in vector}
        behind = {
            node: sum(max(t - self.known[node].get(o, 0), 0) for o, t in vector.items())
            for node in self.members
            if node != self.me
        }
        worst = max(behind, key=lambda node: behind[node], default=None)
        return Stability(lowest, worst if worst is not None and behind[worst] else None)

    def _does_not_name_all(self, vector: Vector) -> str | None:
        """A node whose believed row has not heard of every newest incarnation, another if possible.

        What such a node had lost may still surface at it.
        """
        newest = set(newest_origins(vector).values())
        silent = [n for n in self.members if not newest <= self.known.get(n, {}).keys()]
        return next((n for n in silent if n != self.me), silent[0] if silent else None)

    def _ends(self, vector: Vector) -> Iterator[tuple[str, int]]:
        """Where dead incarnations have ended: every node has the same of them, for ever."""
        if self._does_not_name_all(vector) is not None:
            return
        newest = newest_origins(vector)
        for origin in vector:
            if newest[node_of(origin)] != origin or node_of(origin) in self.removed:
                values = {self.known[node].get(origin, 0) for node in self.members}
                if len(values) == 1:
                    yield origin, values.pop()
