"""Clients that wait until other regions have their write, and who has what.

Owns the waiting. Who has what is told by those that hear it: `ship` of every acknowledgement,
`peers` of hellos and heartbeats, and of the rows of third nodes in them, which is how a node hears
of those it has no session with. Nobody is asked, and nothing is looked at again and again.
"""

import asyncio
from bisect import bisect_left, insort
from collections.abc import Collection, Mapping
from typing import Protocol

from sidecar.core.concern import Reached, WriteConcern
from sidecar.core.vector import Vector, Version
from sidecar.errors import Refused, Unavailable

MAX_WAITING = 10_000
"""So many clients wait at once; further writes with a concern get 503, and nothing is written."""

END_GRACE_S = 1.0
"""What is left to those that still wait when this node ends."""

Regions = tuple[str, ...]
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
        self._store = store
        # The newest of each kind: what comes over one link is in order, over two it need not be.
        self._said: dict[tuple[str, str], Vector] = {}
        # By origin, and by the regions that count: those of the topology when a write came.
        self._waiting: dict[tuple[str, Regions], _Waiting] = {}
        self._number = 0
        self._is_ending = False
        self._limits: set[asyncio.Timeout] = set()
        self._set(regions, reachable)

    def _set(self, regions: Mapping[str, str], reachable: Collection[str] | None) -> None:
        self._region_of = regions
        self.regions: Regions = tuple(dict.fromkeys(regions.values()))
        self._out_of_reach = [
            r for r in self.regions if reachable is not None and r not in reachable
        ]

    def adapt(self, regions: Mapping[str, str], reachable: Collection[str] | None = None) -> None:
        """The topology is another one. Arguments: as at the start.

        Who waits goes on: regions that went can acknowledge nothing any more and do not count,
        those that came did not count when it was written.
        """
        self._set(regions, reachable)
        present = {"", *regions}
        self._said = {
            (by, node): vector
            for (by, node), vector in self._said.items()
            if node in regions and by in present
        }
        moving, self._waiting = self._waiting, {}
        for waiting in moving.values():
            waiting.end()

    def heard(self, node: str, vector: Vector, by: str = "") -> None:
        """A node has this much. by: the node that tells so; "": it has acknowledged it here."""
        region = self._region_of.get(node)
        if region is None:
            return
        self._said[by, node] = vector
        for (origin, _), waiting in self._waiting.items():
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
        regions = self.regions
        if concern.regions_of(len(regions)) == 1:
            return []
        timestamp, origin = version
        limit = asyncio.timeout(min(timeout_s, END_GRACE_S) if self._is_ending else timeout_s)
        self._limits.add(limit)
        waiting = self._waiting_for(origin, regions)
        try:
            async with limit:
                while not await self._is_met(waiting, timestamp, concern):
                    regions = tuple(region for region in regions if region in self.regions)
                    waiting = self._waiting_for(origin, regions)
        except TimeoutError:
            return waiting.reached.missing(timestamp)
        finally:
            self._limits.discard(limit)
            key = (origin, regions)
            if not waiting.places and self._waiting.get(key) is waiting:
                del self._waiting[key]
        return []

    async def _is_met(self, waiting: "_Waiting", timestamp: int, concern: WriteConcern) -> bool:
        """Once it is so; False where the topology has changed meanwhile."""
        self._number += 1
        place, count = (timestamp, self._number), concern.regions_of(len(waiting.regions))
        is_met = waiting.wait(place, count)
        try:
            return await is_met
        finally:
            waiting.leave(place, count)

    def end(self) -> None:
        """This node ends: nobody waits for long any more."""
        self._is_ending = True
        soon = asyncio.get_running_loop().time() + END_GRACE_S
        for limit in self._limits:
            if not limit.expired():
                limit.reschedule(min(soon, limit.when() or soon))

    def _waiting_for(self, origin: str, regions: Regions) -> "_Waiting":
        waiting = self._waiting.get((origin, regions))
        if waiting is None:
            waiting = self._waiting[origin, regions] = _Waiting(regions)
            for (_, node), vector in self._said.items():
                waiting.note(self._region_of[node], vector.get(origin, 0))
        # This node has a write once it is committed.
        waiting.note(self._region_of[self._store.node], self._store.vector.get(origin, 0))
        return waiting


class _Waiting:
    """Those that wait for writes of one origin, by the number of regions and by timestamp."""

    def __init__(self, regions: Regions) -> None:
        self.regions, self.reached = regions, Reached(regions)
        self.places: dict[Place, asyncio.Future[bool]] = {}
        self._queues: dict[int, list[Place]] = {}

    def note(self, region: str, timestamp: int) -> None:
        if region not in self.regions or not self.reached.note(region, timestamp):
            return
        for count, queue in self._queues.items():
            is_met = bisect_left(queue, (self.reached.in_regions(count) + 1, 0))
            for place in queue[:is_met]:
                self._meet(place)
            del queue[:is_met]

    def wait(self, place: Place, count: int) -> asyncio.Future[bool]:
        """True when so many regions have what this place stands for; `leave` must follow."""
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

    def end(self) -> None:
        """Those that wait have to wait elsewhere."""
        for is_met in self.places.values():
            if not is_met.done():
                is_met.set_result(False)

    def _meet(self, place: Place) -> None:
        is_met = self.places[place]
        if not is_met.done():
            is_met.set_result(True)
