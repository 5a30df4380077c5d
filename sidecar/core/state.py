"""What a node knows of one tuple, and what a write or an arriving change makes of it.

This is the specification; `lua/lib/state.lua` decides at run time, and tests hold the two and the
model together. The scheme is that of dotted version vectors (Preguiça et al., "Dotted Version
Vectors: Logical Clocks for Optimistic Replication", 2010), with one context per transaction.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from sidecar.core.conflict import Rules, Sibling
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
    if rules.drops_losers:
        siblings = {best: siblings[best]}
    reached = pointwise_max(vector, {version[1]: version[0]})
    beyond = above(pointwise_max(state.beyond, context), reached)
    whose = Winner.REMOTE if best == version else Winner.LOCAL
    return TupleState(siblings, beyond), [(v, whose) for v in sorted(beside, key=order)]


def join(
    mine: TupleState,
    theirs: TupleState,
    my_context: Vector,
    their_context: Vector,
    rules: Rules,
) -> tuple[TupleState | None, list[tuple[Version, Version, Winner]]]:
    """State transfer: what two states of one tuple make together, seen from the first.

    A context is what its side has seen of this tuple: the node's vector, what it has taken over
    with a page of the bucket, and the tuple's own `beyond`. A version that one side has seen and
    does not hold was overwritten there. Commutative in what remains, associative, idempotent.

    Returns the state, None for a tuple of which nothing is left, and the conflicts: the version
    stored here, the one that came, whose stays visible.
    """
    kept = {
        v: s
        for v, s in mine.siblings.items()
        if v in theirs.siblings or not covers(their_context, v)
    }
    siblings, beside = dict(kept), []
    for version in sorted(theirs.siblings, key=order):
        if version in siblings or covers(my_context, version):
            continue
        arrived = theirs.siblings[version]
        beside += [(v, version) for v in sorted(siblings, key=order) if siblings[v] != arrived]
        siblings[version] = arrived
    if not siblings:
        return None, []
    best = rules.winner(siblings)
    conflicts = [
        (stored, arrived, Winner.REMOTE if arrived == best else Winner.LOCAL)
        for stored, arrived in beside
    ]
    if rules.drops_losers:
        siblings = {best: siblings[best]}
    return TupleState(siblings, pointwise_max(mine.beyond, theirs.beyond)), conflicts


def collect(state: TupleState, stable: Vector, rules: Rules) -> TupleState | None:
    """What is left of a tuple once every node has everything in `stable`; None when it goes.

    `state.beyond` has what the node's vector has not reached. While anything is in there, or a
    sibling is not stable, the tuple stays as it is.
    """
    if state.beyond or not all(covers(stable, version) for version in state.siblings):
        return state
    best = rules.winner(state.siblings)
    if state.siblings[best].operation is Operation.DELETE:
        return None
    return TupleState({best: state.siblings[best]})
