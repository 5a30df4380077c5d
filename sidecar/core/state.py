"""What a node knows of one tuple, and what a write or an arriving change makes of it.

This is the specification; `lua/lib/state.lua` decides at run time, and tests hold the two and the
model together. The scheme is that of dotted version vectors (Preguiça et al., "Dotted Version
Vectors: Logical Clocks for Optimistic Replication", 2010), with one context per transaction.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from sidecar.core.conflict import ConflictResolutionStrategy, Rules, Sibling
from sidecar.core.relationship import Operation
from sidecar.core.vector import Vector, Version, above, covers, order, pointwise_max


@dataclass(frozen=True, slots=True)
class TupleState:
    """siblings: the writes that no known write has overwritten; more than one means a conflict.

    beyond: origin -> timestamp, what these writes have overwritten that this node has not received
    yet. Nearly always empty: what the node has received is in its vector, once for all tuples.
    """

    siblings: Mapping[Version, Sibling] = field(default_factory=dict)
    beyond: Vector = field(default_factory=dict)

    @property
    def is_settled(self) -> bool:
        """One live sibling: nothing for collection to do."""
        return (
            len(self.siblings) == 1
            and not self.beyond
            and next(iter(self.siblings.values())).operation is Operation.INSERT
        )


class Winner(StrEnum):
    """Whose version stays visible after a conflict: what was stored here, or what arrived."""

    LOCAL = "local"
    REMOTE = "remote"


def write(
    state: TupleState, version: Version, sibling: Sibling, vector: Vector
) -> tuple[TupleState, Vector]:
    """A local write; `vector` is the node's before it. Returns the state and the tuple's context.

    Everything this node has received, and everything the tuple's writes had overwritten, is
    overwritten: the change's context is the vector joined with the second value.
    """
    beyond = above(state.beyond, vector)
    return TupleState({version: sibling}, beyond), beyond


def absorb(  # noqa: PLR0917 — the six things that decide
    state: TupleState,
    version: Version,
    sibling: Sibling,
    context: Vector,
    vector: Vector,
    rules: Rules,
) -> tuple[TupleState, list[tuple[Version, Winner]]]:
    """One change of another origin that this node has not received before.

    `context` is what the change had overwritten, `vector` the node's before the transaction.
    Returns the state, and the conflicts: each with the stored version it stands beside.
    """
    remaining = {v: s for v, s in state.siblings.items() if not covers(context, v)}
    siblings, beside = dict(remaining), []
    if not covers(state.beyond, version):
        beside = [v for v, stored in remaining.items() if stored != sibling]
        siblings[version] = sibling
    best = rules.winner(siblings)
    if rules.strategy is ConflictResolutionStrategy.LAST_WRITE_WINS:
        # Losers may go at once: the order of versions extends causality.
        siblings = {best: siblings[best]}
    reached = pointwise_max(vector, {version[1]: version[0]})
    beyond = above(pointwise_max(state.beyond, context), reached)
    whose = Winner.REMOTE if best == version else Winner.LOCAL
    return TupleState(siblings, beyond), [(v, whose) for v in sorted(beside, key=order)]
