"""What only an outsider can know: of every write, the writes that its writer had really seen.

Versions, vectors and contexts are what nodes conclude; this is what happened. The checks compare
the two: during a history for single nodes, and at its end for all of them together.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sidecar.core.conflict import ConflictResolutionStrategy, Rules, Sibling
from sidecar.core.relationship import Change, Identity, Operation
from sidecar.core.vector import Version
from tests.sim.memory_store import Disk, MemoryStore

Placed = tuple[Identity, Version]
"""One tuple's part in a write."""


@dataclass(frozen=True)
class Write:
    """What was written to one tuple, and the writes of it that came before."""

    operation: Operation
    past: frozenset[Version]


class Oracle:
    """The writes of a history.

    acknowledged: those that an application was told of. lost: what the last node to hold it lost.
    is_lenient: rules change, so that the winner may be any write that nobody has overwritten.
    """

    def __init__(self, rules: Rules) -> None:
        self._rules, self.is_lenient = rules, False
        self.writes: dict[Version, dict[Identity, Write]] = {}
        self.acknowledged: set[Placed] = set()
        self.lost: set[Placed] = set()
        self._again: dict[Version, set[Version]] = {}
        self._of_origin: dict[str, set[Version]] = {}
        self._begun: set[str] = set()
        self._maximal: dict[tuple[Identity, frozenset[Version]], frozenset[Version]] = {}

    # -- what happens -----------------------------------------------------------------------------

    def note_begun(self, origin: str) -> None:
        """An incarnation begins: called by stores."""
        assert origin not in self._begun, f"the incarnation {origin} begins twice"
        self._begun.add(origin)

    def note_write(
        self,
        version: Version,
        parts: Sequence[tuple[Change, frozenset[Version]]],
        replaced: Version | None,
    ) -> None:
        """Called by stores; replaced: what was set aside and is written again by this."""
        self._check_is_free(version)
        self.writes[version] = {
            change.relationship.identity: Write(change.operation, self._with_pasts(change, seen))
            for change, seen in parts
        }
        self._of_origin.setdefault(version[1], set()).add(version)
        if replaced is not None:
            self._again.setdefault(replaced, set()).add(version)

    def _with_pasts(self, change: Change, seen: frozenset[Version]) -> frozenset[Version]:
        """What its writer had seen, and what had been overwritten by that."""
        identity = change.relationship.identity
        return seen.union(*(self.writes[version][identity].past for version in seen))

    def _check_is_free(self, version: Version) -> None:
        """A version names one write, unless nobody but its writer had ever heard of another one.

        That is so after a restart that lost it, when all who were asked knew nothing of it.
        """
        before = {(identity, version) for identity in self.writes.get(version, ())}
        assert before <= self.lost, f"{version} is used twice"
        self.lost -= before
        self.acknowledged -= before

    def note_acknowledged(self, version: Version) -> None:
        """An application has been told that its write is stored."""
        self.acknowledged |= {(identity, version) for identity in self.writes[version]}

    def note_gone(self, gone: Iterable[Placed], disks: Iterable[Disk]) -> None:
        """A node has lost these; what is on no other disk either may be missing at the end."""
        left = set(gone)
        for disk in disks:
            left -= held(disk)
        self.lost |= left

    # -- one node, at any time --------------------------------------------------------------------

    def check_vector(self, node: str, disk: Disk) -> None:
        """A vector never lies: what it covers has been taken in."""
        for origin, reached in disk.vector.items():
            for version in self._of_origin.get(origin, ()):
                if version[0] > reached:
                    continue
                for identity in self.writes[version]:
                    # What nobody has any more leaves a place that is never used again.
                    is_there = version in disk.seen.get(identity, frozenset())
                    assert is_there or (identity, version) in self.lost, (
                        f"{node} says it has {version}, and has not: {identity[1:3]}"
                    )

    def check_tuple(self, node: str, store: MemoryStore, identity: Identity) -> None:
        """What readers see is the winner of all that was taken in here, and nothing overwritten."""
        maximal = self.maximal(identity, store.disk.seen.get(identity, frozenset()))
        state = store.disk.tuples.get(identity)
        overwritten = set(state.siblings) - maximal if state else set()
        assert not overwritten, f"{node} holds what was overwritten: {identity[1:3]} {overwritten}"
        expected, found = self._winners(identity, maximal), store.visible(identity)
        assert found in expected, (
            f"{node} shows {found} for {identity[1:3]}, the winner of {sorted(maximal)} is "
            f"{expected}"
        )

    def maximal(self, identity: Identity, seen: frozenset[Version]) -> frozenset[Version]:
        """The writes of a tuple that no other one among them had seen."""
        key = (identity, seen)
        if key not in self._maximal:
            pasts = (self.writes[version][identity].past for version in seen)
            self._maximal[key] = seen.difference(*pasts)
        return self._maximal[key]

    def _winners(self, identity: Identity, maximal: Iterable[Version]) -> set[Version | None]:
        """What may be visible: one, unless rules change."""
        mine = {v: self.writes[v][identity].operation for v in maximal}
        if not self.is_lenient or len(mine) < 2:
            return {self.winner(identity, mine)}
        return {v if one is Operation.INSERT else None for v, one in mine.items()}

    def winner(self, identity: Identity, maximal: Iterable[Version]) -> Version | None:
        """What is visible, by the words of the README; not by the code under test."""
        mine = {version: self.writes[version][identity] for version in maximal}
        if not mine:
            return None
        rules = self._rules.at(identity[1], identity[2])
        if rules.resolve is not None and rules.strategy is ConflictResolutionStrategy.CUSTOM:
            best = rules.resolve({v: Sibling(write.operation) for v, write in mine.items()})
        else:
            best = max(mine, key=lambda v: _rank(rules, v, mine[v].operation))
        return best if mine[best].operation is Operation.INSERT else None

    # -- all nodes, at the end --------------------------------------------------------------------

    def check_end(self, stores: Mapping[str, MemoryStore], identities: Sequence[Identity]) -> None:
        """Nothing that was acknowledged is missing without a reason, and all have the same."""
        disks = [store.disk for store in stores.values()]
        there = set().union(*(held(disk) for disk in disks))
        missing = {one for one in self.acknowledged if not self._is_accounted_for(one, there)}
        assert not missing, f"acknowledged and gone: {sorted(missing)}"
        for node, store in stores.items():
            self.check_vector(node, store.disk)
        for identity in identities:
            seen = frozenset().union(*(disk.seen.get(identity, ()) for disk in disks))
            expected = self._winners(identity, self.maximal(identity, seen))
            found = {node: store.visible(identity) for node, store in stores.items()}
            is_one = len(set(found.values())) == 1
            assert is_one, f"{identity[1:3]}: expected {expected}, found {found}"
            assert set(found.values()) <= expected, (
                f"{identity[1:3]}: expected {expected}, found {found}"
            )
            states = [disk.tuples.get(identity) for disk in disks]
            assert all(state == states[0] for state in states), f"states differ: {states}"

    def _is_accounted_for(self, one: Placed, there: set[Placed]) -> bool:
        identity, version = one
        if one in there or one in self.lost:
            return True
        again = self._again.get(version, ())
        return any(self._is_accounted_for((identity, later), there) for later in again)


def _rank(rules: Rules, version: Version, operation: Operation) -> tuple[object, ...]:
    node, _, name = version[1].partition(".")
    last = (version[0], node.encode(), name.encode())
    match rules.strategy:
        case ConflictResolutionStrategy.SOURCE_PRIORITY:
            return (rules.priority.get(node, 0), *last)
        case ConflictResolutionStrategy.INSERT_WINS:
            return (operation is Operation.INSERT, *last)
        case ConflictResolutionStrategy.DELETE_WINS:
            return (operation is Operation.DELETE, *last)
        case _:
            return last


def held(disk: Disk) -> set[Placed]:
    """What is on a disk: taken in, or set aside to be written again."""
    taken = {(identity, version) for identity, seen in disk.seen.items() for version in seen}
    aside = {(identity, one.version) for one in disk.aside for identity in one.identities}
    return taken | aside
