"""The strategies as a program asks for them: two writes of one tuple, who wins and why.

The ranking is that of `core/conflict.py`, which the nodes share; here is only the asking. Pure: it
reads no clock and no store.
"""

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from sidecar.core.conflict import ConflictResolutionStrategy, Rules, Sibling
from sidecar.core.topology import Topology
from sidecar.core.vector import node_of
from sidecar.errors import Refused
from sidecar.library.change import Change


class Side(StrEnum):
    """Which of the two: what is stored here, or what has arrived."""

    LOCAL = "local"
    REMOTE = "remote"


class Why(StrEnum):
    """What of the two writes differed first, in the order in which the strategy looks."""

    OPERATION = "operation"
    REGION_PRIORITY = "region_priority"
    TIMESTAMP = "timestamp"
    NODE = "node"
    INCARNATION = "incarnation"
    CUSTOM = "custom"


@dataclass(frozen=True, slots=True)
class Conflict:
    """Two writes of one tuple of which neither knew the other.

    Raises Refused("not_comparable") for two tuples, and for changes without a version of their own.
    """

    local: Change
    remote: Change

    def __post_init__(self) -> None:
        local, remote = self.local, self.remote
        if local.relationship.identity != remote.relationship.identity:
            raise _not_comparable("they change different relationships")
        for change in (local, remote):
            if not change.timestamp or not change.origin:
                raise _not_comparable("a change needs timestamp and origin, which name the write")
        if local.version == remote.version:
            raise _not_comparable(f"both are the write {local.timestamp} of {local.origin}")


Resolve = Callable[[Conflict], Change]
"""Chooses one of the two changes; the same one whichever of them is local."""


@dataclass(frozen=True, slots=True)
class Resolution:
    """Who wins a conflict, and what decided it."""

    conflict: Conflict
    winner: Side
    why: Why

    @property
    def change(self) -> Change:
        """The change that everyone then sees."""
        return self.conflict.local if self.winner is Side.LOCAL else self.conflict.remote


class ConflictResolver:
    """A strategy, ready to be asked: whoever asks it about the same two writes hears the same."""

    def __init__(
        self, strategy: ConflictResolutionStrategy, *, resolve: Resolve | None = None
    ) -> None:
        """resolve: the choice of CUSTOM, which needs it, and of that alone.

        It is for this interface only: nodes decide inside Redis, so their rule is a script.
        """
        is_custom = strategy is ConflictResolutionStrategy.CUSTOM
        if resolve is not None and not is_custom:
            raise Refused("bad_resolver", f"resolve= is for CUSTOM; {strategy} has its own rule")
        self.strategy = strategy
        self.region_priorities: tuple[str, ...] = ()
        self._resolve = resolve

    def with_region_priorities(self, regions: Sequence[str]) -> Self:
        """The same with the order of SOURCE_PRIORITY: the highest region comes last.

        A region that is not listed ranks with the first one.
        """
        if len(set(regions)) < len(regions):
            raise Refused("bad_resolver", f"a region is listed twice: {', '.join(regions)}")
        changed = copy(self)
        changed.region_priorities = tuple(regions)
        return changed

    def resolve(self, local: Change, remote: Change) -> Resolution:
        """Who wins, and why. Raises Refused: for what `Conflict` does not take, and

        bad_resolver: CUSTOM without a function, or with one that is not symmetric;
        SOURCE_PRIORITY without priorities, or for a change without a region.
        """
        conflict = Conflict(local, remote)
        if self.strategy is ConflictResolutionStrategy.CUSTOM:
            return self._chosen(conflict)
        ranks = self._rank(local), self._rank(remote)
        winner = Side.LOCAL if ranks[0] > ranks[1] else Side.REMOTE
        return Resolution(conflict, winner, self._difference(*ranks))

    def rules_of(self, topology: Topology) -> Rules:
        """The rules that the nodes of a topology share. Raises Refused("bad_resolver")."""
        if self.strategy is ConflictResolutionStrategy.CUSTOM:
            raise Refused(
                "bad_resolver",
                "a node takes no function: conflicts are decided inside Redis, by a script that "
                "was checked (`conflict_resolution: custom` with `custom_script`)",
            )
        return self._rules({str(node.id): str(node.region) for node in topology.nodes()})

    def _rules(self, region_of: dict[str, str]) -> Rules:
        is_by_region = self.strategy is ConflictResolutionStrategy.SOURCE_PRIORITY
        if is_by_region and not self.region_priorities:
            raise Refused("bad_resolver", "SOURCE_PRIORITY needs with_region_priorities([...])")
        return Rules.of(self.strategy, self.region_priorities, region_of)

    def _rank(self, change: Change) -> tuple[object, ...]:
        rules = self._rules({node_of(change.origin): change.region})
        if self.strategy is ConflictResolutionStrategy.SOURCE_PRIORITY and not change.region:
            raise Refused("bad_resolver", "SOURCE_PRIORITY needs the region of each change")
        one = change.relationship
        sibling = Sibling(change.operation, one.condition, one.expires_at)
        return rules.rank(change.version, sibling)

    def _difference(self, local: tuple[object, ...], remote: tuple[object, ...]) -> Why:
        order = [Why.TIMESTAMP, Why.NODE, Why.INCARNATION]
        match self.strategy:
            case ConflictResolutionStrategy.SOURCE_PRIORITY:
                order.insert(0, Why.REGION_PRIORITY)
            case ConflictResolutionStrategy.INSERT_WINS | ConflictResolutionStrategy.DELETE_WINS:
                order.insert(0, Why.OPERATION)
            case _:
                pass
        parts = zip(order, local, remote, strict=True)
        return next(why for why, here, there in parts if here != there)

    def _chosen(self, conflict: Conflict) -> Resolution:
        if self._resolve is None:
            raise Refused("bad_resolver", "CUSTOM needs resolve=, a function that chooses")
        chosen = self._resolve(conflict)
        # The other node sees the same two writes from the other side, and must choose alike.
        if chosen != self._resolve(Conflict(conflict.remote, conflict.local)):
            raise Refused("bad_resolver", "resolve= chooses by which of the two is local")
        if chosen not in (conflict.local, conflict.remote):
            raise Refused("bad_resolver", "resolve= returns one of the two changes as it is")
        winner = Side.LOCAL if chosen == conflict.local else Side.REMOTE
        return Resolution(conflict, winner, Why.CUSTOM)


def _not_comparable(reason: str) -> Refused:
    return Refused("not_comparable", f"these two changes are no conflict: {reason}")
