"""Schedules of faults: drawn from a seed, printed, and the same for the same seed and length."""

import random
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import NamedTuple

PAUSE_S = (0.2, 2.0)
"""From the beginning of one fault to that of the next."""
LENGTH_S = (0.3, 5.0)
FIRST_S = 1.0


class Kind(StrEnum):
    """What goes wrong. `node` suffers it; `target`, where there is one, is the end of the link."""

    KILL = "kill -9"
    """The sidecar, and its Valkey with it; it stays away for the length."""
    KILL_VALKEY = "kill -9 of Valkey"
    """Valkey alone; the sidecar starts it again, so that there is no length."""
    RESTART = "SIGTERM"
    """An orderly end; it stays away until the length is over, and it has ended."""
    OLD_COPY = "older copy"
    """A copy of its data is taken; after the length it is killed and begins again with the copy."""
    CUT = "cut"
    """Node cannot ship to target; the other direction goes on."""
    ISOLATE = "isolate"
    """No link from or to the node."""
    SLOW = "slow"
    """150 ms from node to target and back, and little bandwidth."""
    FREEZE = "freeze"
    """The link stands and no byte moves."""


OF_LINKS = frozenset({Kind.CUT, Kind.SLOW, Kind.FREEZE})
ALWAYS = tuple(kind for kind in Kind if kind is not Kind.OLD_COPY)


class Fault(NamedTuple):
    """at_s: seconds after the start of the traffic; for_s: how long it lasts."""

    at_s: float
    kind: Kind
    node: str
    target: str | None
    for_s: float

    def __str__(self) -> str:
        where = f"{self.node} -> {self.target}" if self.target else self.node
        length = f" for {self.for_s:.1f} s" if self.for_s else ""
        return f"{self.at_s:6.1f} s  {self.kind} {where}{length}"


Place = tuple[str, str | None]
"""A node, or a link by its two ends."""


def draw(
    seed: int, seconds: float, nodes: Sequence[str], kinds: Sequence[Kind] = ALWAYS
) -> list[Fault]:
    """Faults for so many seconds; the last one ends with them. Where one is, no other begins."""
    dice = random.Random(seed)
    busy_until: dict[Place, float] = {}
    drawn: list[Fault] = []
    at_s = FIRST_S
    while at_s < seconds:
        kind = dice.choice(kinds)
        node, target = dice.sample(nodes, 2)
        length_s = 0.0 if kind is Kind.KILL_VALKEY else dice.uniform(*LENGTH_S)
        ends_s = min(at_s + length_s, seconds)
        fault = Fault(at_s, kind, node, target if kind in OF_LINKS else None, ends_s - at_s)
        places = list(_places(fault, nodes))
        if all(busy_until.get(place, 0.0) <= at_s for place in places):
            drawn.append(fault)
            busy_until.update(dict.fromkeys(places, ends_s))
        at_s += dice.uniform(*PAUSE_S)
    return drawn


def links_of(fault: Fault, nodes: Sequence[str]) -> Iterable[tuple[str, str]]:
    """The links that a fault is about."""
    if fault.target is not None:
        return [(fault.node, fault.target)]
    if fault.kind is Kind.ISOLATE:
        others = [node for node in nodes if node != fault.node]
        return [pair for other in others for pair in ((fault.node, other), (other, fault.node))]
    return []


def _places(fault: Fault, nodes: Sequence[str]) -> Iterable[Place]:
    return links_of(fault, nodes) or [(fault.node, None)]
