"""A data set in memory that decides with the specification, for the simulator.

It promises what the store on Redis promises, and passes the same contract suite
(`tests/store/test_contract.py`). What is not on disk yet can be lost: `sync` writes it, `crash`
goes back to what was written.
"""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any

from sidecar.core import relationship
from sidecar.core.clock import incarnation, tick
from sidecar.core.conflict import Rules, Sibling
from sidecar.core.membership import newest_removed
from sidecar.core.relationship import Change, Identity, Operation, bucket_of
from sidecar.core.session import TRANSFER
from sidecar.core.state import TupleState, Winner, absorb, collect, join, write
from sidecar.core.vector import (
    Vector,
    Version,
    above,
    covers,
    is_covered,
    newest_origins,
    pointwise_max,
)
from sidecar.core.wire import encode_body, encode_vector
from sidecar.errors import Refused, Unavailable
from sidecar.store.calls import (
    Absorbed,
    AbsorbOutcome,
    Bucket,
    Merged,
    MergeOutcome,
    Phase,
    States,
    Way,
)
from sidecar.store.feed import FeedEntry

Undo = dict[Identity, TupleState | None]


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
    aside: list[tuple[str, str, list[Any]]] = field(default_factory=list)
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
        self.wrote: Callable[[Version, Change, frozenset[Version]], None] = lambda *_: None
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
        self.durable = {}
        self.reopen()

    def reopen(self) -> None:
        """The same process opens it, after the server was away."""
        disk = self.disk
        if not disk.origin and not self._known:
            self._begin_at(self._now_us())
            disk.run_id = self.server
            if self._has_peers:
                disk.exposed = disk.clock
        if disk.clock < self._known or not disk.origin:
            claimed = dict(self.durable)
            self._begin({} if is_covered(claimed, disk.vector) else claimed)
        is_proven = disk.run_id == self.server or self._known > 0 or not self._has_peers
        self._known = disk.clock
        self.durable = pointwise_max(
            {o: t for o, t in self.durable.items() if t <= disk.vector.get(o, 0)}, self.saved.vector
        )
        if is_proven:
            disk.run_id = self.server
            self._take_phase()
        else:
            self._phase = Phase.UNPROVEN
        self.is_open = True
        if self._phase in (Phase.SERVING, Phase.EXPOSED):
            self._write_again()

    def _take_phase(self) -> None:
        if self.disk.behind:
            self._phase = Phase.BEHIND
        elif self.disk.exposed is not None and self._has_peers:
            self._phase = Phase.EXPOSED
        else:
            self._phase = Phase.SERVING

    @property
    def phase(self) -> Phase:
        return self._phase

    @property
    def origin(self) -> str:
        return self.disk.origin

    @property
    def vector(self) -> Vector:
        return self.disk.vector

    @property
    def floor(self) -> Vector:
        return self.disk.floor

    @property
    def revision(self) -> int:
        return self.disk.clock

    @property
    def behind(self) -> Vector:
        return self.disk.behind

    @property
    def progress(self) -> str:
        return self.disk.progress

    @property
    def born(self) -> str:
        return self.disk.born

    async def members(self, members: Sequence[str], removed: Mapping[str, str]) -> dict[str, str]:
        disk = self.disk
        newest = newest_origins(disk.vector)
        gone = {n: newest[n] for n in disk.members if n not in members and n in newest}
        disk.removed = newest_removed(newest_removed(disk.removed, gone), removed)
        disk.known = {node: row for node, row in disk.known.items() if node in members}
        disk.members = tuple(sorted(members))
        return dict(disk.removed)

    async def prove(self) -> None:
        if self._phase is Phase.UNPROVEN:
            self.disk.run_id = self.server
            self._take_phase()

    async def begin(self, behind: Vector | None = None, known: Collection[str] = ()) -> None:
        self._begin(behind, known)

    def _begin(self, behind: Vector | None, known: Collection[str] = ()) -> None:
        disk = self.disk
        if behind and disk.exposed is not None:
            self._undo(disk.exposed)
        names = [*known, *(behind or {}), *disk.vector]
        self._begin_at(tick(disk.clock, self._now_us()), names)
        disk.run_id = self.server
        disk.exposed, disk.behind, disk.undo = None, dict(behind or {}), {}
        if behind is None and self._has_peers:
            disk.exposed = disk.clock
        self._known = disk.clock
        self._take_phase()

    def _begin_at(self, at: int, known: Sequence[str] = ()) -> None:
        disk = self.disk
        now_ms = self._now_us() // 1000
        newest = newest_origins(known).get(self.node, "").partition(".")[2][:8]
        if newest:
            now_ms = max(now_ms, int(newest, 36) + 1)
        name = incarnation(now_ms, self._random_bits(20))
        disk.origin, disk.clock = f"{self.node}.{name}", at
        disk.born = disk.born or disk.origin
        disk.vector[disk.origin] = at
        self._append(at, disk.origin, at, 0, {}, {}, "default", "[]")

    def _undo(self, first: int) -> None:
        disk = self.disk
        for identity, before in disk.undo.items():
            if before is None:
                disk.tuples.pop(identity, None)
            else:
                disk.tuples[identity] = before
        kept = []
        for entry in disk.feed:
            if entry.revision >= first and entry.origin == disk.origin:
                if entry.changes:
                    named = json.loads(entry.text)
                    disk.aside.append((disk.origin, named["tenant"], named["changes"]))
            else:
                kept.append(entry)
        disk.feed = kept
        for identity, versions in disk.seen.items():
            disk.seen[identity] = frozenset(v for v in versions if v[1] != disk.origin)
        del disk.vector[disk.origin]

    async def end_phase(self) -> None:
        was_behind = self._phase is Phase.BEHIND
        self.disk.behind, self.disk.exposed, self.disk.undo = {}, None, {}
        if was_behind:
            self._write_again()
        self._phase = Phase.SERVING

    def _write_again(self) -> None:
        while self.disk.aside:
            _, tenant, rows = self.disk.aside[0]
            self._write(tenant, [change_of_row(tenant, row) for row in rows])
            del self.disk.aside[0]

    # -- writes -----------------------------------------------------------------------------------

    async def write(self, tenant: str, changes: Sequence[Change]) -> Version:
        """Commit one write; raises Unavailable like the real one."""
        if not self.is_open or self._phase in (Phase.UNPROVEN, Phase.BEHIND):
            raise Unavailable("catching_up", "takes no writes now")
        return self._write(tenant, changes)

    def _write(self, tenant: str, changes: Sequence[Change]) -> Version:
        disk = self.disk
        before, previous = dict(disk.vector), disk.vector[disk.origin]
        at = tick(disk.clock, self._now_us())
        extra: dict[str, Vector] = {}
        for index, change in enumerate(changes, 1):
            identity = change.relationship.identity
            old = disk.tuples.get(identity)
            new, own = write(old or TupleState(), (at, disk.origin), sibling_of(change), before)
            page = disk.beyond.get(bucket_of(tenant, change.relationship.resource), {})
            if seen := above(pointwise_max(own, page), before):
                extra[str(index)] = seen
            if disk.exposed is not None:
                disk.undo.setdefault(identity, old)
            disk.tuples[identity] = new
            past = disk.seen.get(identity, frozenset())
            self.wrote((at, disk.origin), change, past)
            disk.seen[identity] = past | {(at, disk.origin)}
        disk.clock = at
        disk.vector[disk.origin] = at
        context = {o: t for o, t in before.items() if o != disk.origin}
        rows = json.loads("{" + encode_body(tenant, changes))["changes"]
        self._append(
            at, disk.origin, previous, len(changes), context, extra, tenant, json.dumps(rows)
        )
        self._known = disk.clock
        return at, disk.origin

    def _append(  # noqa: PLR0917 — the fields of a transaction
        self,
        at: int,
        origin: str,
        previous: int,
        changes: int,
        context: Vector,
        extra: Mapping[str, Vector],
        tenant: str,
        rows: str,
    ) -> None:
        beyond = {index: encode_vector(vector) for index, vector in extra.items()}
        text = json.dumps(
            {
                "format": 1,
                "origin": origin,
                "timestamp": str(at),
                "previous": str(0 if changes == 0 else previous),
                "context": encode_vector(context),
                **({"beyond": beyond} if beyond else {}),
                "tenant": tenant,
                "changes": json.loads(rows),
            }
        )
        self.disk.feed.append(FeedEntry(at, origin, at, changes, text.encode()))

    async def merge(self, batch: bytes) -> Merged:
        disk = self.disk
        outcome, detail, applied = MergeOutcome.APPLIED, "", 0
        held: dict[str, str] = {}
        for line in batch.split(b"\n"):
            one = json.loads(line)
            origin, at, previous = one["origin"], int(one["timestamp"]), int(one["previous"])
            reached = disk.vector.get(origin, 0)
            if at <= reached or origin in held:
                continue
            if previous > reached and origin not in disk.parked:
                outcome, detail = MergeOutcome.GAP, origin
                break
            if origin == disk.origin:
                outcome, detail = MergeOutcome.LOST, "a peer holds writes that are not here"
                break
            if previous > reached:
                held[origin] = disk.parked[origin]["reason"]
            elif at > self._now_us() + self._skew_us:
                held[origin] = "ahead"
                disk.parked[origin] = {"reason": "ahead", "timestamp": str(at)}
            else:
                disk.clock = tick(disk.clock, self._now_us(), at)
                self._apply(one, origin, at, previous)
                disk.vector[origin] = at
                disk.parked.pop(origin, None)
                entry = FeedEntry(disk.clock, origin, at, len(one["changes"]), line)
                disk.feed.append(entry)
                applied += 1
        self._known = disk.clock
        return Merged(outcome, detail, applied, dict(disk.vector), held)

    def _apply(self, one: dict[str, Any], origin: str, at: int, previous: int) -> None:
        disk, tenant = self.disk, one["tenant"]
        context = {o: int(t) for o, t in one["context"].items()}
        context[origin] = max(context.get(origin, 0), previous)
        for index, row in enumerate(one["changes"], 1):
            change = change_of_row(tenant, row)
            identity = change.relationship.identity
            page = disk.beyond.get(bucket_of(tenant, change.relationship.resource), {})
            disk.seen[identity] = disk.seen.get(identity, frozenset()) | {(at, origin)}
            if covers(page, (at, origin)):
                continue
            extra = {o: int(t) for o, t in one.get("beyond", {}).get(str(index), {}).items()}
            state, conflicts = absorb(
                disk.tuples.get(identity, TupleState()),
                (at, origin),
                sibling_of(change),
                pointwise_max(context, extra),
                disk.vector,
                self.rules,
            )
            disk.tuples[identity] = state
            for _, whose in conflicts:
                self.conflicts[whose] += 1

    # -- states -----------------------------------------------------------------------------------

    async def states(self, first: int, buckets: int, tuples: int) -> States:
        disk, found, count = self.disk, [], 0
        last = min(first + buckets, relationship.BUCKETS)
        by_bucket: dict[int, list[tuple[str, str, str]]] = {}
        for (tenant, resource, relation, subject), state in disk.tuples.items():
            row = (f"{tenant}/{resource}", f"{relation}#{subject}", encode_state(state, self.rules))
            by_bucket.setdefault(bucket_of(tenant, resource), []).append(row)
        number = first
        while number < last and count < tuples:
            rows = by_bucket.get(number, [])
            found.append(Bucket(number, 0, disk.beyond.get(number, {}), rows))
            count += len(rows)
            number += 1
        return States(number, dict(disk.vector), found)

    async def wait_durable(self, vector: Vector) -> None:
        """The simulator waits; nothing to do here."""

    async def absorb(self, page: bytes, way: Way, progress: str = "") -> Absorbed:
        disk = self.disk
        buckets = [json.loads(line) for line in page.split(b"\n")]
        seen = max((int(t) for b in buckets for t in b["vector"].values()), default=0)
        if seen > self._now_us() + self._skew_us:
            return Absorbed(AbsorbOutcome.SKEW)
        for one in buckets:
            if int(one["vector"].get(disk.origin, 0)) > disk.vector[disk.origin]:
                raise Unavailable("store_lost_writes", "a peer holds writes that are not here")
        disk.clock = tick(disk.clock, self._now_us(), seen)
        appeared = disappeared = 0
        for one in buckets:
            number = one["bucket"]
            vector = {o: int(t) for o, t in one["vector"].items()}
            taken = disk.beyond.get(number, {})
            theirs = {identity_of(row[0], row[1]): decode_state(row[3]) for row in one["tuples"]}
            mine = {i: s for i, s in disk.tuples.items() if bucket_of(i[0], i[1]) == number}
            for identity in theirs.keys() | mine.keys():
                before = self.visible(identity)
                new = self._joined(
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
            for key, name, versions in one.get("seen", []):
                identity = identity_of(key, name)
                theirs_seen = {(int(at), origin) for at, origin in versions}
                disk.seen[identity] = disk.seen.get(identity, frozenset()) | theirs_seen
            left = above(pointwise_max(taken, vector), disk.vector)
            if left:
                disk.beyond[number] = left
            else:
                disk.beyond.pop(number, None)
        if progress:
            disk.progress = progress
        self._known = disk.clock
        return Absorbed(AbsorbOutcome.ABSORBED, appeared, disappeared)

    def _joined(
        self, mine: TupleState, theirs: TupleState, reached: Vector, vector: Vector, way: Way
    ) -> TupleState | None:
        their_context = pointwise_max(vector, theirs.beyond)
        my_context = pointwise_max(reached, mine.beyond)
        if way is Way.REPLACE:
            kept = {v: s for v, s in mine.siblings.items() if not covers(their_context, v)}
            mine, my_context = TupleState(kept, mine.beyond), {}
        state, conflicts = join(mine, theirs, my_context, their_context, self.rules)
        for *_, whose in conflicts:
            self.conflicts[whose] += 1
        if state is None:
            return None
        return TupleState(state.siblings, above(state.beyond, pointwise_max(reached, vector)))

    async def finish(self, start: Vector, progress: str) -> bool:
        disk = self.disk
        if progress:
            if disk.progress != progress:
                return False
            for origin, at in start.items():
                if at > disk.vector.get(origin, 0):
                    disk.vector[origin] = disk.floor[origin] = at
            disk.progress = ""
        await self.let_go({})
        return True

    async def let_go(self, ended: Mapping[str, int]) -> None:
        """Forget what was taken over with pages, where the vector has reached it or nobody will."""
        disk = self.disk
        reached = {**disk.vector, **dict.fromkeys(ended, 2**53)}
        for origin, waits in list(disk.parked.items()):
            if int(waits["timestamp"]) <= disk.vector.get(origin, 0):
                del disk.parked[origin]
        left = {b: above(v, reached) for b, v in disk.beyond.items()}
        self.disk.beyond = {bucket: vector for bucket, vector in left.items() if vector}

    # -- collection -------------------------------------------------------------------------------

    async def rows(self, nodes: Sequence[str]) -> dict[str, Vector]:
        return {node: self.disk.known[node] for node in nodes if node in self.disk.known}

    async def store_rows(self, rows: Mapping[str, Vector]) -> None:
        self.disk.known.update({node: dict(row) for node, row in rows.items()})

    async def collect(self, stable: Vector, ended: Mapping[str, int], after: int = 0) -> int | None:
        disk = self.disk
        if disk.beyond:
            return -1
        for identity, state in list(disk.tuples.items()):
            beyond = {o: min(t, ended.get(o, t)) for o, t in state.beyond.items()}
            trimmed = TupleState(state.siblings, above(beyond, disk.vector))
            new = collect(trimmed, stable, self.rules)
            if new is None:
                del disk.tuples[identity]
            else:
                disk.tuples[identity] = new
        return None

    async def unsettled(self) -> int:
        return sum(not state.is_settled for state in self.disk.tuples.values())

    def trim(self, up_to: int) -> None:
        """Drop the feed up to this revision."""
        disk = self.disk
        for entry in disk.feed:
            if entry.revision <= up_to and entry.origin != TRANSFER:
                disk.floor[entry.origin] = max(disk.floor.get(entry.origin, 0), entry.timestamp)
        disk.feed = [entry for entry in disk.feed if entry.revision > up_to]

    async def feed_after(self, revision: int, count: int) -> list[FeedEntry]:
        found = (entry for entry in self.disk.feed if entry.revision > revision)
        return [entry for entry, _ in zip(found, range(count), strict=False)]

    # -- reads ------------------------------------------------------------------------------------

    def visible(self, identity: Identity) -> Version | None:
        """The version that readers see, or None."""
        state = self.disk.tuples.get(identity)
        if state is None:
            return None
        best = self.rules.winner(state.siblings)
        return best if state.siblings[best].operation is Operation.INSERT else None


def sibling_of(change: Change) -> Sibling:
    one = change.relationship
    is_insert = change.operation is Operation.INSERT
    return Sibling(
        change.operation,
        one.condition if is_insert else None,
        one.expires_at if is_insert else None,
    )


def change_of_row(tenant: str, row: Sequence[Any]) -> Change:
    """A change from its row in a transaction's JSON."""
    sign, resource, relation, subject, _, _, *payload = row
    condition, expires_at = (*payload, "", "")[:2]
    one = relationship.Relationship(
        tenant,
        resource,
        relation,
        subject,
        condition or None,
        int(expires_at) if expires_at else None,
    )
    return Change(Operation.INSERT if sign == "+" else Operation.DELETE, one)


def identity_of(key: str, name: str) -> Identity:
    """The tuple stored under `tenant/resource` and `relation#subject`."""
    tenant, _, resource = key.partition("/")
    relation, _, subject = name.partition("#")
    return tenant, resource, relation, subject


def encode_state(state: TupleState, rules: Rules) -> str:
    """The text of a state, always in its long form; see `lua/lib/state.lua`."""
    best = rules.winner(state.siblings)
    versions = [best, *(v for v in state.siblings if v != best)]
    siblings = [
        [
            str(at),
            origin,
            _sign(state.siblings[at, origin]),
            state.siblings[at, origin].condition or "",
            str(state.siblings[at, origin].expires_at or ""),
        ]
        for at, origin in versions
    ]
    long: dict[str, Any] = {"siblings": siblings, "revision": str(best[0])}
    if state.beyond:
        long["beyond"] = encode_vector(state.beyond)
    return _sign(state.siblings[best]) + json.dumps(long)


def decode_state(text: str) -> TupleState:
    """The state in a value of a `t:` hash, as `lua/lib/state.lua` says it is written."""
    sign, rest = text[0], text[1:]
    if not rest.startswith("{"):
        timestamp, origin, *_ = rest.split(" ")
        return TupleState({(int(timestamp), origin): Sibling(_operation(sign))})
    long = json.loads(rest)
    siblings = {}
    for timestamp, origin, mark, condition, expires_at in long["siblings"]:
        siblings[(int(timestamp), origin)] = Sibling(
            _operation(mark), condition or None, int(expires_at) if expires_at else None
        )
    if long["siblings"][0][2] != sign:
        raise Refused("bad_page", f"the winner of {text} does not stand first")
    beyond = {origin: int(t) for origin, t in long.get("beyond", {}).items()}
    return TupleState(siblings, beyond)


def _sign(sibling: Sibling) -> str:
    return "+" if sibling.operation is Operation.INSERT else "-"


def _operation(sign: str) -> Operation:
    return Operation.INSERT if sign == "+" else Operation.DELETE
