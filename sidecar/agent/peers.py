"""What this node knows of the others, and what follows from it for its own incarnation.

Owns the rows of vectors, what each node has said of itself, and the decisions that need several of
them: whether this node has lost something, when it has caught up, what may be collected. Every
hello and heartbeat of a session ends up here. No timers and no tasks: `tick` is called each second.
"""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from sidecar.agent.primacy import Primacy
from sidecar.core.clock import is_incarnation
from sidecar.core.collection import Rows, Stability
from sidecar.core.membership import (
    Removed,
    is_ahead_of_most,
    is_removed,
    newest_removed,
    usually_ahead,
)
from sidecar.core.sender import Here
from sidecar.core.vector import Vector, above, is_covered, newest_origins, node_of, pointwise_max
from sidecar.core.wire import decode_vector, encode_vector
from sidecar.errors import Refused, Unavailable
from sidecar.store.calls import Absorbed, LetGo, Merged, Orphan, Phase, States, Way

log = logging.getLogger(__name__)

PROOF_US = 1_000_000
"""So long a restarted node waits for its peers to say that nothing is missing."""
PRESENT_US = 3_500_000
"""Who has said something within this time counts as there."""
MAX_WALL_DIGITS = 16
ORIGIN = re.compile(r"[a-z0-9][a-z0-9-]{0,31}\.[a-z0-9]{1,32}", re.ASCII)


class Replica(Protocol):
    """What the replication needs of a store; the real one and that of the simulator have it."""

    @property
    def is_open(self) -> bool: ...
    @property
    def origin(self) -> str: ...
    @property
    def phase(self) -> Phase: ...
    @property
    def vector(self) -> Vector: ...
    @property
    def durable(self) -> Vector: ...
    @property
    def floor(self) -> Vector: ...
    @property
    def revision(self) -> int: ...
    @property
    def behind(self) -> Vector: ...
    @property
    def progress(self) -> str: ...

    async def merge(self, batch: bytes, nodes: Collection[str] = ()) -> Merged: ...
    async def states(self, first: int, buckets: int, tuples: int) -> States: ...
    async def absorb(
        self, page: bytes, way: Way, progress: str = "", nodes: Collection[str] = ()
    ) -> Absorbed: ...
    @property
    def joined(self) -> frozenset[str] | None: ...
    async def end_change(self) -> None: ...
    async def finish(
        self, start: Vector, progress: str, *, joined: frozenset[str] | None = None
    ) -> bool: ...
    async def rows(self, nodes: Sequence[str]) -> dict[str, Vector]: ...
    async def store_rows(self, rows: Mapping[str, Vector]) -> None: ...
    async def collect(
        self, stable: Vector, ended: Mapping[str, int], after: int = 0
    ) -> int | None: ...
    async def let_go(self, ended: Mapping[str, int], is_whole: bool = False) -> LetGo: ...
    async def write_again(self, orphan: Orphan) -> bool: ...
    async def taken(self) -> Vector: ...
    async def wait_durable(self, vector: Vector) -> None: ...
    async def prove(self) -> None: ...
    async def begin(self, behind: Vector | None = None, known: Collection[str] = ()) -> None: ...
    async def end_phase(self) -> None: ...
    async def end_exposure(self) -> None: ...
    @property
    def born(self) -> str: ...
    async def members(self, members: Sequence[str], removed: Removed) -> dict[str, str]: ...


@dataclass(slots=True)
class Told:
    """What a node said of itself, and when it was heard.

    members: the nodes of its topology. ahead_us: how far the wall clock here was ahead of its own.
    """

    origin: str
    phase: Phase
    is_new: bool
    vector: Vector
    heard_us: int
    members: tuple[str, ...]
    ahead_us: int | None


