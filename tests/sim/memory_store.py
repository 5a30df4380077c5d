"""A data set in memory that decides with the specification, for the simulator.

It promises what the store on Redis promises, and passes the same contract suite
(`tests/store/test_contract.py`). What is not on disk yet can be lost: `sync` writes it, `crash`
goes back to what was written.
"""

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any

from sidecar.core import relationship
from sidecar.core.clock import RANDOM_BITS, incarnation, tick
from sidecar.core.conflict import Rules
from sidecar.core.membership import newest_removed
from sidecar.core.relationship import Change, Identity, Operation, Relationship, bucket_of
from sidecar.core.session import TRANSFER
from sidecar.core.state import TupleState, Winner, absorb, collect, join, write
from sidecar.core.vector import (
    Vector,
    Version,
    above,
    covers,
    is_covered,
    newest_origins,
    node_of,
    pointwise_max,
)
from sidecar.core.wire import change_of_row, encode_body, encode_vector
from sidecar.errors import Refused, Unavailable
from sidecar.store.calls import (
    Absorbed,
    AbsorbOutcome,
    Bucket,
    LetGo,
    Merged,
    MergeOutcome,
    Orphan,
    Phase,
    States,
    Way,
)
from sidecar.store.feed import FeedEntry
from tests.lua.replicas import decode_state, sibling_of
from tests.sim.texts import encode_state, identity_of, names_of

Undo = dict[Identity, TupleState | None]
Parts = Sequence[tuple[Change, frozenset[Version]]]
"""The changes of a write, each with the writes of its tuple that were known here."""


@dataclass(frozen=True)
class Aside:
    """A write of an exposed incarnation that is to be written again. rows: as in its JSON."""

    version: Version
    tenant: str
    rows: Sequence[Any]

    @property
    def identities(self) -> Iterator[Identity]:
        """The tuples that it wrote."""
        return (change_of_row(self.tenant, row).relationship.identity for row in self.rows)


@dataclass
class Disk:
    """Everything that a server keeps."""

    origin: str = ""
    clock: int = 0
    run_id: int = 0
    exposed: int | None = None
    behind: Vector = field(default_factory=dict)
    progress: str = ""
    vector: dict[str, int] = field(default_factory=dict)
    tuples: dict[Identity, TupleState] = field(default_factory=dict)
    beyond: dict[int, Vector] = field(default_factory=dict)
    floor: dict[str, int] = field(default_factory=dict)
    known: dict[str, Vector] = field(default_factory=dict)
    parked: dict[str, dict[str, str]] = field(default_factory=dict)
    undo: Undo = field(default_factory=dict)
    born: str = ""
    members: tuple[str, ...] = ()
    removed: Mapping[str, str] = field(default_factory=dict)
    rules: str = ""
    joined: frozenset[str] | None = None
    aside: list[Aside] = field(default_factory=list)
    feed: list[FeedEntry] = field(default_factory=list)
    seen: dict[Identity, frozenset[Version]] = field(default_factory=dict)
    """Not for the store: the writes whose effect is in here, for the simulator's oracle."""

    def copy(self) -> "Disk":
        """Values are never changed in place, so the containers are enough."""
        twin = copy(self)
        for name in ("vector", "tuples", "beyond", "floor", "known", "parked", "undo", "seen"):
            setattr(twin, name, dict(getattr(self, name)))
        twin.aside, twin.feed = list(self.aside), list(self.feed)
        return twin


