"""Clients that wait until other regions have their write, and who has what.

Owns the waiting. Who has what is told by those that hear it: `ship` of every acknowledgement,
`peers` of hellos and heartbeats, and of the rows of third nodes in them, which is how a node hears
of those it has no session with. Nobody is asked, and nothing is looked at again and again.
"""

import asyncio
from bisect import bisect_left, insort
from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from sidecar.core.concern import Reached, WriteConcern
from sidecar.core.vector import Vector, Version
from sidecar.errors import Refused, Unavailable

MAX_WAITING = 10_000
"""So many clients wait at once; further writes with a concern get 503, and nothing is written."""

END_GRACE_S = 1.0
"""What is left to those that still wait when this node ends."""

Place = tuple[int, int]
"""Where a client waits: the timestamp of its write, and a number that makes it unique."""


class Replica(Protocol):
    """What this needs of a store."""

    @property
    def node(self) -> str: ...
    @property
    def vector(self) -> Vector: ...


class Concerns:
    """The write concerns of the clients of one node.

    regions: node -> region of every node of the topology. reachable: the regions in which a write
    of this node arrives at all; None: all of them.
    """

    def __init__(
        self,
        store: Replica,
        regions: Mapping[str, str],
        reachable: Collection[str] | None = None,
    ) -> None:
        self._store, self._region_of = store, regions
        self.regions: Sequence[str] = list(dict.fromkeys(regions.values()))
        self._out_of_reach = [
            r for r in self.regions if reachable is not None and r not in reachable
        ]
        # The newest of each kind: what comes over one link is in order, over two it need not be.
        self._said: dict[tuple[str, str], Vector] = {}
        self._origins: dict[str, _Waiting] = {}
        self._number = 0
        self._is_ending = False
        self._limits: set[asyncio.Timeout] = set()

    def heard(self, node: str, vector: Vector, by: str = "") -> None:
        """A node has this much. by: the node that tells so; "": it has acknowledged it here."""
        region = self._region_of.get(node)
        if region is None:
            return
        self._said[by, node] = vector
        for origin, waiting in self._origins.items():
            waiting.note(region, vector.get(origin, 0))

    def check(self, concern: WriteConcern) -> None:
        """Before a write. Raises Refused when it can never be met, Unavailable if too many wait."""
        count = concern.regions_of(len(self.regions))
        if count == 1:
            return
        if count > len(self.regions) - len(self._out_of_reach):
            raise Refused(
                "write_concern_impossible",
                f"X-Write-Concern: {concern} can never be met: replication.replication_targets "
                f"leads from here to no node of {', '.join(self._out_of_reach)}; nothing was "
                "written",
            )
        if len(self._limits) >= MAX_WAITING:
            raise Unavailable(
                "overloaded",
                f"{MAX_WAITING} writes wait for other regions already; nothing was written",
            )

    async def wait(self, version: Version, concern: WriteConcern, timeout_s: float) -> list[str]:
        """Wait until enough regions have this write, for so long at most.

        Returns the regions that have not acknowledged it; none when the concern is met.
        """
        count = concern.regions_of(len(self.regions))
        if count == 1:
            return []
        timestamp, origin = version
        waiting = self._waiting_for(origin)
        self._number += 1
        place = (timestamp, self._number)
        is_met = waiting.wait(place, count)
        limit = asyncio.timeout(min(timeout_s, END_GRACE_S) if self._is_ending else timeout_s)
        self._limits.add(limit)
        try:
            async with limit:
                await is_met
        except TimeoutError:
            return waiting.reached.missing(timestamp)
        finally:
            self._limits.discard(limit)
            waiting.leave(place, count)
            if not waiting.places:
                self._origins.pop(origin, None)
        return []

    def end(self) -> None:
        """This node ends: nobody waits for long any more."""
        self._is_ending = True
        soon = asyncio.get_running_loop().time() + END_GRACE_S
        for limit in self._limits:
            if not limit.expired():
                limit.reschedule(min(soon, limit.when() or soon))

    def _waiting_for(self, origin: str) -> "_Waiting":
        waiting = self._origins.get(origin)
        if waiting is None:
            waiting = self._origins[origin] = _Waiting(self.regions)
            for (_, node), vector in self._said.items():
                waiting.note(self._region_of[node], vector.get(origin, 0))
        # This node has a write once it is committed.
        waiting.note(self._region_of[self._store.node], self._store.vector.get(origin, 0))
        return waiting


class _Waiting:
    """Those that wait for writes of one origin, by the number of regions and by timestamp."""

    def __init__(self, regions: Collection[str]) -> None:
        self.reached = Reached(regions)
        self.places: dict[Place, asyncio.Future[None]] = {}
        self._queues: dict[int, list[Place]] = {}

    def note(self, region: str, timestamp: int) -> None:
        if not self.reached.note(region, timestamp):
            return
        for count, queue in self._queues.items():
            is_met = bisect_left(queue, (self.reached.in_regions(count) + 1, 0))
            for place in queue[:is_met]:
                self._meet(place)
            del queue[:is_met]

    def wait(self, place: Place, count: int) -> asyncio.Future[None]:
        """Done when so many regions have what this place stands for; `leave` must follow."""
        self.places[place] = is_met = asyncio.get_running_loop().create_future()
        if place[0] <= self.reached.in_regions(count):
            self._meet(place)
        else:
            insort(self._queues.setdefault(count, []), place)
        return is_met

    def leave(self, place: Place, count: int) -> None:
        """Nobody waits there any more."""
        del self.places[place]
        queue = self._queues.get(count, [])
        at = bisect_left(queue, place)
        if at < len(queue) and queue[at] == place:
            del queue[at]

    def _meet(self, place: Place) -> None:
        is_met = self.places[place]
        if not is_met.done():
            is_met.set_result(None)