class Peers:
    """The other nodes of the topology, as they tell of themselves."""

    def __init__(
        self,
        store: Replica,
        me: str,
        members: Collection[str],
        now_us: Callable[[], int],
        neighbours: Collection[str] | None = None,
        *,
        wall_us: Callable[[], int] | None = None,
        max_ahead_us: int = 60_000_000,
        primacy: Primacy | None = None,
        heard: Callable[[str, Vector, str], None] = lambda node, vector, by: None,
    ) -> None:
        """members: the nodes of the topology. now_us: a clock that only goes on, in microseconds.

        neighbours: the nodes that a session leads to or comes from; None: all of them. wall_us: the
        wall clock, which must not be further ahead of those of most others than max_ahead_us.
        heard: called with a node, a vector that it has, and who tells so.
        """
        self._store, self._me, self._now_us = store, me, now_us
        self.rows = Rows(me, members)
        self.told: dict[str, Told] = {}
        self._is_prepared, self._asks_until_us = False, 0
        # Whether this node was new no more in a topology before the present one.
        self._is_whole = False
        self._proofs: set[str] = set()
        self._deciding = asyncio.Lock()
        self._phase_since_us: tuple[str, Phase, int] = ("", Phase.UNPROVEN, 0)
        self._collected: tuple[Vector, Mapping[str, int]] | None = None
        self._walk = 0
        self._meet(neighbours)
        self._named: dict[str, str] = {}
        self._taken: Vector = {}
        # What others remember of this node, and nobody had any more when it had caught up.
        self._claimed: Vector = {}
        self._void: Vector = {}
        # What each node had of the present incarnation when it was last heard.
        self._more_of_me: dict[str, Vector] = {}
        self._announced: dict[str, int] = {}
        self._wall_us, self._max_ahead_us = wall_us, max_ahead_us
        self._primacy = primacy
        self._heard = heard
        self._preparing = asyncio.Lock()
        self._ticking = asyncio.Lock()
        self._members_of = ""
        self._removed_by: set[str] = set()
        self._told_removed: Removed = {}
        self.removed: Removed = {}
        # Whether this node differs from most of those it was compared with (`agent/scrub.py`).
        self.is_in_doubt = False

    def _meet(self, neighbours: Collection[str] | None) -> None:
        self._others = [n for n in self.rows.members if n != self._me]
        self._neighbours = set(self._others if neighbours is None else neighbours)

    async def adapt(self, members: Collection[str], neighbours: Collection[str] | None) -> None:
        """The topology is another one; no session stands meanwhile. Arguments: as at the start.

        What nodes that stay have said stays: until they say otherwise they have the old topology,
        and nothing is collected. The next `prepare` keeps in the store who belongs and who went,
        before anybody is told.
        """
        async with self._ticking, self._preparing:
            # Those it had everything of may go: what is left of that it has, and others join it.
            self._is_whole = self._is_whole or (bool(self._others) and not self._never_met)
            self.rows.adapt(members)
            self._meet(neighbours)
            gone = self.told.keys() - set(self.rows.members)
            for said in (self.told, self._named, self._more_of_me):
                for node in gone & said.keys():
                    del said[node]
            self._proofs.intersection_update(self._others)
            self._removed_by.intersection_update(self._others)
            self._members_of = ""

    async def prepare(self) -> None:
        """Take up what the store knows of others, before anybody is told of them or greeted.

        What others have said of removed nodes since is kept there.
        """
        store = self._store
        if self._primacy is not None:
            await self._primacy.prepare()
        async with self._preparing:
            if not self._is_prepared:
                self.rows.restore(await store.rows(self._others))
                self._is_prepared = True
                self._asks_until_us = self._now_us() + PRESENT_US
            self._taken = await store.taken()
            removed = newest_removed(self.removed, self._told_removed)
            origin = store.origin
            if self._members_of != origin or removed != self.removed:
                # With an incarnation the store may have lost this, too.
                self.removed = await store.members(self.rows.members, removed)
                self._members_of = origin

    @property
    def known(self) -> frozenset[str]:
        """The nodes whose writes there may be: of the topology, and those removed from it.

        Which of them bring a write does not matter: what its own node cannot bring any more, every
        node serves that has it, whatever the graph of replication is now.
        """
        return frozenset({*self.rows.members, *self.removed, *self._told_removed})

    # -- what this node tells ---------------------------------------------------------------------

    @property
    def here(self) -> Here:
        """What this node has, for a session."""
        one = self._store
        return Here(one.vector, one.durable, one.floor, one.revision, self.is_in_doubt, one.joined)

    @property
    def is_new(self) -> bool:
        """Whether this node has never had all that some other node had."""
        return bool(self._others) and not self._is_whole and self._never_met

    @property
    def _never_met(self) -> bool:
        return not any(node in self.rows.known for node in self._others)

    @property
    def joins(self) -> str:
        """Why this node shows less than the others do, in words; "" where it does not.

        It is so for one that is new, until it has had all that some other one had.
        """
        if not self._is_prepared:
            return "this node has not read yet what it knows of the others"
        if not self.is_new:
            return ""
        if not self.told and self._now_us() < self._asks_until_us:
            return "this node is new and has not heard of the others yet"
        source = next((node for node, told in self.told.items() if not told.is_new), None)
        return "" if source is None else f"this node is new and does not have yet what {source} has"

    def facts(self, to: str | None = None) -> dict[str, object]:
        """What hellos and heartbeats tell; to: a greeted node is told what it once had."""
        store = self._store
        facts: dict[str, object] = {
            "clock": str(store.revision),
            "phase": store.phase.value,
            "new": self.is_new,
            "members": list(self.rows.members),
            "vector": encode_vector(store.vector),
            "durable": encode_vector(store.durable),
            "rows": {node: encode_vector(row) for node, row in self.rows.told().items()},
            "born": store.born,
            "removed": dict(self.removed),
        }
        if store.joined is not None:
            facts["joined"] = sorted(store.joined)
        if self._wall_us is not None:
            facts["wall"] = str(self._wall_us())
        if self._primacy is not None:
            facts |= self._primacy.facts()
        if to is not None:
            # Also an incarnation that was only named: it may have been lost before it was safe.
            named = {self._named[to]: 0} if to in self._named else {}
            claims = pointwise_max(self.rows.claims_of(to), self._taken_of(to))
            facts["claims"] = encode_vector({**named, **claims})
        return facts

    def _taken_of(self, node: str) -> Vector:
        """What pages say that the newest incarnation of a node has written.

        Its vector may not have come yet: places that are taken all the same.
        """
        known = [*self._store.vector, *self._taken, *self.rows.claims_of(node)]
        newest = max(newest_origins(known).get(node, ""), self._named.get(node, ""))
        return {o: t for o, t in self._taken.items() if o == newest}

    # -- what others tell -------------------------------------------------------------------------

    async def greeted(self, node: str, head: Mapping[str, object]) -> None:
        """A hello, or the answer to ours: it also tells what this node once had.

        What an older incarnation says than one that has been heard of is not taken: it learns from
        the answer that there is a newer one, and begins a further one. Raises
        Unavailable("topology_changed") where it is no member, or not any more.
        """
        await self.prepare()
        origin = str(head.get("origin"))
        if node_of(origin) != node:
            raise Refused("bad_frame", f"{node} does not write as {origin!r}")
        self.refuse_removed(node, head)
        # Before anything that lets this node write.
        await self._hear_epoch(head)
        claims = decode_vector(head.get("claims", {}))
        self._check_names({*claims, *decode_vector(head.get("vector"))})
        if self.is_outdated(node, origin):
            return
        self._named[node] = origin
        told = self._hear(node, head)
        # One decision after the other: each changes what the next one is about.
        async with self._deciding:
            await self._face(node, told, claims)

    def _check_names(self, origins: Collection[str]) -> None:
        """A new incarnation is greater than all of this node: that must be possible."""
        for origin in origins:
            if node_of(origin) == self._me and not is_incarnation(origin.partition(".")[2]):
                raise Refused("bad_frame", f"{origin[:80]!r} is no incarnation of {self._me}")

    def refuse_removed(self, node: str, head: Mapping[str, object]) -> None:
        """Raise Refused when this node says hello with data from before it was removed."""
        born = str(head.get("born", head.get("origin")))
        if is_removed(node, born, self.removed):
            raise Refused(
                "node_removed",
                f"{node} was removed from the topology, and others have forgotten since what its "
                f"data would bring back; stop it, run `sidecar reset` for {node}, start it again "
                "as a member: it then gets everything from the others",
            )

    def is_outdated(self, node: str, origin: str) -> bool:
        """Whether a newer incarnation of that node has been heard of."""
        newest = newest_origins(self._store.vector).get(node, "")
        return origin < max(self._named.get(node, ""), newest)

    async def heard(self, node: str, head: Mapping[str, object]) -> None:
        """A heartbeat."""
        if node not in self.told:
            return
        await self._hear_epoch(head)
        told = self._hear(node, {**head, "origin": self.told[node].origin})
        if told.phase in (Phase.SERVING, Phase.EXPOSED):
            # It has been told what it once had: it has it, or goes on without.
            self.rows.acknowledged_loss(node, _durable(head))
        async with self._deciding:
            await self._notice_loss(node, told)

    async def _hear_epoch(self, head: Mapping[str, object]) -> None:
        if self._primacy is not None:
            await self._primacy.hear(head.get("epoch"))

    def _hear(self, node: str, head: Mapping[str, object]) -> Told:
        if node not in self.rows.members:
            raise Unavailable("topology_changed", f"{node} is not in the topology of {self._me}")
        vector = decode_vector(head.get("vector"))
        self.rows.hear(node, _durable(head))
        self._heard(node, vector, node)
        rows = head.get("rows", {})
        if not isinstance(rows, dict):
            raise Refused("bad_frame", "rows is an object of node and vector")
        for other, row in rows.items():
            reached = decode_vector(row)
            self.rows.hear(str(other), reached)
            self._heard(str(other), reached, node)
        try:
            phase = Phase(str(head.get("phase", Phase.SERVING.value)))
        except ValueError:
            raise Refused("bad_frame", "a phase is a word of this protocol") from None
        told = Told(
            str(head["origin"]),
            phase,
            bool(head.get("new")),
            vector,
            self._now_us(),
            members_of(head.get("members", list(self.rows.members))),
            self._ahead_of(head.get("wall")),
        )
        self._told_removed = newest_removed(self._told_removed, removed_of(head.get("removed", {})))
        self.told[node] = told
        return told

    async def _face(self, node: str, told: Told, claims: Vector) -> None:
        """Compare what this node has with what a peer says that it had."""
        store = self._store
        lacks = above(self._without_lost(claims), pointwise_max(store.vector, self._void))
        known = {*told.vector, *claims}
        is_outdated = newest_origins(known).get(self._me, "") > store.origin
        is_reused = told.vector.get(store.origin, 0) > store.vector.get(store.origin, 0)
        if lacks and store.phase is Phase.BEHIND and not is_outdated:
            # It knows already, and must come up with every node anyway.
            self._claimed = pointwise_max(self._claimed, claims)
            return
        if lacks:
            await self._fall_behind(node, claims, lacks, known)
        elif is_reused or is_outdated:
            # What it wrote before is lost here: the places must not be used again.
            await self.begin(store.behind, known)
        else:
            self._proofs.add(node)
            is_mine_there = any(
                timestamp > store.vector.get(origin, 0)
                for origin, timestamp in told.vector.items()
                if node_of(origin) == self._me
            )
            if is_mine_there:
                self._proofs.discard(node)
            if store.phase is Phase.UNPROVEN and self._proofs >= self._neighbours:
                await store.prove()
            if store.phase is Phase.EXPOSED:
                await store.end_phase()
            elif store.phase is Phase.UNPROVEN:
                # From now on it merges, and that cannot be undone.
                await store.end_exposure()

    async def _fall_behind(
        self, node: str, claims: Vector, lacks: Vector, known: Collection[str]
    ) -> None:
        once = pointwise_max(pointwise_max(claims, self._store.vector), self._store.behind)
        self._claimed = pointwise_max(self._claimed, once)
        await self.begin(once, known)
        log.error(
            "this node has lost what it once had; it serves nothing until it has caught up",
            extra={"peer": node, "lacks": ", ".join(f"{o}@{t}" for o, t in lacks.items())},
        )

    async def _notice_loss(self, node: str, told: Told) -> None:
        """A peer that was greeted before it knew comes to have more of this node than is here.

        It counts when it had it a heartbeat ago: the answer to a write may come after its way
        around.
        """
        store = self._store
        more = above(self._more_of_me.get(node, {}), store.vector)
        self._more_of_me[node] = {o: t for o, t in told.vector.items() if o == store.origin}
        if store.origin in more and store.phase is not Phase.BEHIND:
            await self._fall_behind(node, more, more, told.vector)

    def _ahead_of(self, wall: object) -> int | None:
        if self._wall_us is None or not isinstance(wall, str):
            return None
        if not wall.isascii() or not wall.isdigit() or len(wall) > MAX_WALL_DIGITS:
            raise Refused("bad_frame", "a wall clock is a text of digits")
        return self._wall_us() - int(wall)

    async def begin(self, behind: Vector | None, known: Collection[str] = ()) -> None:
        """Begin a new incarnation, greater than those known; every session then begins anew."""
        await self._store.begin(behind, known)
        self._proofs.clear()

    # -- what applications are told ---------------------------------------------------------------

    def is_removed_by(self, node: str, says_so: bool) -> None:
        """A target says, or says no longer, that this node was removed from the topology."""
        (self._removed_by.add if says_so else self._removed_by.discard)(node)

    @property
    def refusal(self) -> Unavailable | None:
        """Why nothing is served here: the others go on without this node."""
        is_told = is_removed(self._me, self._store.born, self.removed)
        if not is_told and not self._removed_by:
            return None
        return Unavailable(
            "node_removed",
            f"{self._me} was removed from the topology and its data is outdated; stop it and run "
            "`sidecar reset` if it is to come back",
            retry_after_s=60,
        )

    @property
    def write_refusal(self) -> Unavailable | None:
        """Why no writes are taken here: they would wait at the others, parked."""
        ahead_us = self._ahead_us()
        if not is_ahead_of_most(ahead_us, self._max_ahead_us):
            return None
        return Unavailable(
            "clock_ahead",
            f"the clock of {self._me} is ahead of those of most other nodes by "
            f"{self.clock_ahead_us / 1e6:.0f} s, more than max_clock_skew_ms; set "
            "it right (NTP)",
            retry_after_s=5,
        )

    @property
    def clock_ahead_us(self) -> int:
        """By how much the clock here is ahead of those of the nodes that are heard."""
        return usually_ahead(self._ahead_us())

    def _ahead_us(self) -> list[int]:
        return [t.ahead_us for t in self.present().values() if t.ahead_us is not None]

    def lost_of(self, vector: Vector) -> str | None:
        """An origin of which `vector` names writes that no node has any more."""
        for origin, timestamp in vector.items():
            end = self.rows.end_of(origin, self._store.vector)
            if end is not None and timestamp > end:
                return origin
        return None

    def stranger_among(self, nodes: Collection[str]) -> str | None:
        """One of these that belongs to no topology of which anybody here has ever heard.

        Of a node that was removed the vectors still name what it wrote. A node that is new, or has
        not read yet what it knows, cannot tell.
        """
        members = self.rows.members
        if all(node in members for node in nodes) or not self._is_prepared or self.is_new:
            return None
        heard = [told.vector for told in self.told.values()]
        known = {node_of(o) for vector in (self._store.vector, *heard) for o in vector}
        known.update(members, self.removed, self._told_removed)
        known.update(*(told.members for told in self.told.values()))
        return next((node for node in nodes if node not in known), None)

    async def accept_loss(self) -> None:
        """Go on with what is here. Raises Refused("not_behind") when nothing is missing."""
        async with self._deciding:
            store = self._store
            if store.phase is not Phase.BEHIND:
                raise Refused(
                    "not_behind",
                    f"{self._me} is {store.phase.value}, not behind: there is no loss to accept",
                    409,
                )
            lacks = above(store.behind, store.vector)
            log.warning(
                "the operator accepts the loss: this node goes on without what it lacks",
                extra={"lacks": ", ".join(f"{o}@{t}" for o, t in lacks.items())},
            )
            await store.end_phase()

    # -- as time passes ---------------------------------------------------------------------------

    async def tick(self) -> None:
        """Once a second: settle the own phase, believe and store rows."""
        async with self._ticking:
            await self._tick()

    async def _tick(self) -> None:
        store = self._store
        if not store.is_open:
            return
        now_us = self._now_us()
        await self.prepare()
        origin, phase, since_us = self._phase_since_us
        if (origin, phase) != (store.origin, store.phase):
            since_us = now_us
            self._phase_since_us = (store.origin, store.phase, now_us)
        async with self._deciding:
            if store.phase is Phase.UNPROVEN and now_us - since_us >= PROOF_US:
                # What it was told before the restart it still lacks.
                await self.begin(store.behind or None)
            elif store.phase is Phase.BEHIND and self._has_caught_up(since_us):
                # Whoever has not heard of it yet claims the same again.
                self._void = pointwise_max(self._void, self._claimed)
                self._claimed = {}
                await store.end_phase()
        self._void = above(self._void, store.vector)
        if store.joined is not None and store.joined >= set(self.rows.members):
            await store.end_change()
        if self._disagreeing() is None:
            self.rows.without({node for node in self.removed if node not in self.rows.members})
        changed = self.rows.believe(store.vector, store.durable)
        if rows := {node: self.rows.known[node] for node in changed if node != self._me}:
            await store.store_rows(rows)
        self._announce_ends()

    def silent_s(self, node: str) -> float:
        """So long nothing was heard of a node that was heard of."""
        return (self._now_us() - self.told[node].heard_us) / 1e6

    def present(self, since_us: int = 0) -> dict[str, Told]:
        """Who has been heard of lately."""
        after_us = max(self._now_us() - PRESENT_US, since_us)
        return {n: told for n, told in self.told.items() if told.heard_us > after_us}

    @property
    def is_level(self) -> bool:
        """Whether every neighbour is there, and this node has all that is told to be anywhere."""
        there = self.present()
        return there.keys() >= self._neighbours and all(
            is_covered(told.vector, self._store.vector) for told in there.values()
        )

    def _has_caught_up(self, since_us: int) -> bool:
        """Caught up with all that are there, at least one of them caught up itself and not new.

        If all are catching up, they go on together once every neighbour is there.
        """
        there = self.present(since_us)
        if not all(is_covered(told.vector, self._store.vector) for told in there.values()):
            return False
        is_sound = any(
            told.phase in (Phase.SERVING, Phase.EXPOSED) and not told.is_new
            for told in there.values()
        )
        return is_sound or there.keys() >= self._neighbours

    def _without_lost(self, vector: Vector) -> Vector:
        return {o: min(t, self.rows.ended.get(o, t)) for o, t in vector.items()}

    def _announce_ends(self) -> None:
        for origin, end in self.rows.ended.items():
            if node_of(origin) == self._me and self._announced.get(origin) != end:
                self._announced[origin] = end
                log.warning(
                    "incarnation ended, what it wrote later is lost",
                    extra={"origin": origin, "after": end},
                )

    # -- collection -------------------------------------------------------------------------------

    @property
    def stability(self) -> Stability:
        """What every node has, and who holds it back.

        Nothing while the rules change: what others have settled by the old ones is not known here,
        and to settle it by the new ones could leave no winner at all.
        """
        if (joined := self._store.joined) is not None:
            waits_for = (node for node in self.rows.members if node not in joined)
            return Stability(None, next(waits_for, None))
        if (other := self._disagreeing()) is not None:
            return Stability(None, other)
        return self.rows.stable(self._store.vector)

    def _disagreeing(self) -> str | None:
        """A node that is there and whose topology has other nodes."""
        there = self.present().items()
        return next((n for n, told in there if told.members != self.rows.members), None)

    async def collect(self, pause: Callable[[], Awaitable[None]]) -> None:
        """Walk the unsettled tuples once for each new state of what is stable.

        pause: called between two calls to the store.
        """
        stable = self.stability.vector
        if stable is None or self._collected == (stable, self.rows.ended):
            return
        ended = dict(self.rows.ended)
        after = 0
        while (following := await self._store.collect(stable, ended, after)) is not None:
            if following < 0:
                return
            after = following
            await pause()
        self._collected = (stable, ended)


def _durable(head: Mapping[str, object]) -> Vector:
    return decode_vector(head.get("durable", head.get("vector")))


def members_of(value: object) -> tuple[str, ...]:
    """A list of node ids, sorted. Raises Refused("bad_frame")."""
    if not isinstance(value, list) or not all(isinstance(node, str) for node in value):
        raise Refused("bad_frame", "members is a list of node ids")
    return tuple(sorted(value))


def removed_of(value: object) -> dict[str, str]:
    """node -> incarnation. Raises Refused("bad_frame")."""
    if not isinstance(value, dict) or not all(
        isinstance(origin, str) and ORIGIN.fullmatch(origin) and node_of(origin) == node
        for node, origin in value.items()
    ):
        raise Refused("bad_frame", "removed is an object of node and incarnation")
    return dict(value)
