"""How late this node shows what others have written, as far as they tell.

Each hello and heartbeat of another node names the newest of its writes. What it named and this node
has since reached says up to when nothing is missing here; what it named and is missing says that
this node is late, by the time since then. A node that is not heard of tells nothing: it may have
written, or be gone for good, and only /health speaks of it.
"""

from collections import deque
from collections.abc import Callable, Mapping

from sidecar.agent.peers import PRESENT_US, Told
from sidecar.core.vector import Vector, newest_origins

ON_ITS_WAY_US = 250_000
"""What was named so shortly ago is not late yet: it travels beside what named it."""

MAX_NAMED = 128
"""Of each node; the oldest is given up for a new one, and the lateness seems smaller."""


class Lateness:
    """That of one partition. It looks only when it is asked, and remembers from then on.

    me: this node. now_us: a clock that only goes on. wall_us: the wall clock.
    """

    def __init__(self, me: str, now_us: Callable[[], int], wall_us: Callable[[], int]) -> None:
        self._me, self._now_us, self._wall_us = me, now_us, wall_us
        self._named: dict[str, deque[tuple[int, Vector]]] = {}
        self._whole_us: dict[str, int] = {}

    def ms(self, told: Mapping[str, Told], here: Vector) -> int:
        """In milliseconds; 0: everything that others have told of is here.

        told: the others, as they were last heard. here: what this node has applied.
        """
        return max((self._one(node, each, here) for node, each in told.items()), default=0)

    def _one(self, node: str, told: Told, here: Vector) -> int:
        now_us = self._now_us()
        if told.heard_us < now_us - PRESENT_US:
            return 0
        named = self._named.setdefault(node, deque(maxlen=MAX_NAMED))
        written = self._written(told.vector)
        if not named or named[-1][0] != told.heard_us:
            named.append((told.heard_us, written))
        # What was named before its incarnation died may never come.
        while named and not _missing(named[0][1], here, written):
            self._whole_us[node] = named.popleft()[0]
        if not named:
            # Kept, or what was heard last would be taken for new.
            named.append((told.heard_us, {}))
            return 0
        heard_us, wanted = named[0]
        if heard_us > now_us - ON_ITS_WAY_US:
            return 0
        if node in self._whole_us:
            return (now_us - self._whole_us[node]) // 1000
        # It was late already when it was looked at for the first time.
        reached = min(here.get(origin, 0) for origin in _missing(wanted, here, written))
        return max(0, self._wall_us() - reached) // 1000

    def _written(self, vector: Vector) -> Vector:
        """What others have written in incarnations that go on: of dead ones something may be lost
        for good.
        """
        newest = newest_origins(vector)
        return {o: vector[o] for node, o in newest.items() if node != self._me}


def _missing(named: Vector, here: Vector, written: Vector) -> list[str]:
    """The origins that go on of which this node has less than was named."""
    return [o for o, at in named.items() if here.get(o, 0) < at and o in written]