class MemoryStore:
    """The data set of `node`. `start` opens it as a new process, `reopen` as the same one."""

    def __init__(
        self,
        node: str,
        rules: Rules,
        *,
        now_us: Callable[[], int],
        random_bits: Callable[[int], int],
        has_peers: bool = True,
        skew_us: int = 60_000_000,
    ) -> None:
        self.node, self.rules = node, rules
        self._now_us, self._random_bits, self._has_peers = now_us, random_bits, has_peers
        self._skew_us = skew_us
        self.disk = Disk()
        self.saved = Disk()
        self.server = 1
        self.conflicts = dict.fromkeys(Winner, 0)
        self.happened: Counter[str] = Counter()
        self.wrote: Callable[[Version, Parts, Version | None], None] = lambda *_: None
        self.begun: Callable[[str], None] = lambda _: None
        self._known = 0
        self._phase = Phase.UNPROVEN
        self.durable: Vector = {}
        self.is_open = False

    # -- the server -------------------------------------------------------------------------------

    def sync(self) -> None:
        """What is there now survives a crash."""
        self.saved = self.disk.copy()
        self.durable = dict(self.disk.vector)

    def crash(self, loses: bool) -> None:
        """The server ends; what was not synced goes, if the machine went with it."""
        if loses:
            self.disk = self.saved.copy()
        else:
            self.saved = self.disk.copy()
        self.server += 1
        self.is_open = False

    def restore(self, copied: Disk) -> None:
        """The server ends and comes back with an older copy of its files."""
        self.disk, self.saved = copied.copy(), copied.copy()
        self.server += 1
        self.is_open = False

    # -- opening ----------------------------------------------------------------------------------

    def start(self) -> None:
        """A new process opens it: it remembers nothing."""
        self._known = 0
        self._phase = Phase.UNPROVEN
        self.durable = {}
        self.reopen()

    def reopen(self) -> None:
        """The same process opens it, after the server was away."""
        disk = self.disk
        if disk.origin and disk.rules != self.rules.fingerprint:
            self._change_rules()
        if not disk.origin and not self._known:
            self._begin_at(self._now_us())
            disk.run_id = self.server
            if self._has_peers:
                disk.exposed = disk.clock
        elif disk.clock < self._known or not disk.origin:
            self._begin_after_loss()
        self._keep_durable(self.saved.vector)
        # Who has never heard that nothing is missing knows only what it found at its start.
        remembers = self._known > 0 and self._phase is not Phase.UNPROVEN
        is_proven = disk.run_id == self.server or remembers or not self._has_peers
        self._known = disk.clock
        if is_proven:
            disk.run_id = self.server
            self._take_phase()
        else:
            self._phase = Phase.UNPROVEN
        self.is_open = True
        if self._phase in (Phase.SERVING, Phase.EXPOSED):
            self._write_again()

    def _change_rules(self) -> None:
        """Winners are looked up here, none is stored; the rest is what the real one does."""
        disk = self.disk
        disk.rules, disk.joined, disk.progress = self.rules.fingerprint, frozenset({self.node}), ""
        disk.floor.update(disk.vector)
        self.happened["rules changed"] += 1

    @property
    def joined(self) -> frozenset[str] | None:
        """Nodes whose states are joined here since the rules changed; None: no change under way."""
        return self.disk.joined

    async def end_change(self) -> None:
        """The states of all nodes have been joined."""
        self.disk.joined = None
        self.happened["changes completed"] += 1

    def _begin_after_loss(self) -> None:
        claimed = dict(self.durable)
        if not is_covered(claimed, self.disk.vector):
            self._begin(claimed)
        elif self._phase in (Phase.UNPROVEN, Phase.EXPOSED):
            self._begin(self.disk.behind or None)
        else:
            self._begin(self.disk.behind)

    def _keep_durable(self, also: Vector) -> None:
        """Nothing that is not there any more, or not yet, is durable."""
        claimed = pointwise_max(self.durable, also)
        there = self.disk.vector
        self.durable = {o: min(t, there[o]) for o, t in claimed.items() if o in there}

    def _take_phase(self) -> None:
        if self.disk.behind:
            self._phase = Phase.BEHIND
        elif self.disk.exposed is not None and self._has_peers:
            self._phase = Phase.EXPOSED
        else:
            self._phase = Phase.SERVING
        self.happened[self._phase.value] += 1

    @property
    def phase(self) -> Phase:
        """How far the incarnation may be trusted."""
        return self._phase

    @property
    def origin(self) -> str:
        """The incarnation that accepts writes here."""
        return self.disk.origin

    @property
    def vector(self) -> Vector:
        """What this node has applied."""
        return self.disk.vector

    @property
    def floor(self) -> Vector:
        """origin -> timestamp up to which the feed does not hold everything."""
        return self.disk.floor

    @property
    def revision(self) -> int:
        """The highest revision that is stored."""
        return self.disk.clock

    @property
    def behind(self) -> Vector:
        """What this node once had, while it has not caught up."""
        return self.disk.behind

    @property
    def progress(self) -> str:
        """How far an incoming transfer has come; "" when there is none."""
        return self.disk.progress

    @property
    def born(self) -> str:
        """The first incarnation of this data set."""
        return self.disk.born

    async def members(self, members: Sequence[str], removed: Mapping[str, str]) -> dict[str, str]:
        """Keep who belongs; see `RedisStore.members`."""
        disk = self.disk
        newest = newest_origins(disk.vector)
        gone = {n: newest[n] for n in disk.members if n not in members and n in newest}
        disk.removed = newest_removed(newest_removed(disk.removed, gone), removed)
        disk.known = {node: row for node, row in disk.known.items() if node in members}
        disk.members = tuple(sorted(members))
        return dict(disk.removed)

    async def prove(self) -> None:
        """Nothing is missing, say those who know."""
        if self._phase is Phase.UNPROVEN:
            self.disk.run_id = self.server
            self._take_phase()
            self.happened["proved"] += 1
            if self.phase is Phase.SERVING:
                self._write_again()

    async def begin(self, behind: Vector | None = None, known: Collection[str] = ()) -> None:
        """Begin a new incarnation; see `OpenStore.begin`."""
        self._begin(behind, known)

    def _begin(self, behind: Vector | None, known: Collection[str] = ()) -> None:
        disk = self.disk
        names = [*known, *(behind or {}), *disk.vector]
        if behind and disk.exposed is not None:
            self._undo(disk.exposed)
        self._keep_durable({})
        self._begin_at(tick(disk.clock, self._now_us()), names)
        disk.run_id, disk.behind = self.server, dict(behind or {})
        if behind is None and self._has_peers:
            # Still nobody has told: what was exposed before stays so.
            disk.exposed = disk.clock if disk.exposed is None else disk.exposed
        else:
            disk.exposed, disk.undo = None, {}
        self._known = disk.clock
        self._take_phase()
        if self._phase is Phase.SERVING:
            self._write_again()

    def _begin_at(self, at: int, known: Sequence[str] = ()) -> None:
        disk = self.disk
        disk.origin, disk.clock = f"{self.node}.{self._new_incarnation(known)}", at
        disk.born, disk.rules = disk.born or disk.origin, self.rules.fingerprint
        disk.vector[disk.origin] = at
        self._append(FeedEntry(at, disk.origin, at, 0, b""), 0, {}, {}, "default", [])
        self.happened["incarnations"] += 1
        self.begun(disk.origin)

    def _new_incarnation(self, known: Sequence[str]) -> str:
        now_ms = self._now_us() // 1000
        newest = newest_origins(known).get(self.node, "").partition(".")[2][:8]
        if newest:
            now_ms = max(now_ms, int(newest, 36) + 1)
        return incarnation(now_ms, self._random_bits(RANDOM_BITS))

    def _undo(self, first: int) -> None:
        """Set aside what this node has written from that revision on."""
        disk = self.disk
        for identity, before in disk.undo.items():
            if before is None:
                disk.tuples.pop(identity, None)
            else:
                disk.tuples[identity] = before
        undone = [o for o, t in disk.vector.items() if node_of(o) == self.node and t >= first]
        kept = []
        for entry in disk.feed:
            if entry.revision < first or entry.origin not in undone:
                kept.append(entry)
                continue
            if entry.changes:
                one, version = json.loads(entry.text), (entry.timestamp, entry.origin)
                disk.aside.append(Aside(version, one["tenant"], one["changes"]))
                self.happened["set aside"] += 1
        disk.feed = kept
        for identity, versions in disk.seen.items():
            disk.seen[identity] = frozenset(v for v in versions if v[1] not in undone)
        for origin in undone:
            del disk.vector[origin]

    async def end_phase(self) -> None:
        """A peer has nothing that this node lacks, or it has caught up."""
        self.disk.behind, self.disk.exposed, self.disk.undo = {}, None, {}
        self._write_again()
        self._phase = Phase.SERVING

    async def end_exposure(self) -> None:
        """A peer has told what this node once had: what it wrote until now stays written."""
        self.disk.exposed, self.disk.undo = None, {}

    def _write_again(self) -> None:
        while self.disk.aside:
            one = self.disk.aside[0]
            self._write(one.tenant, [change_of_row(one.tenant, r) for r in one.rows], one.version)
            del self.disk.aside[0]
            self.happened["written again"] += 1

    # -- writes -----------------------------------------------------------------------------------

    async def write(self, tenant: str, changes: Sequence[Change]) -> Version:
        """Commit one write; raises Unavailable like the real one."""
        if not self.is_open or self._phase in (Phase.UNPROVEN, Phase.BEHIND):
            raise Unavailable("catching_up", "takes no writes now")
        return self._write(tenant, changes)

    def _write(
        self, tenant: str, changes: Sequence[Change], replaced: Version | None = None
    ) -> Version:
        disk = self.disk
        before, previous = dict(disk.vector), disk.vector[disk.origin]
        version = (tick(disk.clock, self._now_us()), disk.origin)
        extra: dict[str, Vector] = {}
        parts = []
        for index, change in enumerate(changes, 1):
            identity = change.relationship.identity
            old = disk.tuples.get(identity)
            new, own = write(old or TupleState(), version, sibling_of(change), before)
            if seen := above(pointwise_max(own, self._page_of(identity)), before):
                extra[str(index)] = seen
                self.happened["told beyond"] += 1
            if disk.exposed is not None:
                disk.undo.setdefault(identity, old)
            disk.tuples[identity] = new
            past = disk.seen.get(identity, frozenset())
            parts.append((change, past))
            disk.seen[identity] = past | {version}
        self.wrote(version, parts, replaced)
        disk.clock = disk.vector[disk.origin] = self._known = version[0]
        context = {o: t for o, t in before.items() if o != disk.origin}
        rows = json.loads("{" + encode_body(tenant, changes))["changes"]
        entry = FeedEntry(version[0], version[1], version[0], len(changes), b"")
        self._append(entry, previous, context, extra, tenant, rows)
        return version

    def _rules_of(self, identity: Identity) -> Rules:
        keeps_losers = self.disk.joined is not None
        return self.rules.at(identity[1], identity[2], keeps_losers=keeps_losers)

    def _page_of(self, identity: Identity) -> Vector:
        """What was taken over with a page of the tuple's bucket."""
        return self.disk.beyond.get(bucket_of(identity[0], identity[1]), {})

    def _append(  # noqa: PLR0917 — the fields of a transaction
        self,
        entry: FeedEntry,
        previous: int,
        context: Vector,
        extra: Mapping[str, Vector],
        tenant: str,
        rows: Sequence[Any],
    ) -> None:
        text: dict[str, Any] = {
            "format": 1,
            "origin": entry.origin,
            "timestamp": str(entry.timestamp),
            "previous": str(previous),
            "context": encode_vector(context),
            "tenant": tenant,
            "changes": rows,
        }
        if extra:
            text["beyond"] = {index: encode_vector(vector) for index, vector in extra.items()}
        self.disk.feed.append(entry._replace(text=json.dumps(text).encode()))

    async def merge(self, batch: bytes, nodes: Collection[str] = ()) -> Merged:
        """Take in transactions of other origins; see `RedisStore.merge`."""
        disk = self.disk
        outcome, detail, applied = MergeOutcome.APPLIED, "", 0
        held: dict[str, str] = {}
        for line in batch.split(b"\n"):
            one = json.loads(line)
            origin, at, previous = one["origin"], int(one["timestamp"]), int(one["previous"])
            reached = disk.vector.get(origin, 0)
            if at <= reached or origin in held:
                self.happened["repeats"] += at <= reached
                continue
            if previous > reached and origin not in disk.parked:
                outcome, detail = MergeOutcome.GAP, origin
                self.happened["gaps"] += 1
                break
            if origin == disk.origin:
                outcome, detail = MergeOutcome.LOST, "a peer holds writes that are not here"
                break
            if previous > reached:
                held[origin] = disk.parked[origin]["reason"]
            elif nodes and node_of(origin) not in nodes:
                held[origin] = "unknown node"
                disk.parked[origin] = {"reason": "unknown node", "timestamp": str(at)}
            elif at > self._now_us() + self._skew_us:
                held[origin] = "ahead"
                disk.parked[origin] = {"reason": "ahead", "timestamp": str(at)}
                self.happened["parked"] += 1
            else:
                self._take_in(one, line)
                applied += 1
        self._known = disk.clock
        return Merged(outcome, detail, applied, dict(disk.vector), held)

    def _take_in(self, one: Mapping[str, Any], line: bytes) -> None:
        disk, origin, at = self.disk, one["origin"], int(one["timestamp"])
        disk.clock = tick(disk.clock, self._now_us(), at)
        self._apply(one, (at, origin))
        disk.vector[origin] = at
        disk.parked.pop(origin, None)
        disk.feed.append(FeedEntry(disk.clock, origin, at, len(one["changes"]), line))
        self.happened["merged"] += 1

    def _apply(self, one: Mapping[str, Any], version: Version) -> None:
        disk, tenant = self.disk, one["tenant"]
        context = {o: int(t) for o, t in one["context"].items()}
        context[version[1]] = max(context.get(version[1], 0), int(one["previous"]))
        for index, row in enumerate(one["changes"], 1):
            change = change_of_row(tenant, row)
            identity = change.relationship.identity
            disk.seen[identity] = disk.seen.get(identity, frozenset()) | {version}
            if covers(self._page_of(identity), version):
                self.happened["came with a page"] += 1
                continue
            extra = {o: int(t) for o, t in one.get("beyond", {}).get(str(index), {}).items()}
            disk.tuples[identity], conflicts = absorb(
                disk.tuples.get(identity, TupleState()),
                version,
                sibling_of(change),
                pointwise_max(context, extra),
                disk.vector,
                self._rules_of(identity),
            )
            self._count(whose for _, whose in conflicts)

    def _count(self, winners: Iterable[Winner]) -> None:
        for whose in winners:
            self.conflicts[whose] += 1
            self.happened["conflicts"] += 1

    # -- states -----------------------------------------------------------------------------------

    async def states(self, first: int, buckets: int, tuples: int) -> States:
        """Whole buckets and the vector they are judged by; see `RedisStore.states`."""
        disk, found, count = self.disk, [], 0
        last = min(first + buckets, relationship.BUCKETS)
        by_bucket: dict[int, list[tuple[str, str, str]]] = {}
        for identity, state in disk.tuples.items():
            row = (*names_of(identity), encode_state(state, self._rules_of(identity)))
            by_bucket.setdefault(bucket_of(identity[0], identity[1]), []).append(row)
        number = first
        while number < last and count < tuples:
            rows = by_bucket.get(number, [])
            found.append(Bucket(number, 0, disk.beyond.get(number, {}), rows))
            count += len(rows)
            number += 1
        return States(number, dict(disk.vector), found)

    async def wait_durable(self, vector: Vector) -> None:
        """The simulator waits; nothing to do here."""

    async def absorb(
        self, page: bytes, way: Way, progress: str = "", nodes: Collection[str] = ()
    ) -> Absorbed:
        """Take in a page; see `RedisStore.absorb`."""
        disk = self.disk
        buckets = [json.loads(line) for line in page.split(b"\n")]
        seen = max((int(t) for b in buckets for t in b["vector"].values()), default=0)
        if seen > self._now_us() + self._skew_us:
            return Absorbed(AbsorbOutcome.SKEW)
        for one in buckets:
            if nodes and not {node_of(origin) for origin in one["vector"]} <= set(nodes):
                raise Refused("bad_page", "a page of nodes that are not known here")
            if int(one["vector"].get(disk.origin, 0)) > disk.vector[disk.origin]:
                raise Unavailable("store_lost_writes", "a peer holds writes that are not here")
        disk.clock = self._known = tick(disk.clock, self._now_us(), seen)
        appeared = disappeared = 0
        for one in buckets:
            vector = {o: int(t) for o, t in one["vector"].items()}
            theirs = {identity_of(row[0], row[1]): decode_state(row[3]) for row in one["tuples"]}
            came, went = self._absorb_bucket(one["bucket"], vector, theirs, way)
            appeared, disappeared = appeared + came, disappeared + went
            self._note_seen(one.get("seen", []))
        disk.progress = progress or disk.progress
        return Absorbed(AbsorbOutcome.ABSORBED, appeared, disappeared)

    def _absorb_bucket(
        self, number: int, vector: Vector, theirs: Mapping[Identity, TupleState], way: Way
    ) -> tuple[int, int]:
        """Returns how many tuples appeared or changed, and how many disappeared."""
        disk = self.disk
        taken = disk.beyond.get(number, {})
        mine = {i: s for i, s in disk.tuples.items() if bucket_of(i[0], i[1]) == number}
        appeared = disappeared = 0
        for identity in theirs.keys() | mine.keys():
            before = self.visible(identity)
            new = self._joined(
                identity,
                mine.get(identity, TupleState()),
                theirs.get(identity, TupleState()),
                pointwise_max(disk.vector, taken),
                vector,
                way,
            )
            if new is None:
                disk.tuples.pop(identity, None)
            else:
                disk.tuples[identity] = new
            after = self.visible(identity)
            appeared += after is not None and after != before
            disappeared += after is None and before is not None
        self._set_page(number, above(pointwise_max(taken, vector), disk.vector))
        return appeared, disappeared

    def _set_page(self, number: int, left: Vector) -> None:
        if left:
            self.disk.beyond[number] = left
        else:
            self.disk.beyond.pop(number, None)

    def _note_seen(self, known: Sequence[Any]) -> None:
        """For the oracle: what the other side had taken in, of every tuple of a bucket."""
        for key, name, versions in known:
            identity = identity_of(key, name)
            theirs = {(int(at), origin) for at, origin in versions}
            self.disk.seen[identity] = self.disk.seen.get(identity, frozenset()) | theirs

    def _joined(  # noqa: PLR0917 — a tuple, its two states, and what they are judged by
        self,
        identity: Identity,
        mine: TupleState,
        theirs: TupleState,
        reached: Vector,
        vector: Vector,
        way: Way,
    ) -> TupleState | None:
        their_context = pointwise_max(vector, theirs.beyond)
        my_context = pointwise_max(reached, mine.beyond)
        if way is Way.REPLACE:
            # What nobody has written goes; what they have not seen waits until they have.
            held = {
                v: s
                for v, s in mine.siblings.items()
                if covers(their_context, v) or covers(reached, v)
            }
            mine = TupleState(held, mine.beyond)
            if all(covers(their_context, v) for v in held):
                mine, my_context = TupleState({}, mine.beyond), {}
        rules = self._rules_of(identity)
        state, conflicts = join(mine, theirs, my_context, their_context, rules)
        self._count(whose for *_, whose in conflicts)
        if state is None:
            return None
        return TupleState(state.siblings, above(state.beyond, pointwise_max(reached, vector)))

    async def finish(
        self, start: Vector, progress: str, *, joined: frozenset[str] | None = None
    ) -> bool:
        """The end of a transfer; see `RedisStore.finish`."""
        disk = self.disk
        if progress:
            if disk.progress != progress:
                return False
            for origin, at in start.items():
                if at > disk.vector.get(origin, 0):
                    disk.vector[origin] = disk.floor[origin] = at
            disk.progress, disk.joined = "", disk.joined if joined is None else joined
            self.happened["transfers"] += 1
        await self.let_go({})
        return True

    async def let_go(self, ended: Mapping[str, int], is_whole: bool = False) -> LetGo:
        """Forget what was taken over with pages; see `RedisStore.let_go`."""
        disk = self.disk
        for origin, waits in list(disk.parked.items()):
            if int(waits["timestamp"]) <= disk.vector.get(origin, 0):
                del disk.parked[origin]
        found: list[Orphan] = []
        for number, vector in list(disk.beyond.items()):
            ends = {o: 0 for o in vector if is_whole and self._is_gone(o)} | dict(ended)
            lost = {o: ends[o] for o, t in vector.items() if t > ends.get(o, t)}
            orphans = list(self._orphans(number, lost))
            kept = {o: t for o, t in vector.items() if orphans or o not in lost}
            self._set_page(number, above(kept, disk.vector))
            found += orphans
        return LetGo(found)

    def _orphans(self, number: int, lost: Vector) -> Iterator[Orphan]:
        for identity, state in self.disk.tuples.items():
            above_end = [v for v in state.siblings if v[1] in lost and v[0] > lost[v[1]]]
            if above_end and bucket_of(identity[0], identity[1]) == number:
                shown = state.siblings[self.rules.winner(state.siblings)]
                one = Relationship(*identity, shown.condition, shown.expires_at)
                yield Orphan(Change(shown.operation, one), self.disk.clock, above_end[0])

    async def write_again(self, orphan: Orphan) -> bool:
        """Write what a tuple shows; see `RedisStore.write_again`."""
        state = self.disk.tuples.get(orphan.again.relationship.identity, TupleState())
        if orphan.lost not in state.siblings:
            return False
        await self.write(orphan.again.relationship.tenant, [orphan.again])
        self.happened["orphans written again"] += 1
        return True

    async def taken(self) -> Vector:
        """The most that was taken over with pages and the vector has not reached."""
        most: Vector = {}
        for vector in self.disk.beyond.values():
            most = pointwise_max(most, vector)
        return most

    # -- collection -------------------------------------------------------------------------------

    async def rows(self, nodes: Sequence[str]) -> dict[str, Vector]:
        """The rows that were believed, of these nodes."""
        return {node: self.disk.known[node] for node in nodes if node in self.disk.known}

    async def store_rows(self, rows: Mapping[str, Vector]) -> None:
        """Remember believed rows."""
        self.disk.known.update({node: dict(row) for node, row in rows.items()})

    async def collect(self, stable: Vector, ended: Mapping[str, int], after: int = 0) -> int | None:
        """Collect among the unsettled tuples, all at once; -1: not now."""
        disk = self.disk
        if all(state.is_settled for state in disk.tuples.values()):
            return None
        if disk.beyond:
            return -1
        for identity, state in list(disk.tuples.items()):
            beyond = {o: min(t, ended.get(o, t)) for o, t in state.beyond.items()}
            beyond = {o: t for o, t in beyond.items() if not self._is_gone(o)}
            trimmed = TupleState(state.siblings, above(beyond, disk.vector))
            new = collect(trimmed, stable, self._rules_of(identity))
            if new is None:
                del disk.tuples[identity]
            elif new.is_settled or (state.beyond and not new.beyond):
                disk.tuples[identity] = new
            self.happened["collected"] += new is None
            self.happened["losers collected"] += len(state.siblings) > 1 and new != trimmed
        return None

    def _is_gone(self, origin: str) -> bool:
        """Whether nobody has anything of it, if all have heard of the newest incarnations."""
        newest = newest_origins(self.disk.vector).get(node_of(origin), "")
        return origin not in self.disk.vector and origin < newest

    async def unsettled(self) -> int:
        """How many tuples are not one live sibling."""
        return sum(not state.is_settled for state in self.disk.tuples.values())

    async def oldest_unsettled(self) -> int | None:
        """The timestamp of the oldest tuple that is not one live sibling; None without any."""
        states = (state for state in self.disk.tuples.values() if not state.is_settled)
        return min((max(state.siblings)[0] for state in states if state.siblings), default=None)

    def trim(self, up_to: int) -> None:
        """Drop the feed up to this revision, but for what may have to be set aside."""
        disk = self.disk
        up_to = min(up_to, up_to if disk.exposed is None else disk.exposed - 1)
        self.happened["trimmed"] += 1
        for entry in disk.feed:
            if entry.revision <= up_to and entry.origin != TRANSFER:
                disk.floor[entry.origin] = max(disk.floor.get(entry.origin, 0), entry.timestamp)
        disk.feed = [entry for entry in disk.feed if entry.revision > up_to]

    async def feed_after(self, revision: int, count: int) -> list[FeedEntry]:
        """At most `count` entries with a revision above this one, in order."""
        found = (entry for entry in self.disk.feed if entry.revision > revision)
        return [entry for entry, _ in zip(found, range(count), strict=False)]

    # -- reads ------------------------------------------------------------------------------------

    def visible(self, identity: Identity) -> Version | None:
        """The version that readers see, or None."""
        state = self.disk.tuples.get(identity)
        if state is None:
            return None
        best = self._rules_of(identity).winner(state.siblings)
        return best if state.siblings[best].operation is Operation.INSERT else None
